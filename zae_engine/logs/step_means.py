"""From lines of steps to one record a step, or to means of several steps where that would be too many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .history_file import Line
from .outcome import number

LENGTH = 10_000  # a record is of one step in so many of those so far, at least, so that a long run has few enough
LONGEST = 10.0  # seconds that a record is of, at most
_SOME = 16  # steps from which on arrays are quicker


class StepMeans:
    """Puts a line of kind ``mean`` in front of a point for every so many steps before it, and leaves all other lines.

    That needs lines of steps that say how many items each step is of, as a run writes them whose ``log_every`` is a
    share of the time. Of others, the point alone tells the mean. Each step is in one mean, weighted by its items; a
    mean ends where an epoch does, or a validation.

    Parameters
    ----------
    after : int
        Steps that have been told: a mean ends there, and how those before are divided does not matter.

    Attributes
    ----------
    stride : int
        How many steps a mean is of, unless the length of the run, or ten seconds, say otherwise. It may change.
    """

    def __init__(self, after: float = 0) -> None:
        self.after, self.stride = after, 1
        self._group: _Group | None = None
        self._told: float | None = None  # the time of the last mean
        self._time = 0.0
        self._last = -1  # the last step of such lines
        self._point: Line | None = None  # of steps whose mean is not at its end

    def split(self, line: Line) -> Iterator[Line]:
        """Take a line of the file, in order; return those that take its place."""
        kind, now = line.get("kind"), number(line.get("time")) or self._time
        if kind == "steps":
            yield from self._of_steps(line, now)
        elif kind == "point" and line.get("step") == self._last:
            yield from self._of_point(line, now)
        else:
            if kind == "end" or (kind == "row" and self._group is not None and line.get("step") == self._last):
                yield from self._close()
            if kind == "attempt" and self._told is None:
                self._told = now
            yield line
        self._time = now

    def _of_steps(self, line: Line, now: float) -> Iterator[Line]:
        found = _read(line)
        if found is None:
            yield from self._close()
            return
        first, items, columns = found
        if self._group is not None and (self._group.epoch != line.get("epoch") or self._group.last != first - 1):
            yield from self._close()
        place, count, before = 0, len(items), self._time or now
        while place < count:
            if self._group is None:
                self._group = _Group(line.get("epoch"))
            end = min(count, place + self._room(first + place))
            at = before + (now - before) * end / count
            self._group.add(columns, items, place, end, first, at)
            place, self._last = end, first + end - 1
            if self._room(self._last + 1) <= 0 or self._last == self.after:
                yield from self._close()

    def _room(self, step: int) -> int:
        """How many steps from this one on the present mean has yet to take."""
        if step <= self.after:
            return int(min(self.after - step + 1, 1 << 53))
        has = self._group.count if self._group is not None else 0
        return max(self.stride, step // LENGTH) - has

    def _of_point(self, line: Line, now: float) -> Iterator[Line]:
        """Its mean is told by the steps; what else it says goes with the mean that ends next."""
        rest = _joined(self._point, {key: value for key, value in line.items() if key != "train"})
        if self._group is None:
            self._point = None
            yield rest
            return
        self._point = rest
        if self._told is None or now - self._told >= LONGEST:
            yield from self._close()

    def _close(self) -> Iterator[Line]:
        group, point = self._group, self._point
        self._group = self._point = None
        if group is None:
            return
        self._told = group.time
        yield {"kind": "mean", "step": group.last, "epoch": group.epoch, "time": group.time, "train": group.means()}
        if point is not None:
            yield {**point, "step": group.last, "epoch": group.epoch}


class _Group:
    """Steps that have one mean."""

    def __init__(self, epoch: Any) -> None:
        self.epoch, self.count, self.last, self.time = epoch, 0, 0, 0.0
        self._sums: dict[str, list[float]] = {}  # weighted sum, sum of the weights, plain sum, number

    def add(
        self, columns: dict[str, list[Any]], items: list[float], begin: int, end: int, first: int, time: float
    ) -> None:
        """Take some of a line's steps."""
        for name, column in columns.items():
            values, weights = _there(column[begin:end], items[begin:end])
            if not values:
                continue
            if len(values) < _SOME:
                weighted = sum(value * weight for value, weight in zip(values, weights, strict=True))
            else:
                weighted = float(np.dot(values, weights))
            sums = self._sums.setdefault(name, [0.0, 0.0, 0.0, 0.0])
            for place, more in enumerate((weighted, sum(weights), sum(values), len(values))):
                sums[place] += more
        self.count += end - begin
        self.last, self.time = first + end - 1, time

    def means(self) -> dict[str, float]:
        """The mean of each value; of values without any item, the plain one."""
        found = {}
        for name, (weighted, weight, plain, count) in self._sums.items():
            found[name] = plain if count == 1 else weighted / weight if weight else plain / count
        return found


def _read(line: Line) -> tuple[int, list[float], dict[str, list[Any]]] | None:
    """The first step, each step's items, and the columns; None of a line that does not have them all."""
    first, items, columns = line.get("first"), line.get("items"), line.get("values")
    if type(first) is not int or not 0 < first < 1 << 53 or not isinstance(columns, dict) or not columns:
        return None
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    length = lengths.pop()
    weights: list[Any] = items if isinstance(items, list) else [items] * max(length, 0)
    if lengths or length < 1 or len(weights) != length or not all(map(_is_weight, weights)):
        return None
    return first, weights, columns


def _is_weight(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _there(values: list[Any], weights: list[float]) -> tuple[list[float], list[float]]:
    """The values that are numbers, with their weights; "nan" and "inf" are how the file has what JSON lacks."""
    if all(type(value) is float for value in values):
        return values, weights
    pairs = [(found, weight) for value, weight in zip(values, weights, strict=True)
             if (found := _number(value)) is not None]  # fmt: skip
    return [value for value, _ in pairs], [weight for _, weight in pairs]


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _joined(before: Line | None, point: Line) -> Line:
    """Two points as one: what the later one says, of the time and the samples of both."""
    if before is None:
        return point
    seconds = {key: number(_table(before).get(key)) + number(value) for key, value in _table(point).items()}
    return {**point, "samples": number(before.get("samples")) + number(point.get("samples")), "seconds": seconds}


def _table(point: Line) -> dict[str, Any]:
    seconds = point.get("seconds")
    return seconds if isinstance(seconds, dict) else {}
