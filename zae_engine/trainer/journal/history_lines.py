"""The lines of the history file that a training makes: values of the steps, points and rows, each once."""

from __future__ import annotations

import time
from bisect import bisect_right
from typing import Any

from ...logs.history_file import Line
from ..processes.group import Processes
from ..records.columns import Series
from ..records.gather import mean_series
from ..records.rates import rates_of
from ..records.recorder import Recorder

_MOST, _NUMBERS = 1000, 500_000  # steps a line, and numbers: some 10 MB, which a reader holds at once


class StepLines:
    """Collects what is new in a trainer's logs since the last time, as lines of ``history.jsonl``.

    Parameters
    ----------
    recorder : Recorder
    begins : bool
        Whether the file has nothing of the run yet: then it gets the rows that there are already.

    Attributes
    ----------
    files : list of (str, bytes)
        Pictures of the lines that were taken, by their path in the run's folder; whoever writes them empties it.
    """

    def __init__(self, recorder: Recorder, begins: bool) -> None:
        self._recorder = recorder
        self._step = recorder.counters.get_step() - 1  # the last step that has its line
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
        if done == self._step:
            return sorted(own + self._new_rows(), key=_step_of)
        parts = log.parts(everything=False)
        first = done - parts["batches"] + 1  # the step of the epoch's first batch
        fresh = {key: _after(series, self._step - first) for key, series in parts["scalars"].items()}
        if opened and not log.is_whole:
            everyone = processes.gather(fresh)
            names = dict.fromkeys(key for one in everyone for key in one)
            fresh = {k: mean_series([one[k] for one in everyone if k in one]) if len(everyone) > 1 else everyone[0][k]
                     for k in names}  # fmt: skip
        epoch = counters.get_epoch() - (not opened)
        lines = _columns(fresh, self._step + 1, first, done, epoch)
        point = self._point(optimizer, fresh, done, epoch)
        self._step = done
        # A row may be of an evaluation before these steps; readers get a record a step, with steps that only grow.
        return lines + sorted([*own, point, *self._new_rows()], key=_step_of)

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
        point = {"kind": "point", "step": step, "epoch": epoch, **rates_of(optimizer), "time": time.time(),
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


def _columns(fresh: dict[str, Series], begin: int, first: int, end: int, epoch: int) -> list[Line]:
    """Steps `begin` to `end`, a column a value; place 0 of a series is step `first`."""
    columns = {key: _column(series, begin - first, end - begin + 1) for key, series in fresh.items()}
    lines = list[Line]()
    most = max(1, min(_MOST, _NUMBERS // max(len(columns), 1)))
    for start in range(0, end - begin + 1, most):
        part = {key: column[start : start + most] for key, column in columns.items()}
        lines.append({"kind": "steps", "epoch": epoch, "first": begin + start, "values": part})
    return lines


def _column(series: Series, begin: int, length: int) -> list[float | None]:
    values: list[float | None] = list(series.values)
    if len(values) == length:
        return values
    column: list[float | None] = [None] * length
    for place, value in zip(series.places, values, strict=True):
        column[place - begin] = value
    return column
