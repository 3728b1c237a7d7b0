"""A run folder, read: what holds of its history, all attempts, its status, the best value, where the seconds went.

Imports no torch, and works while the run goes on.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.folder import CHECKPOINTS, Checkpoint, committed
from ..files import lines_of, may_be_deep, read_json
from ..suggestions import nearest_path
from ..terminal import PrintableError
from .history_file import Line, held, parsed
from .outcome import Best, Watched, best_of, end_of, number, spent_of, status_of, stretches, watched_of

_OF_STEP = ("kind", "step", "epoch")
HISTORY, RUN = "history.jsonl", "run.json"
_TABLES = ("train", "seconds", "memory", "loader")
_COUNTS = ("number", "step", "epoch", "attempt", "samples")
_LARGEST = 1 << 53
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class RunFolderError(PrintableError):
    """A path at which there is no run that can be read; says what there is, and what is needed."""


@dataclass(frozen=True)
class Series:
    """One value over the steps; only steps that have it are in it.

    Attributes
    ----------
    step : ndarray of int64, shape (n,)
        Optimizer steps done, growing.
    value : ndarray of float64, shape (n,)
        NaN and infinities are those that the run computed.
    """

    step: NDArray[np.int64]
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class Run:
    """What a run folder tells. Lines that a resume has superseded are left out, but for their time.

    Attributes
    ----------
    folder : Path
    rows, points : list of dict
        Those that hold, in order; "nan", "inf" and "-inf" are numbers again.
    steps : dict of str to Series
        Values of every step, by name.
    checkpoints : list of dict
        Lines of those that were written; of them, `saved` are still there.
    saved : list of Checkpoint
    attempts : list of dict
        Every ``attempt`` line, superseded ones too: ``step`` is where it began.
    started : list of dict
        What ``run.json`` says of each call of `run`: settings, circumstances, command, host.
    end : dict or None
        The last ``end`` line, unless the run has gone on since.
    status : str
        ``'running'``, ``'done'``, ``'interrupted'``, ``'failed'`` or ``'broken off'``.
    best : Best or None
    watched : (str, str)
        The column that tells the best, and ``'min'`` or ``'max'``.
    seconds : float
        Over all attempts, until the last line of each.
    spent : dict of str to float
        Where the seconds of all points went: ``compute``, ``data``, ``evaluation``, ``logging``, ``saving``.
    samples : int
        Trained in those seconds.
    """

    folder: Path
    rows: list[Line] = field(default_factory=list)
    points: list[Line] = field(default_factory=list)
    steps: dict[str, Series] = field(default_factory=dict)
    checkpoints: list[Line] = field(default_factory=list)
    saved: list[Checkpoint] = field(default_factory=list)
    attempts: list[Line] = field(default_factory=list)
    started: list[Line] = field(default_factory=list)
    end: Line | None = None
    status: str = "broken off"
    best: Best | None = None
    watched: Watched = ("test_loss", "min")
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    samples: int = 0

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.absolute().name

    @property
    def step(self) -> int:
        """Optimizer steps that are done, as far as the history tells."""
        lines = (*self.rows, *self.points, *self.checkpoints, *self.attempts[-1:])
        told = [int(series.step[-1]) for series in self.steps.values() if len(series)]
        return max([*told, *(line["step"] for line in lines if isinstance(line.get("step"), int))], default=0)

    @property
    def epoch(self) -> int:
        """The last epoch that the history has a row of."""
        return max((row["epoch"] for row in self.rows if isinstance(row.get("epoch"), int)), default=0)

    @property
    def never_finite(self) -> str | None:
        """The column that should tell the best, when it has values and none of them is finite."""
        name = self.watched[0]
        return name if self.best is None and any(row.get(name) is not None for row in self.rows) else None

    @property
    def samples_per_second(self) -> float | None:
        """Samples trained a second of the whole time; None when no point tells."""
        seconds = sum(self.spent.values())
        return self.samples / seconds if self.samples and seconds > 0 else None

    @property
    def columns(self) -> list[str]:
        """Names in the rows, in order of appearance, but ``saving`` and ``seconds`` last."""
        names = list(dict.fromkeys(name for row in self.rows for name in row if name not in ("kind", "number")))
        return sorted(names, key=("saving", "seconds").count)  # which keeps the order of the others


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder.

    Parameters
    ----------
    folder : path-like
        The run's folder; or its ``history.jsonl``.

    Raises
    ------
    RunFolderError
        When there is no run, or nothing of its history can be read.
    """
    folder = Path(folder)
    folder = folder.parent if folder.name == HISTORY else folder
    if not is_run(folder):
        raise RunFolderError(_no_run(folder))
    lines, started = _whole_lines(folder / HISTORY), _started(folder)
    if not lines and not started:
        raise RunFolderError(f"{str(folder)!r} has a {HISTORY} in which no line can be read, and no {RUN}")
    lasting, saved = held(lines), committed(folder / CHECKPOINTS)
    rows = _rows(lasting)
    points = [line for line in lines if line.get("kind") == "point"]
    end = end_of(lines)
    watched = watched_of(end, started, rows)
    return Run(
        folder,
        rows=rows,
        points=[line for line in lasting if line.get("kind") == "point" and "step" in line],
        steps=_series(lasting),
        checkpoints=[line for line in lasting if line.get("kind") == "checkpoint"],
        saved=saved,
        attempts=[line for line in lines if line.get("kind") == "attempt"],
        started=started,
        end=end,
        status=status_of(folder, end, saved),
        best=best_of(folder, end, watched, rows, saved),
        watched=watched,
        seconds=sum(stop - start for start, stop in stretches(lines)),
        spent=spent_of(points),
        samples=sum(int(number(point.get("samples"))) for point in points),
    )


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / HISTORY).is_file() or (folder / RUN).is_file()


def find_runs(path: str | os.PathLike[str]) -> list[Path]:
    """Find all run folders at and below a path, sorted.

    Raises
    ------
    RunFolderError
        When there is none.
    """
    path, found = Path(path), list[Path]()
    for here, names, files in os.walk(path, followlinks=False):
        names[:] = sorted(name for name in names if name != CHECKPOINTS and not name.startswith("."))
        if HISTORY in files or RUN in files:
            found.append(Path(here))
    if not found:
        raise RunFolderError(_no_run(path))
    return sorted(found)


def _no_run(path: Path) -> str:
    need = f"a run folder has a {HISTORY}; StateManagerAddon and every logger add-on write it into save_path"
    if not path.exists():
        meant = nearest_path(path)
        return f"there is no {str(path)!r}; " + (f"did you mean {meant!r}?" if meant else need)
    if is_run(path.parent):
        return f"{str(path)!r} is within a run folder; give that: {str(path.parent)!r}"
    if not path.is_dir():
        return f"{str(path)!r} is a file; give the run's folder: {need}"
    below = sorted(p.parent for p in path.glob(f"*/{HISTORY}"))
    if below:
        return f"{str(path)!r} is no run folder; below it are {', '.join(str(p) for p in below[:5])}"
    names = sorted(p.name for p in path.iterdir())
    holds = f"holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "is empty"
    return f"{str(path)!r} is no run folder: it {holds}; {need}"


# ---------------------------------------------------------------------- lines


def _whole_lines(path: Path) -> list[Line]:
    """All lines of the file that can be read; half of one that is just being written is not."""
    try:
        texts = [text for text in lines_of(path) if text] if os.path.lexists(path) else []
    except OSError as error:
        raise RunFolderError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    lines = list[Any]()
    if not any(b"\\u" in text or may_be_deep(text) for text in texts):
        with suppress(ValueError):  # all at once, which takes half of the time
            lines = json.loads(f"[{b','.join(texts).decode()}]")
    if len(lines) != len(texts):
        lines = [parsed(text) for text in texts]
    return [_sound(line) for line in lines if isinstance(line, dict)]


def _sound(line: Line) -> Line:
    """A line without what is not of its kind; numbers that JSON has only as text are numbers again."""
    if line.get("kind") in ("step", "steps"):
        return line
    sound: Line = {}
    for name, value in line.items():
        value = _NOT_FINITE.get(value, value) if isinstance(value, str) else value
        if name in _TABLES and (isinstance(value, dict) or line.get("kind") != "row"):
            sound[name] = _numbers(value) if isinstance(value, dict) else {}
        elif name in _COUNTS:
            sound |= {name: value} if _is_count(value) else {}
        elif name == "kind" or _is_number(value) or (line.get("kind") != "row" and name not in ("lr", "time")):
            sound[name] = value
    return sound


def _numbers(table: Line) -> Line:
    sound = {k: _NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in table.items()}
    return {name: value for name, value in sound.items() if isinstance(value, bool) or _is_number(value)}


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, float) or (type(value) is int and abs(value) < _LARGEST)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _LARGEST


def _rows(lines: Iterable[Line]) -> list[Line]:
    """Of two rows with one number the later."""
    rows = {line["number"]: line for line in lines if line.get("kind") == "row" and "number" in line}
    return [rows[number] for number in sorted(rows)]


def _series(lines: Iterable[Line]) -> dict[str, Series]:
    """Values by name, of lines ``steps`` (many steps each) and ``step`` (one each)."""
    steps, values = defaultdict[str, list[int]](list), defaultdict[str, list[Any]](list)
    for line in lines:
        kind, first = line.get("kind"), line.get("first", line.get("step"))
        if kind not in ("step", "steps") or not _is_count(first):
            continue
        columns = line.get("values") if kind == "steps" else {k: [v] for k, v in line.items() if k not in _OF_STEP}
        for name, column in columns.items() if isinstance(columns, dict) else ():
            if not isinstance(column, list):
                continue
            places: Iterable[int] = range(first, first + len(column))
            if None in column:  # steps that have no such value
                places, column = [first + i for i, v in enumerate(column) if v is not None], _there(column)
            steps[name] += places
            values[name] += column
    return {name: Series(np.array(steps[name], np.int64), _floats(values[name])) for name in steps}


def _there(column: list[Any]) -> list[Any]:
    return [value for value in column if value is not None]


def _floats(values: list[Any]) -> NDArray[np.float64]:
    try:
        return np.array(values, np.float64)  # "nan" and "inf" too
    except (TypeError, ValueError, OverflowError):
        return np.array([value if _is_number(value) else math.nan for value in values], np.float64)


def _started(folder: Path) -> list[Line]:
    try:
        attempts = read_json(folder / RUN)["attempts"]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [attempt for attempt in attempts if isinstance(attempt, dict)] if isinstance(attempts, list) else []
