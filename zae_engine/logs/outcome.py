"""What came of a run, from the lines of its history: status, best value and where it is saved, where the time went.

Imports no torch.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..checkpoint.best_rule import first_best, is_finite
from ..checkpoint.folder import CHECKPOINTS, Checkpoint
from ..files import open_plain
from .history_file import Line

Watched = tuple[str, str]

PARTS = ("data", "evaluation", "logging", "saving")  # of a point's seconds; what is left of "all" is "compute"
ENDS = ("done", "interrupted", "failed")  # how a run says that it has ended
_MONITOR = re.compile(r"(.+) \((min|max)\)")
_WEIGHTS = ("model.safetensors", "model.ckpt")
_LARGEST = 1 << 53
_WORKS = ("attempt", "step", "steps", "point", "row")  # kinds of line that show that a run went on


@dataclass(frozen=True)
class Best:
    """The best value of a run.

    Attributes
    ----------
    name, mode : str
        A column of the rows, ``'test_loss'`` say, and ``'min'`` or ``'max'``.
    value : float
    epoch, step : int or None
        Of the row that has it.
    saved : str or None
        Where weights of that epoch lie, within the run folder; None when nothing there is known to be of it.
    """

    name: str
    mode: str
    value: float
    epoch: int | None = None
    step: int | None = None
    saved: str | None = None


def end_of(lines: Iterable[Line]) -> Line | None:
    """The last ``end`` line, unless the run has gone on since."""
    end = None
    for line in lines:
        if line.get("kind") == "end":
            end = line
        elif line.get("kind") in _WORKS:
            end = None
    return end


def status_of(folder: Path, end: Line | None, saved: list[Checkpoint]) -> str:
    """``'running'``, or how it ended; a run that was killed could not say it, and has ``'broken off'``."""
    if is_held(folder):
        return "running"
    if end is not None and end.get("status") in ENDS:
        return str(end["status"])
    return "done" if end is None and saved and saved[-1].manifest.get("complete") is True else "broken off"


def is_held(folder: Path) -> bool:
    """Whether a process has the run folder's lock, so that the run goes on. Nothing is written."""
    # The holder signs, and takes that away when it gives the lock back.
    if not os.path.isfile(os.path.join(folder, "owner.json")):
        return False
    try:
        import fcntl
    except ImportError:  # Windows: the sign alone
        return True
    try:
        with open_plain(folder / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return (folder / "lock.soft").is_file()  # stands for it where the file system has no locks
    except BlockingIOError:
        return True
    except OSError:
        return False


def best_of(folder: Path, end: Line | None, watched: Watched, rows: list[Line], saved: list[Checkpoint]) -> Best | None:
    """What the end says was kept, else the best of the rows; None when no value that is watched was finite."""
    name, mode = watched
    kept = (end or {}).get("best")
    if isinstance(kept, dict) and is_finite(kept.get("value")):  # which an own `check_better` may have chosen
        value, epoch = float(kept["value"]), kept["epoch"] if type(kept.get("epoch")) is int else None
        of_epoch = [row for row in rows if row.get("epoch") == epoch]
        row = next((row for row in of_epoch if row.get(name) == value), (of_epoch or [{"epoch": epoch}])[-1])
        return Best(name, mode, value, row.get("epoch"), row.get("step"), _place(folder, row, saved))
    found = first_best(rows, lambda row: row.get(name), mode)
    if found is None:
        return None
    return Best(name, mode, float(found[name]), found.get("epoch"), found.get("step"), _place(folder, found, saved))


def watched_of(end: Line | None, started: list[Line], rows: list[Line]) -> Watched:
    """The column that tells the best, and its direction: by the end, else by what the run was started with."""
    kept, circumstances = (end or {}).get("best"), (started[-1] if started else {}).get("circumstances")
    if isinstance(kept, dict) and kept.get("name"):
        name, mode = str(kept["name"]), str(kept.get("mode"))
    else:
        said = _MONITOR.fullmatch(str(circumstances.get("monitor"))) if isinstance(circumstances, dict) else None
        name, mode = (said[1], said[2]) if said else ("loss", "min")
    columns = {column for row in rows for column in row}
    return next((n for n in (name, f"test_{name}", f"train_{name}") if n in columns), f"test_{name}"), mode


def _place(folder: Path, row: Line, saved: list[Checkpoint]) -> str | None:
    """The weights in the run folder if the last checkpoint says that they are of that epoch; else a checkpoint."""
    noted = next((c.manifest["best"] for c in reversed(saved) if isinstance(c.manifest.get("best"), dict)), None)
    weights = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights and (noted is None or noted.get("epoch") == (row.get("epoch") or 0) - 1):  # from 0
        return weights
    return next((f"{CHECKPOINTS}/{c.path.name}" for c in saved if c.step == row.get("step")), None)


def stretches(lines: Iterable[Line]) -> Iterator[tuple[float, float]]:
    """From when to when the run was at work: an attempt, or after an end in the same process, the next call."""
    start: float | None = None
    stop = 0.0
    for line in lines:
        kind, time = line.get("kind"), number(line.get("time"), math.nan)
        if kind == "attempt" and start is not None:
            yield start, stop
            start = None
        if math.isnan(time):
            continue
        if start is None:
            seconds = line.get("seconds")
            start = stop = time - (number(seconds.get("all")) if isinstance(seconds, dict) else 0.0)
        stop = max(time, stop)
        if kind == "end":
            yield start, stop
            start = None
    if start is not None:
        yield start, stop


def spent_of(points: Iterable[Line]) -> dict[str, float]:
    """Of all points, superseded ones too, since they did cost time."""
    spent = dict.fromkeys(("compute", *PARTS), 0.0)
    for point in points:
        seconds = point.get("seconds")
        if isinstance(seconds, dict):
            parts = {name: max(number(seconds.get(name)), 0.0) for name in PARTS}
            parts["compute"] = max(number(seconds.get("all")) - sum(parts.values()), 0.0)
            spent = {name: total + parts[name] for name, total in spent.items()}
    return spent


def number(value: Any, otherwise: float = 0.0) -> float:
    """A value as a number, or `otherwise` for what is no finite one."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise
    return found if math.isfinite(found) else otherwise


def is_number(value: Any) -> bool:
    """Whether a value of a line is a number, or none."""
    return value is None or isinstance(value, float) or (type(value) is int and abs(value) < _LARGEST)


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value of a line is a number of steps, epochs or lines."""
    return type(value) is int and 0 <= value < _LARGEST
