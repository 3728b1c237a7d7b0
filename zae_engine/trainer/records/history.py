"""From the values of the steps to weighted means, rows, files and plots."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ...checkpoint.best_rule import direction_of, is_finite, ranked, resolved
from ...files import replacing, spreadsheet_text
from .columns import Series as Series
from .epoch_log import EpochLog as EpochLog
from .pooling import pooled as pooled

Row = dict[str, float | int | None]


class History(Sequence[Row]):
    """One row an epoch, and one at each validation within an epoch.

    A row is a dict with ``epoch`` (from 1), ``step`` (optimizer steps done), ``lr``, ``train_loss``, ``test_loss``,
    every further metric with the same prefixes, and ``seconds`` (since the epoch began).

    Attributes
    ----------
    writes : bool
        Whether this process writes files; of several, one does.
    resumes : list of int
        The steps at which the run went on from a checkpoint.

    Parameters
    ----------
    direction : callable, optional
        Tells of a column's name whether less (``'min'``) or more of it is better.
    """

    def __init__(self, direction: Callable[[str], str | None] = direction_of) -> None:
        self.rows: list[Row] = []
        self.resumes: list[int] = []
        self.writes = True
        self._direction = direction

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        names = self.columns
        cells = [names, *([_cell(row.get(name)) for name in names] for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
        return "\n".join(lines) if self.rows else "History of no epoch"

    @property
    def columns(self) -> list[str]:
        """Every column's name, ``seconds`` last."""
        names = list(dict.fromkeys(name for row in self.rows for name in row if name != "seconds"))
        return [*names, "seconds"] if self.rows else []

    def best(self, name: str, mode: str | None = None) -> Row:
        """The row with a column's best value, `mode` 'min' or 'max'; None infers it, as ``monitor_mode=`` does.

        NaN and infinities are never the best; of equal values it is the first one.
        """
        rows = [row for row in self.rows if is_finite(row.get(name))]
        if not rows:
            there = ", ".join(self.columns) or "no rows yet"
            raise KeyError(f"no finite value in a column {name!r}; there are {there}")
        mode = resolved(name, self._direction(name) if mode is None else mode, "mode")
        return ranked(rows, lambda row: row[name], mode)[0]

    def column(self, name: str) -> list[float | int | None]:
        """One column's values; None where a row has none."""
        if self.rows and name not in self.columns:
            raise KeyError(f"no column {name!r}; there are {', '.join(self.columns)}")
        return [row.get(name) for row in self.rows]

    def put(self, row: Row, complete: bool = True) -> Row:
        """Add a row, or `complete` the last one if both are of training at one step; return the row that stands."""
        last = self.rows[-1] if self.rows and complete else {}
        if "train_loss" in last and "train_loss" in row and last["step"] == row["step"]:
            self.rows[-1].update(row)
        else:
            self.rows.append(row)
        return self.rows[-1]

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the rows as CSV, with a header."""
        if not self.writes:
            return
        with replacing(path, sync=False) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(map(spreadsheet_text, names := self.columns))
            writer.writerows([row.get(name) for name in names] for row in self.rows)

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Draw losses, metrics and learning rate over the steps, with marks where the run went on.

        Parameters
        ----------
        path : path-like, optional
            Where the picture goes; its ending decides the format.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ModuleNotFoundError
            Without matplotlib, with the command that installs it.
        """
        from ...logs.curves import figure_of

        figure = figure_of(self.rows, resumes=self.resumes, who="history.plot()")
        if path is not None and self.writes:
            with replacing(path, sync=False) as partial:
                figure.savefig(partial, format=Path(path).suffix[1:] or "png", dpi=150)
        return figure


def _cell(value: float | int | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}"
