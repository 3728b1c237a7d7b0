"""The lines of the history file that a training makes: values of the steps, points and rows, each once."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from ...logs.history_file import STEPS_A_LINE, Line
from ..processes.group import Processes
from ..records.columns import Series
from ..records.gather import mean_series
from ..records.rates import rates_of
from ..records.recorder import Recorder

_NUMBERS = 500_000  # a line: some 10 MB, which a reader holds at once


class StepLines:
    """Collects what is new in a trainer's logs since the last time, as lines of ``history.jsonl``.

    Parameters
    ----------
    recorder : Recorder
    begins : bool
        Whether the file has nothing of the run yet: then it gets the rows that there are already.
    by_step : bool
        Whether each step, or a mean of some, is a record: then the lines of steps have their items and the time.

    Attributes
    ----------
    step : int
        The last step that has its line.
    files : list of (str, bytes)
        Pictures of the lines that were taken, by their path in the run's folder; whoever writes them empties it.
    """

    def __init__(self, recorder: Recorder, begins: bool, by_step: bool = False) -> None:
        self._recorder, self._by_step = recorder, by_step
        self.step = recorder.counters.get_step() - 1
        self._time = time.time()
        self.files: list[tuple[str, bytes]] = []
        self._taken = 0 if begins else len(recorder.history.rows)
        self._last: Line = dict(recorder.history.rows[-1]) if self._taken else {}  # of the rows that are taken
        self._begin_point()

    def take(self, optimizer: Any, processes: Processes, opened: bool) -> list[Line]:
        """Collect, with a point at the end. Every process calls it, process 0 gets the lines.

        Parameters
        ----------
        optimizer : Optimizer
            Whose learning rates the point has.
        processes : Processes
        opened : bool
            Whether an epoch is running.
        """
        counters, log = self._recorder.counters, self._recorder.log_train
        done = counters.get_step() - 1
        own = self.own()
        if done == self.step:
            return sorted(own + self._new_rows(), key=_step_of)
        parts = log.parts(everything=False)
        first = done - parts["batches"] + 1  # the step of the epoch's first batch
        fresh = {key: _after(series, self.step - first) for key, series in parts["scalars"].items()}
        if opened and not log.is_whole:
            everyone = processes.gather(fresh)
            names = dict.fromkeys(key for one in everyone for key in one)
            fresh = {k: mean_series([one[k] for one in everyone if k in one]) if len(everyone) > 1 else everyone[0][k]
                     for k in names}  # fmt: skip
        epoch, before = counters.get_epoch() - (not opened), self._time
        point = self._point(optimizer, fresh, done, epoch)
        # A row may be of an evaluation before these steps; readers get a record a step, with steps that only grow.
        others = sorted([*own, point, *self._new_rows()], key=_step_of)
        begin, self.step = self.step + 1, done
        if not self._by_step:
            return _columns(fresh, begin, first, done, epoch) + others
        lines = _columns(fresh, begin, first, done, epoch, {_step_of(line) for line in others})
        _with_items(lines, fresh, first, (before, self._time))
        return sorted(lines + others, key=_last_of)

    def own(self) -> list[Line]:
        """Of what the user has logged, what belongs to steps that are done."""
        lines, files = self._recorder.own.lines(self._recorder.counters.get_step() - 1)
        self.files += files
        return list(lines)

    def _point(self, optimizer: Any, fresh: dict[str, Series], step: int, epoch: int) -> Line:
        """What the steps since the last point were on the average, weighted by their items, and what they took."""
        usage = self._recorder.usage
        now, before = usage.now(), self._seconds
        means = {key: _mean(series) for key, series in fresh.items() if len(series.values)}
        seconds = {part: round(now[part] - before[part], 6) for part in now}
        self._time = time.time()
        point = {"kind": "point", "step": step, "epoch": epoch, **rates_of(optimizer), "time": self._time,
                 "train": means, "samples": usage.samples - self._samples, "seconds": seconds}  # fmt: skip
        self._begin_point()
        return point

    def _begin_point(self) -> None:
        self._seconds, self._samples = self._recorder.usage.now(), self._recorder.usage.samples

    def _new_rows(self) -> list[Line]:
        begin, taken, last = (
            max(self._taken - 1, 0),
            self._taken,
            self._last,
        )  # only the last one may have changed since
        rows = [dict(row) for row in self._recorder.history.rows[begin:]]
        self._taken, self._last = begin + len(rows), rows[-1] if rows else {}
        return [{"kind": "row", "number": i, **row} for i, row in enumerate(rows, begin)
                if i >= taken or _facts(last) != _facts(row)]  # fmt: skip


def _step_of(line: Line) -> int:
    return int(line["step"])


def _facts(row: Line) -> Line:
    return {key: value for key, value in row.items() if key != "saving"}


def _after(series: Series, place: int) -> Series:
    """Its entries behind a place; the places are in order."""
    first = bisect_right(series.places, place)
    return Series(series.places[first:], series.values[first:], series.weights[first:])


def _mean(series: Series) -> float:
    weight = sum(series.weights)
    if not weight:
        return sum(series.values) / len(series.values)
    return sum(value * weight for value, weight in zip(series.values, series.weights, strict=True)) / weight


def _last_of(line: Line) -> int:
    return _step_of(line) if line["kind"] != "steps" else line["first"] + _length(line) - 1


def _length(line: Line) -> int:
    return max(map(len, line["values"].values()), default=1)


def _columns(
    fresh: dict[str, Series], begin: int, first: int, end: int, epoch: int, cuts: Iterable[int] = ()
) -> list[Line]:
    """Steps `begin` to `end`, a column a value; place 0 of a series is step `first`. Lines end at `cuts`, too."""
    columns = {key: _column(series, begin - first, end - begin + 1) for key, series in fresh.items()}
    lines = list[Line]()
    most = max(1, min(STEPS_A_LINE, _NUMBERS // max(len(columns), 1)))
    ends = [*sorted(cut - begin + 1 for cut in cuts if begin <= cut < end), end - begin + 1]
    for stretch, until in zip([0, *ends], ends, strict=False):
        for start in range(stretch, until, most):
            part = {key: column[start : min(start + most, until)] for key, column in columns.items()}
            lines.append({"kind": "steps", "epoch": epoch, "first": begin + start, "values": part})
    return lines


def _with_items(lines: list[Line], fresh: dict[str, Series], first: int, times: tuple[float, float]) -> None:
    """Put into lines of steps how many items each is of, and when its last step was, between these times.

    Where values of one step are of different numbers, as some process lacked one of them, the point tells the mean.
    """
    items = _items(fresh)
    if items is None:
        return
    begin, length = lines[0]["first"], _last_of(lines[-1]) - lines[0]["first"] + 1
    for line in lines:
        start, end = line["first"] - first, _last_of(line) - first + 1
        own = [_as_whole(items.get(place, 0.0)) for place in range(start, end)] if isinstance(items, dict) else items
        time = times[0] + (times[1] - times[0]) * (end + first - begin) / length
        line |= {"items": own, "time": time, "values": line.pop("values")}


def _items(fresh: dict[str, Series]) -> dict[int, float] | float | None:
    """How many items each batch is of, by its place, or all alike; None where its values do not agree on that."""
    some = [series.weights for series in fresh.values() if series.weights]
    extremes = {extreme(weights) for weights in some for extreme in (min, max)}
    if len(extremes) == 1:
        return _as_whole(extremes.pop())
    found = dict[int, float]()
    for series in fresh.values():
        own = zip(series.places, series.weights, strict=True)
        if any(found.setdefault(place, weight) != weight for place, weight in own):
            return None
    return found or None


def _as_whole(number: float) -> float:
    return int(number) if number.is_integer() else number


def _column(series: Series, begin: int, length: int) -> list[float | None]:
    values: list[float | None] = list(series.values)
    if len(values) == length:
        return values
    column: list[float | None] = [None] * length
    for place, value in zip(series.places, values, strict=True):
        column[place - begin] = value
    return column
