"""``zae runs``: one line a run, with its best value. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..checkpoint.folder import near
from ..terminal import in_line
from .history_file import Line
from .listing import listed
from .reading import RunFolderError, find_runs
from .run_tables import NOTHING, short
from .summary import duration

Row = dict[str, Any]

COLUMNS = ("name", "status", "epochs", "steps", "best", "test_loss", "train_loss", "lr", "duration", "started",
           "samples/s")  # fmt: skip
_NOT_COLUMNS = ("kind", "number", "epoch", "step", "seconds", "saving")
_LEFT = ("name", "status", "best", "started")  # aligned to the left: text


def list_runs(path: str | os.PathLike[str], sort: str | None = None, reverse: bool = False) -> list[Row]:
    """Look at all runs at and below a path.

    Parameters
    ----------
    path : path-like
    sort : str, optional
        A column: one of `COLUMNS`, or a further one of the runs' rows (``'test_acc'``), which is then shown, too.
        By name if not given.
    reverse : bool
        The greatest first. Runs without a value come last in any case.

    Returns
    -------
    list of dict
        By column; beside them ``folder``, ``best_name`` (of the value ``best``; without one, the column that was never
        finite), and ``problem`` of a folder that cannot be read. ``duration`` is in seconds, ``started`` an ISO time
        (UTC); None where nothing is known.

    Raises
    ------
    RunFolderError
        When there is no run.
    ValueError
        For a column that no run has, with the nearest name.
    """
    path = Path(path)
    found = [_look(folder, _name(folder, path)) for folder in find_runs(path)]
    rows, lasts = [row for row, _ in found], [last for _, last in found]
    further = dict.fromkeys(name for last in lasts for name in last if name not in (*COLUMNS, *_NOT_COLUMNS))
    if sort is None:
        return rows[::-1] if reverse else rows
    if sort not in COLUMNS and sort not in further:
        names = [*COLUMNS, *further]
        raise ValueError(f"no run has a column {sort!r}; there are {', '.join(names)}{near(sort, names)}")
    if sort in further:
        rows = [row | {sort: last.get(sort)} for row, last in zip(rows, lasts, strict=True)]
    there = sorted((row for row in rows if _is_there(row[sort])), key=lambda row: row[sort], reverse=reverse)
    return there + [row for row in rows if not _is_there(row[sort])]


def _is_there(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _name(folder: Path, path: Path) -> str:
    return folder.absolute().name if folder == path else folder.relative_to(path).as_posix()


def _look(folder: Path, name: str) -> tuple[Row, Line]:
    """The run's row; and the last value of each column of its history."""
    row: Row = {"name": name, **dict.fromkeys(COLUMNS[1:]), "folder": str(folder), "best_name": None}
    try:
        found = listed(folder)
    except (RunFolderError, OSError) as error:
        return row | {"status": "unreadable", "problem": str(error)}, {}
    last = {name: found.last.get(name) for name in ("test_loss", "train_loss", "lr")}
    return row | found.values | last, found.last


# ---------------------------------------------------------------------- for the terminal


def table_of(rows: Sequence[Row]) -> list[str]:
    """Rows of `list_runs` as aligned lines, with a head."""
    further = [name for name in rows[0] if name not in (*COLUMNS, "folder", "best_name", "problem")]
    columns = [*COLUMNS[:7], *further, *COLUMNS[7:]]
    cells = [[name.upper() for name in columns], *([_cell(name, row) for name in columns] for row in rows)]
    cells = [list(map(in_line, line)) for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if name in _LEFT else text.rjust(width)
            for name, text, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]


def _cell(name: str, row: Row) -> str:
    value = row[name]
    if name == "best" and value is None and row["best_name"]:
        return f"{row['best_name']} never finite"
    if value is None:
        return NOTHING
    if name == "best":
        return f"{row['best_name']} {short(value)}"
    if name == "duration":
        return duration(value)
    if name == "started":
        return _local(value)
    return f"{value:,.0f}" if name == "samples/s" and value >= 10 else short(value)


def _local(text: str) -> str:
    """An ISO time, as the clock on the wall shows it."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return text
