"""The values of the steps of one epoch, and their weighted means."""

from __future__ import annotations

import copy
import math
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any
from weakref import WeakMethod

import numpy as np
import torch
from torch import Tensor

from ..nested_values import is_scalar, leaves, snapshot
from .columns import EXACT, Column, Series, kind_of
from .losses import Losses
from .pooling import Sums, pooled
from .to_host import read

_TO_KEEP = "read them in metric_on_epoch_end, or at each step in logging(step_dict)"
KEPT = 1 << 17  # numbers of one name that are kept for sure; of older ones the sums are
_ROWS = 1 << 12  # of usual batches that wait at most
_NO_COLUMN = Column()
Usual = Sequence[tuple[str, Any]]
_NOTHING_USUAL: Usual = (("", None),)  # which is of no value's type
Noticed = Callable[[str, int, float], None]


class EpochLog(MutableMapping[str, list[Any]]):
    """The values of the running epoch: a list a key, one value a batch.

    A missing key is an empty list. Scalars (numbers, tensors without dimensions, the loss) are averaged; of an epoch of
    more than 130,000 steps, their lists have the last ones only, and the means are of all. Other values are only kept.
    What lies on a device waits there until a key is read or `means` is asked for.

    Parameters
    ----------
    noticed : callable, optional
        A bound method, called with (key, step, value) for the first value of a key that is not finite.
    watch : bool
        Read what waits on a device once a second even when nobody asks for it.

    Attributes
    ----------
    watch : bool
    copies : bool
        Whether what is added may change afterwards, so that what is not read at once has to be copied.
    epoch_begins : int
        How many losses came before those that the log has of the epoch.
    is_whole : bool
        Whether it was put together over the processes.
    """

    def __init__(self, noticed: Noticed | None = None, watch: bool = False) -> None:
        self._losses, self._told = Losses(), 0  # how many of the epoch's are among them
        self.is_whole, self.copies, self.epoch_begins = False, False, 0
        self._left_out: frozenset[str] = frozenset()
        self.watch, self._due, self._large = watch, 0.0, set[str]()
        self._columns: dict[str, Column] = {}
        self._rows, self._begins, self._count, self._forgets = array("d"), 0, 0, 2 * KEPT
        self._usual, self._kept, self._unusual = _NOTHING_USUAL, list[tuple[str, Column]](), 0
        self._width = 0  # how many values the usual batch has
        self._waiting: list[tuple[Column, str, Any, Any, int, int]] = []
        self.listen(noticed)
        self.clear()

    @property
    def losses(self) -> Losses:
        """One number a step, over all epochs."""
        if self._rows:
            self._sort()
        if (column := self._columns.get("loss")) is not None:
            self._losses.add(column.values[self._told :])
            self._told = len(column.values)
        return self._losses

    @losses.setter
    def losses(self, losses: Losses) -> None:
        self._losses = losses

    # ------------------------------------------------------------------ a mapping

    def __getitem__(self, key: str) -> list[Any]:
        if key not in self._columns and key in self._gone:
            raise KeyError(f"the values of {key!r} are not kept: {self._gone[key]}")
        column = self._columns.setdefault(key, Column())
        self._sort()
        if column.waiting:
            self.drain()
        if not column.values and column.given is None:
            column.given = []
        return column.list()

    def get(self, key: str, default: Any = None) -> Any:
        """The values of a key, or `default` for one that was never logged."""
        return self[key] if key in self._columns else default

    def __setitem__(self, key: str, values: list[Any]) -> None:
        """Put values in place of a key's; they are kept, not averaged."""
        if key in self._columns:
            del self[key]
        self._columns[key] = column = Column()
        column.given = values

    def __delitem__(self, key: str) -> None:
        """Forget a key's values of this epoch, and with them their mean."""
        self.drain()
        self._forget_usual()
        if key == "loss":
            _, self._told = self.losses, 0  # which are of all epochs
        del self._columns[key]
        self._large.discard(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, key: object) -> bool:
        return key in self._columns

    def __repr__(self) -> str:
        return repr(dict(self))

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a pickle, is the values without the trainer that listens."""
        return {**self.__dict__, "_noticed": None}

    def __copy__(self) -> EpochLog:
        return copy.deepcopy(self)  # sums and lists belong together, so none of them can be shared

    copy = __copy__

    # ------------------------------------------------------------------ what is kept

    def leave_out(self, keys: Iterable[str]) -> None:
        """From now on, keep none of these but the numbers: who wants them has had them at each step."""
        self._left_out = frozenset(keys) - {"loss", "num_items"}

    def drop(self) -> None:
        """Forget the epoch's values that are no numbers: who wants them has had them at the epoch's end."""
        others = self.others()
        self._forget_usual()
        for key in others:
            del self._columns[key]
            self._large.discard(key)
            self._gone.setdefault(key, "a validation's are gone when it is over; " + _TO_KEEP)

    def size_of_others(self) -> int:
        """How many bytes of tensors are kept of these."""
        kept = [t for key in self.others() for t in leaves(self._columns[key].given) if isinstance(t, Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())

    def others(self) -> list[str]:
        """The keys of values that are no numbers."""
        self.drain()
        return [key for key in self._columns if key not in self._averaged() and key != "num_items"]

    def _averaged(self) -> dict[str, Column]:
        return {k: c for k, c in self._columns.items() if (c.values or c.before[1]) and k != "num_items"}

    def listen(self, noticed: Noticed | None) -> None:
        """Call `noticed` from now on."""
        # Weak, since the trainer holds the log: without a cycle, a trainer's memory is free when it goes out of sight.
        self._noticed = None if noticed is None else WeakMethod(noticed)

    def clear(self) -> None:
        """Forget the epoch's values; the losses of all steps stay."""
        self.drain()
        self._count, self.epoch_begins, self.is_whole = 0, self.losses.count, False
        self._columns, self._told = {}, 0
        self._rows, self._begins, self._forgets = array("d"), 0, 2 * KEPT
        self._usual, self._kept, self._unusual = _NOTHING_USUAL, [], 0
        self._large = set()
        self._gone = dict.fromkeys(self._left_out, f"metrics= has had them, and nobody else; {_TO_KEEP}")

    # ------------------------------------------------------------------ a step's values

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
        place = self._count
        self._count = place + 1
        numbers: list[float] = [weight]
        counted = values.get("num_items") is weight and type(weight) is int
        for key, kind in self._usual if counted and len(values) == self._width else _NOTHING_USUAL:
            value: Any = values.get(key)
            if type(value) is Tensor:
                if value.ndim or not value.is_cpu or value.dtype is not kind:
                    if kind is Tensor and value.ndim and value.is_cpu:
                        continue
                    break
                value = value.item()
            elif type(value) is not kind:
                break
            if not -EXACT < value < EXACT:  # NaN and the infinities, too
                break
            numbers.append(value)
        else:
            self._rows.extend(numbers)
            for key, column in self._kept:
                column.keep(values[key].detach(), place)
            if not self._count % _ROWS:
                self._sort()
            return
        self._add_any(values, weight, step, place)

    def _add_any(self, values: dict[str, Any], weight: Any, step: int, place: int) -> None:
        """Take values of which some are of another kind than in the batch before, or lie on a device."""
        self._forget_usual(place)
        for key, value in values.items():
            self._take(key, value, weight, step, place)
        self._begins = self._count
        self._unusual += 1
        if not self._unusual & (self._unusual - 1):  # at first, and less and less often
            self._usual, self._kept = self._look(values)
            self._width = len(values)
        if len(self._waiting) >= _ROWS:
            self.drain()
        if (self._waiting or self._large) and time.perf_counter() >= self._due:
            self._due = time.perf_counter() + 1
            if self.watch or self._large:
                self.drain()

    def _look(self, values: dict[str, Any]) -> tuple[Usual, list[tuple[str, Column]]]:
        """Of what kinds such values are, if each can be told at once, and which are kept as they come."""
        usual, kept = list[tuple[str, Any]](), list[tuple[str, Column]]()
        for key, value in values.items():
            column = self._columns.get(key, _NO_COLUMN)
            if key == "num_items" and column.usual is int:
                continue  # it is the weight
            is_large = type(value) is Tensor and value.ndim > 0 and value.is_cpu and key != "loss"
            if column.usual is not None:
                usual.append((key, column.usual))
            elif is_large and not column.values and (column.given is not None or key in self._left_out):
                usual.append((key, Tensor))
                kept += [(key, column)] if column.given is not None else []
            else:
                return _NOTHING_USUAL, []
        return usual, kept

    def _forget_usual(self, end: int | None = None) -> None:
        """Look at the next batch closely."""
        self._sort(end)
        self._usual, self._kept = _NOTHING_USUAL, []

    def _sort(self, end: int | None = None) -> None:
        """Put the rows of the usual batches, up to one, into their columns."""
        if self._rows:
            keys = [key for key, kind in self._usual if kind is not Tensor]
            table = np.array(self._rows).reshape(-1, len(keys) + 1).T
            places = range(self._begins, self._begins + table.shape[1])
            for key, values in zip(keys, table[1:], strict=True):
                column = self._columns[key]
                column.values.frombytes(values.tobytes())
                column.weights.frombytes(table[0].tobytes())
                column.places.extend(places)
            items = self._columns["num_items"]
            for numbers in (items.values, items.weights):
                numbers.frombytes(table[0].tobytes())
            items.places.extend(places)
            del self._rows[:]
        self._begins = self._count if end is None else end
        if self._count >= self._forgets:
            self._forgets = self._count + KEPT
            _, loss = self.losses, self._columns.get("loss", _NO_COLUMN)
            before = len(loss.values)
            for column in self._columns.values():
                column.forget_before(self._count - KEPT)
            self._told = len(loss.values)
            self.epoch_begins += before - self._told

    def _take(self, key: str, value: Any, weight: Any, step: int, place: int) -> None:
        """Take a value of any kind."""
        scalar = key == "loss" or is_scalar(value)
        if key in self._left_out and not scalar:
            return
        if self.copies:
            value = snapshot(value)
        column = self._columns.setdefault(key, Column())
        far = [isinstance(each, Tensor) and each.device.type != "cpu" for each in (value, weight)]
        if any(far) and not (self._waiting or self._large):
            self._due = time.perf_counter() + 1
        if not scalar:
            column.keep(value, place)
            if far[0]:
                self._large.add(key)  # must not fill the device's memory over a long epoch
        elif any(far) or column.waiting:
            column.wait()
            self._waiting.append((column, key, value, weight, step, place))
        else:
            number, weight = read([value, weight])
            self._number(column, key, value, number, weight, step, place)

    def _number(
        self, column: Column, key: str, value: Any, number: float, weight: float, step: int, place: int
    ) -> None:
        column.take(value, kind_of(value), number, weight, place)
        if column.finite and not math.isfinite(number):
            self._notice(column, key, step, number)

    def _notice(self, column: Column, key: str, step: int, number: float) -> None:
        column.finite = False
        if key != "num_items" and self._noticed is not None and (noticed := self._noticed()) is not None:
            noticed(key, step, number)

    def skip(self) -> None:
        """Count a batch of which this process has no part."""
        self._sort()
        self._count += 1
        self._begins = self._count

    def drain(self) -> None:
        """Bring over what waits on a device, scalars in one copy."""
        self._sort()
        for key in self._large & self._columns.keys():
            self._columns[key].list()
        waiting, self._waiting = self._waiting, []
        numbers = iter(read([each for _, _, value, weight, *_ in waiting for each in (value, weight)]))
        for column, key, value, _, step, place in waiting:
            column.waiting -= 1
            self._number(column, key, value, next(numbers), next(numbers), step, place)

    # ------------------------------------------------------------------ parts of several processes, and checkpoints

    def kinds(self) -> dict[str, str]:
        """Of what kind each scalar's values are: a torch dtype's name, ``int``, ``bool`` or ``float``."""
        return {key: column.kind_in_words for key, column in self._averaged().items()}

    def restore(self, batches: int, scalars: dict[str, tuple[Series, str]], other: dict[str, Any]) -> None:
        """Go on with an epoch of which so many batches are done, from its scalars with their kinds and other parts."""
        self._count = self._begins = batches
        self._forget_usual()
        for key, (series, kind) in scalars.items():
            self._columns.setdefault(key, Column()).replace(series, kind)
        self._put_others(other)

    def _put_others(self, other: dict[str, Any]) -> None:
        for key, (places, values) in other.items():
            self._columns[key] = column = Column()
            if key == "num_items" and all(map(is_scalar, values)):
                for place, value in zip(places, values, strict=True):
                    column.take(value, kind_of(value), float(value), 0.0, place)
            else:  # the user may have put more values there than there are batches
                column.given, column.spots = list(values), list(places)

    def parts(self, everything: bool) -> dict[str, Any]:
        """What this process has of the epoch: its scalars' `Series`, and with `everything`, the other values, too."""
        self.drain()
        averaged = self._averaged()
        scalars = {key: column.view() for key, column in averaged.items()}
        rest = {key: column for key, column in self._columns.items() if everything and key not in averaged}
        other = {k: (c.places.tolist() if c.given is None else c.spots, self[k]) for k, c in rest.items()}
        return {"batches": self._count, "scalars": scalars, "other": other}

    def put_together(self, scalars: dict[str, Series], other: dict[str, Any]) -> None:
        """Let the epoch be what all processes have found of it: a value a batch, as one process would have."""
        self._forget_usual()
        self.losses.take_back(self.epoch_begins)
        self._told = 0
        for key, series in scalars.items():
            column = self._columns.setdefault(key, Column())
            column.replace(series, _mean_kind(column.kind_in_words))
        self._put_others(other)
        self.is_whole = True

    def means(self) -> dict[str, float]:
        """The epoch's mean of every scalar so far, weighted by items."""
        return pooled([self.sums()])

    def sums(self) -> Sums:
        """For every scalar so far, the weighted sum of its values and the sum of their weights."""
        self.drain()
        return {key: column.sums() for key, column in self._averaged().items()}


def _mean_kind(kind: str) -> str:
    """Of what kind means of such values are."""
    if kind in ("int", "bool"):
        return "float"
    return kind if getattr(torch, kind.removeprefix("torch."), torch.float).is_floating_point else "torch.float64"
