"""The values of one name over an epoch's batches: numbers as numbers, anything else as it came."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .to_host import to_host

Kind = torch.dtype | type[float] | None

_NUMBERS: tuple[type[float], ...] = (float, int, bool)
_LONG = (torch.int64, torch.uint64)
EXACT = 2**53  # from here on a float cannot tell whole numbers apart


class Series:
    """One scalar over the batches: of which batch, its value, its weight.

    Attributes
    ----------
    before : (float, float)
        The weighted sum of values that are not kept any more, and the sum of their weights.
    """

    def __init__(
        self,
        places: Sequence[int] = (),
        values: Sequence[float] = (),
        weights: Sequence[float] = (),
        before: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.places, self.values, self.weights = array("q", places), array("d", values), array("d", weights)
        self.before = before


def kind_of(value: Any) -> Kind:
    """What makes a number again of the float that is kept of it; None for a value that has to be kept itself."""
    if type(value) is Tensor:
        if (
            value.ndim
            or value.is_complex()
            or (value.is_cpu and value.dtype in _LONG and not -EXACT < int(value) < EXACT)
        ):
            return None
        return value.dtype
    exact = type(value) is not int or -EXACT < value < EXACT
    return type(value) if type(value) in _NUMBERS and exact else None


class Column(Series):
    """The values of one name.

    As long as all are numbers of one kind, eight bytes are kept of each, with its weight and place, and the list of
    what they were is made when it is asked for. Other values are kept as they came.

    Attributes
    ----------
    kind : torch.dtype, type or None
        Of which all values are, where they are kept as numbers.
    given : list or None
        The values as they came, where they are not; and of which batches they are (`spots`).
    usual : torch.dtype, type or None
        The kind of a value that can be put behind these at once; None where it needs a closer look.
    waiting : int
        How many have yet to be read from their device.
    finite : bool
        Whether all numbers are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kind: Kind = None
        self.usual: Kind = None
        self.given: list[Any] | None = None
        self.spots: list[int] = []
        self.waiting, self.finite = 0, True
        self._shown: list[Any] = []
        self._made = 0  # of how many numbers the list is made
        self._fetched = 0  # how many of the given values are on the host
        self._sums, self._summed = (0.0, 0.0), 0

    def take(self, value: Any, kind: Kind, number: float, weight: float, place: int) -> None:
        """Take a value that is a number."""
        if not self.values and self.given is None:
            self.kind = kind
        if kind is None or kind is not self.kind:
            self.keep(value.clone() if isinstance(value, Tensor) else value, place)  # its memory may be used again
        self.values.append(number)
        self.weights.append(weight)
        self.places.append(place)
        self.usual = None if self.waiting else self.kind

    def keep(self, value: Any, place: int) -> None:
        """Keep a value as it came, and so all that come after it."""
        if self.given is None:
            self.given, self.spots, self.kind, self.usual = self.list(), self.places.tolist(), None, None
            self._fetched = len(self.given)
        self.given.append(value)
        self.spots.append(place)

    def wait(self) -> None:
        """A value has yet to be read, and those that come have to stay behind it."""
        self.waiting, self.usual = self.waiting + 1, None

    def view(self) -> Series:
        """The numbers alone, not copied."""
        series = Series(before=self.before)
        series.places, series.values, series.weights = self.places, self.values, self.weights
        return series

    def list(self) -> list[Any]:
        """The values as they came, on the host; the same list each time."""
        if self.given is not None:
            self.given[self._fetched :] = to_host(self.given[self._fetched :])
            self._fetched = len(self.given)
            return self.given
        if self._made < len(self.values):
            self._shown += _made_of(self.values[self._made :], self.kind)
            self._made = len(self.values)
        return self._shown

    def sums(self) -> tuple[float, float]:
        """The weighted sum of the numbers and the sum of their weights, added in order as the steps came."""
        before = self._sums if self._summed else self.before
        self._sums = _added(before, self.values[self._summed :], self.weights[self._summed :])
        self._summed = len(self.values)
        return self._sums

    def forget_before(self, place: int) -> None:
        """Of the numbers of batches before this one, keep the sums only."""
        cut = bisect_left(self.places, place)
        if cut and self.given is None:
            sums, self.before = self.sums(), _added(self.before, self.values[:cut], self.weights[:cut])
            del self.places[:cut], self.values[:cut], self.weights[:cut], self._shown[: min(cut, self._made)]
            self._sums, self._summed, self._made = sums, len(self.values), max(0, self._made - cut)

    def replace(self, series: Series, kind: str) -> None:
        """Let the numbers be these, of a kind that `kind_in_words` has named."""
        number = next((n for n in _NUMBERS if n.__name__ == kind), None)
        self.kind = number or getattr(torch, kind.removeprefix("torch."))
        self.places, self.values, self.weights, self.before = (
            series.places,
            series.values,
            series.weights,
            series.before,
        )
        self.given, self.spots, self._shown, self.usual = None, [], [], None
        self._made, self._sums, self._summed = 0, (0.0, 0.0), 0
        self.finite = all(map(math.isfinite, self.values))

    @property
    def kind_in_words(self) -> str:
        """``'torch.float32'``, ``'int'``, ``'bool'`` or ``'float'``; where they are of several, the first one's."""
        first = next(iter(self.given), None) if self.given is not None else None
        kind = self.kind or next((number for number in _NUMBERS if type(first) is number), None)
        if isinstance(first, Tensor) and not first.is_complex():
            kind = first.dtype
        return str(kind) if isinstance(kind, torch.dtype) else kind.__name__ if kind is not None else "float"


def _added(sums: tuple[float, float], values: array[float], weights: array[float]) -> tuple[float, float]:
    """The weighted sum and the sum of the weights, with further values, added in their order."""
    total, whole = sums
    for value, weight in zip(values, weights, strict=True):
        total += value * weight
        whole += weight
    return total, whole


def _made_of(numbers: array[float], kind: Kind) -> list[Any]:
    """What the numbers were."""
    if isinstance(kind, torch.dtype):
        return list(torch.tensor(numbers, dtype=torch.float64).to(kind).unbind())
    if kind is not None and kind is not float:
        whole: type[float] = kind
        return [whole(number) if math.isfinite(number) else number for number in numbers]
    return numbers.tolist()
