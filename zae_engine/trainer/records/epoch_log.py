"""The values of the steps of one epoch, and their weighted means."""

from __future__ import annotations

import copy
import math
import time
from array import array
from collections import UserDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor

from ..nested_values import is_scalar, leaves
from .to_host import read, to_host

Sums = dict[str, tuple[float, float]]
_NUMBERS: tuple[type[float], ...] = (float, int, bool)
_TO_KEEP = "read them in metric_on_epoch_end, or at each step in logging(step_dict)"
Noticed = Callable[[str, int, float], None]


class Series:
    """One scalar over the batches: of which batch, its value, its weight."""

    def __init__(self, places: Sequence[int] = (), values: Sequence[float] = (), weights: Sequence[float] = ()) -> None:
        self.places, self.values, self.weights = array("q", places), array("d", values), array("d", weights)

    def add(self, place: int, value: float, weight: float) -> None:
        """Take one batch's value."""
        self.places.append(place)
        self.values.append(value)
        self.weights.append(weight)


class EpochLog(UserDict[str, list[Any]]):
    """The values of the running epoch: a list a key, one value a batch.

    A missing key is an empty list. Values wait on their device and come over when a key is read or `means` is asked
    for. Scalars (numbers, tensors without dimensions, the loss) are averaged; other values are only kept.

    Parameters
    ----------
    noticed : callable, optional
        A bound method, called with (key, step, value) for the first value of a key that is not finite.
    watch : bool
        Read the values once a second even when nobody asks for them.
    parts : bool
        Remember of which batch each value is: it is a part's and will be put together with other processes', or goes
        into a checkpoint in the middle of the epoch.
    """

    def __init__(self, noticed: Noticed | None = None, watch: bool = False, parts: bool = False) -> None:
        super().__init__()
        self.losses = array("d")  # one number a step, over all epochs
        self.is_whole = False  # put together over the processes
        self.epoch_begins = 0  # in the losses
        self._left_out: frozenset[str] = frozenset()
        self._gone: dict[str, str] = {}  # by key, why its values are not there
        self.watch, self._parts = watch, parts
        self.listen(noticed)
        self.clear()

    @property
    def data(self) -> dict[str, list[Any]]:
        """The lists, with all that was added."""
        self._sort()
        return self._lists

    @data.setter
    def data(self, lists: dict[str, list[Any]]) -> None:
        self._lists = lists
        self._added: list[tuple[dict[str, Any], Any, int, int]] = []

    def __missing__(self, key: str) -> list[Any]:
        return self.data.setdefault(key, [])

    def __getitem__(self, key: str) -> list[Any]:
        values = self.data.get(key)
        if values is None and key in self._gone:
            raise KeyError(f"the values of {key!r} are not kept: {self._gone[key]}")
        if values is None:
            return self.__missing__(key)
        self._fetch(key, values)
        return values

    def get(self, key: str, default: Any = None) -> Any:
        """The values of a key, or `default` for one that was never logged."""
        return self[key] if key in self.data else default

    def __setitem__(self, key: str, values: list[Any]) -> None:
        """Put values in place of a key's; they are kept, not averaged."""
        if key in self.data:
            del self[key]
        self.data[key] = values

    def __delitem__(self, key: str) -> None:
        """Forget a key's values of this epoch, and with them their mean."""
        self.drain()
        del self.data[key]
        self._large.discard(key)
        for known in (self._arrived, self._totals, self._series, self._places):
            known.pop(key, None)

    def _fetch(self, key: str, values: list[Any]) -> None:
        arrived = self._arrived.get(key, 0)
        values[arrived:] = to_host(values[arrived:])
        self._arrived[key] = len(values)

    def leave_out(self, keys: Iterable[str]) -> None:
        """From now on, keep none of these but the numbers: who wants them has had them at each step."""
        self._left_out = frozenset(keys) - {"loss", "num_items"}

    def drop(self) -> None:
        """Forget the epoch's values that are no numbers: who wants them has had them at the epoch's end."""
        for key in self.others():
            del self._lists[key]
            self._large.discard(key)
            self._places.pop(key, None)
            self._gone.setdefault(key, "a validation's are gone when it is over; " + _TO_KEEP)

    def size_of_others(self) -> int:
        """How many bytes of tensors are kept of these."""
        kept = [t for key in self.others() for t in leaves(self._lists[key]) if isinstance(t, Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())

    def others(self) -> list[str]:
        """The keys of values that are no numbers."""
        self.drain()
        return [key for key in self._lists if key not in self._totals and key != "num_items"]

    def listen(self, noticed: Noticed | None) -> None:
        """Call `noticed` from now on."""
        # Weak, since the trainer holds the log: without a cycle, a trainer's memory is free when it goes out of sight.
        self._noticed = None if noticed is None else WeakMethod(noticed)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a pickle, is the values without the trainer that listens."""
        return {**self.__dict__, "_noticed": None}

    def __copy__(self) -> EpochLog:
        return copy.deepcopy(self)  # sums and lists belong together, so none of them can be shared

    copy = __copy__

    def clear(self) -> None:
        """Forget the epoch's values; the losses of all steps stay."""
        if self.data:
            self.drain()
        self.data = {}
        self._arrived: dict[str, int] = {}
        self._waiting: dict[str, list[tuple[Any, Any, int, int]]] = defaultdict(list)
        self._totals: dict[str, tuple[float, float]] = {}
        self._series: dict[str, Series] = defaultdict(Series)
        self._places: dict[str, list[int]] = defaultdict(list)
        self._count, self.epoch_begins, self.is_whole = 0, len(self.losses), False
        self._large: set[str] = set()
        self._gone = dict.fromkeys(self._left_out, f"metrics= has had them, and nobody else; {_TO_KEEP}")
        self._due = time.perf_counter() + 1

    def add(self, values: dict[str, Any], weight: Any, step: int) -> None:
        """Take the values of one batch.

        Parameters
        ----------
        values : dict
            As the step returned them, detached.
        weight : int, float or Tensor
            Items that the values are means of.
        step : int
            The batch's number, for messages.
        """
        # Sorted by key later, many at once, since this is done at every step.
        kept = dict(values)
        for key in self._left_out & kept.keys() if self._left_out else ():
            if not is_scalar(kept[key]):
                del kept[key]
        self._added.append((kept, weight, step, self._count))
        self._count += 1
        if time.perf_counter() >= self._due:
            self._due = time.perf_counter() + 1
            self._sort()
            if self.watch or self._large:
                self.drain()

    def _sort(self) -> None:
        """Put what was added under its keys, and the scalars of it where they wait to be read."""
        added, self._added = self._added, []
        for values, weight, step, place in added:
            for key, value in values.items():
                self._lists.setdefault(key, []).append(value)
                if self._parts:
                    self._places[key].append(place)
                if key == "loss" or (key != "num_items" and is_scalar(value)):
                    self._waiting[key].append((value, weight, step, place))
                elif isinstance(value, Tensor) and value.device.type != "cpu":
                    self._large.add(key)  # must not fill the device's memory over a long epoch

    def skip(self) -> None:
        """Count a batch of which this process has no part."""
        self._count += 1

    def drain(self) -> None:
        """Bring over what waits, scalars in one copy, and add them to the sums."""
        self._due = time.perf_counter() + 1
        self._sort()
        for key in self._large & self._lists.keys():
            self._fetch(key, self._lists[key])
        waiting, self._waiting = self._waiting, defaultdict(list)
        flat = iter(read([x for entries in waiting.values() for value, weight, *_ in entries for x in (value, weight)]))
        for key, entries in waiting.items():
            total, weights = self._totals.get(key, (0.0, 0.0))
            finite = math.isfinite(total)
            for _, _, step, place in entries:
                value, weight = next(flat), next(flat)
                if self._parts:
                    self._series[key].add(place, value, weight)
                total += value * weight
                weights += weight
                if key == "loss":
                    self.losses.append(value)
                if finite and not math.isfinite(value):
                    finite = False
                    if self._noticed is not None and (noticed := self._noticed()) is not None:
                        noticed(key, step, value)
            self._totals[key] = total, weights

    def kinds(self) -> dict[str, str]:
        """Of what kind each scalar's values are: a torch dtype's name, ``int``, ``bool`` or ``float``."""
        firsts = {key: next(iter(self._lists.get(key, ())), 0.0) for key in self._series}
        return {k: str(v.dtype) if isinstance(v, Tensor) else type(v).__name__ if type(v) in _NUMBERS else "float"
                for k, v in firsts.items()}  # fmt: skip

    def restore(self, batches: int, scalars: dict[str, tuple[Series, str]], other: dict[str, Any]) -> None:
        """Go on with an epoch of which so many batches are done, from its scalars with their kinds and other parts."""
        self._count = batches
        for key, (series, kind) in scalars.items():
            self._series[key] = series
            if number := next((n for n in _NUMBERS if n.__name__ == kind), None):
                self._lists[key] = [number(v) if math.isfinite(v) else v for v in series.values]
            else:
                dtype = getattr(torch, kind.removeprefix("torch."))
                self._lists[key] = list(torch.tensor(series.values, dtype=torch.float64).to(dtype).unbind())
            self._arrived[key] = len(series.values)
            self._totals[key] = _total(series)
        self.losses.extend(scalars["loss"][0].values if "loss" in scalars else ())
        for key, (places, values) in other.items():
            self._places[key], self._lists[key] = list(places), list(values)

    def parts(self, everything: bool) -> dict[str, Any]:
        """What this process has of the epoch: its scalars' `Series`, and with `everything`, the other values, too."""
        self.drain()
        other = {k: (self._places[k], self[k]) for k in self._lists if k not in self._series} if everything else {}
        return {"batches": self._count, "scalars": dict(self._series), "other": other}

    def put_together(self, scalars: dict[str, Series], other: dict[str, Any]) -> None:
        """Let the epoch be what all processes have found of it: a value a batch, as one process would have."""
        del self.losses[self.epoch_begins :]
        for key, series in scalars.items():
            like = next(iter(self._lists.get(key, ())), None)
            numbers = torch.tensor(series.values, dtype=_mean_dtype(like))
            self._lists[key] = list(series.values) if isinstance(like, float) else list(numbers.unbind())
            self._arrived[key] = len(series.values)
            self._series[key], self._totals[key] = series, _total(series)
        self.losses.extend(scalars["loss"].values if "loss" in scalars else ())
        for key, (places, values) in other.items():
            self._places[key], self._lists[key] = places, values
        self.is_whole = True

    def means(self) -> dict[str, float]:
        """The epoch's mean of every scalar so far, weighted by items."""
        return pooled([self.sums()])

    def sums(self) -> Sums:
        """For every scalar so far, the weighted sum of its values and the sum of their weights."""
        self.drain()
        return dict(self._totals)


def _total(series: Series) -> tuple[float, float]:
    """The weighted sum of the values, and the sum of the weights, added in order as the steps came."""
    total = weights = 0.0
    for value, weight in zip(series.values, series.weights, strict=True):
        total += value * weight
        weights += weight
    return total, weights


def _mean_dtype(value: Any) -> torch.dtype:
    """The number type of means of such values."""
    if not isinstance(value, Tensor):
        return torch.float32
    return value.dtype if value.dtype.is_floating_point else torch.float64


def pooled(parts: Sequence[Sums]) -> dict[str, float]:
    """The means over several sets, as if all of their batches had been one epoch's."""
    means = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        total, weight = (sum(column) for column in zip(*(part[key] for part in parts if key in part), strict=True))
        means[key] = total / weight if weight else math.nan
    return means


def with_metrics(sums: Sums, metrics: dict[str, float]) -> Sums:
    """The sums of one set, with its further metrics weighted by the set's items."""
    items = sums.get("loss", next(iter(sums.values()), (0.0, 1.0)))[1]
    parts = {key: (value * items, items) for key, value in metrics.items()}
    # A metric may have the name of a value that the step returns, and then stands for it.
    return parts | {key: sums[key] for key, value in pooled([sums]).items() if metrics.get(key) == value}
