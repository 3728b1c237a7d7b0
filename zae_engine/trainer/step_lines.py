"""The lines of the history file: values of the steps and rows, each once."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from ..logs.history_file import Line
from .gathering import mean_series
from .history import Series


class StepLines:
    """Collects what is new in a trainer's logs since the last time, as lines of ``history.jsonl``.

    Parameters
    ----------
    trainer : Trainer
        Passed as Any, since its module is above this one.
    begins : bool
        Whether the file has nothing of the run yet: then it gets the rows that the trainer has already.
    """

    def __init__(self, trainer: Any, begins: bool) -> None:
        self._step = trainer.progress_checker.get_step() - 1  # the last step that has its line
        self._rows: list[Line] = [] if begins else [dict(row) for row in trainer.history.rows]
        self._waiting: list[Line] = []

    def take(self, trainer: Any, opened: bool) -> list[Line]:
        """Collect; return all lines that wait. Every process calls it, process 0 gets the lines."""
        log = trainer.log_train
        done = trainer.progress_checker.get_step() - 1
        parts = log.parts(everything=False)
        first = done - parts["batches"] + 1  # the step of the epoch's first batch
        fresh = {key: _after(series, self._step - first) for key, series in parts["scalars"].items()}
        if opened and not log.is_whole:
            everyone = trainer._processes.gather(fresh)
            names = dict.fromkeys(key for one in everyone for key in one)
            fresh = {k: mean_series([one[k] for one in everyone if k in one]) if len(everyone) > 1 else everyone[0][k]
                     for k in names}  # fmt: skip
        steps, epoch = dict[int, Line](), trainer.progress_checker.get_epoch() - (not opened)
        for key, series in fresh.items():
            for place, value in zip(series.places, series.values, strict=True):
                head: Line = {"kind": "step", "step": first + place, "epoch": epoch}
                steps.setdefault(place, head)[key] = value
        self._waiting += [steps[place] for place in sorted(steps)] + self._new_rows(trainer)
        self._step = done
        return list(self._waiting)

    def written(self) -> None:
        """The lines have been handed over."""
        self._waiting = []

    def _new_rows(self, trainer: Any) -> list[Line]:
        rows = [dict(row) for row in trainer.history.rows]
        known, self._rows = self._rows, rows
        return [{"kind": "row", "number": i, **row} for i, row in enumerate(rows)
                if i >= len(known) or _facts(known[i]) != _facts(row)]  # fmt: skip


def _facts(row: Line) -> Line:
    return {key: value for key, value in row.items() if key != "saving"}


def _after(series: Series, place: int) -> Series:
    """Its entries behind a place; the places are in order."""
    first = bisect_right(series.places, place)
    return Series(series.places[first:], series.values[first:], series.weights[first:])
