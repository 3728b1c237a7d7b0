"""A run folder, read: what holds of its history, all attempts, its status, the best value, where the seconds went.

Imports no torch, and works while the run goes on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.folder import CHECKPOINTS, Checkpoint, committed
from ..files import lines_of, may_be_deep, read_json
from ..suggestions import nearest_path
from ..terminal import PrintableError
from .history_file import Line, held, is_whole_steps, parsed
from .outcome import (
    Best,
    Watched,
    best_of,
    end_of,
    is_count,
    is_number,
    number,
    spent_of,
    status_of,
    stretches,
    watched_of,
)

if TYPE_CHECKING:
    from .series import Series  # and numpy, without which a list of runs is there in half of the time

FILES = HISTORY, RUN = "history.jsonl", "run.json"
_TABLES = ("train", "seconds", "memory", "loader")
_COUNTS = ("number", "step", "epoch", "attempt", "samples")
_TOGETHER = 1 << 16  # bytes of lines that are parsed at once: in half of the time, and soon enough for other threads
_STEPS = b'{"kind": "steps"}'  # in place of a line that is not parsed
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class RunFolderError(PrintableError):
    """A path at which there is no run that can be read; says what there is, and what is needed."""


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
    last_step : int
        The last one that has such a value.
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
    sizes : dict of str to int
        Of the files that this was read from, in bytes, as they were then.
    """

    folder: Path
    rows: list[Line] = field(default_factory=list)
    points: list[Line] = field(default_factory=list)
    steps: dict[str, Series] = field(default_factory=dict)
    last_step: int = 0
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
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.absolute().name

    @property
    def step(self) -> int:
        """Optimizer steps that are done, as far as the history tells."""
        lines = (*self.rows, *self.points, *self.checkpoints, *self.attempts[-1:])
        told: list[int] = [line["step"] for line in lines if isinstance(line.get("step"), int)]
        return max([self.last_step, *told])

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
    def begun(self) -> str | None:
        """When it was started for the first time, an ISO time (UTC)."""
        try:
            time = datetime.fromtimestamp(self.attempts[0]["time"], timezone.utc)
            return time.isoformat(timespec="seconds")
        except (LookupError, TypeError, ValueError, OverflowError, OSError):
            said = self.started[0].get("started") if self.started else None
            return said if isinstance(said, str) else None

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
    return _run(Path(folder), values=True)


def glance(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder for a list: the values of the steps stay unread, but for the last ones, and numpy unimported.

    Neither is it known which checkpoints are there, so that `Run.best` does not tell where it is saved.

    Parameters
    ----------
    folder : path-like
        As of `read_run`.

    Raises
    ------
    RunFolderError
        As `read_run` does.
    """
    return _run(Path(folder), values=False)


def _run(folder: Path, values: bool) -> Run:
    folder = folder.parent if folder.name == HISTORY else folder
    if not is_run(folder):
        raise RunFolderError(_no_run(folder))
    sizes = {name: (folder / name).stat().st_size for name in FILES if (folder / name).is_file()}
    lines, started = _whole_lines(folder / HISTORY, values), _started(folder)
    if not lines and not started:
        raise RunFolderError(f"{str(folder)!r} has a {HISTORY} in which no line can be read, and no {RUN}")
    lasting, end = held(lines), end_of(lines)
    steps, last_step = _steps_of(folder / HISTORY, lasting, values)
    # For a list, only the last one matters, and only where no end says how the run ended.
    saved = committed(folder / CHECKPOINTS, None if values else 1) if values or end is None else []
    rows = _rows(lasting)
    points = [line for line in lines if line.get("kind") == "point"]
    watched = watched_of(end, started, rows)
    return Run(
        folder,
        rows=rows,
        points=[line for line in lasting if line.get("kind") == "point" and "step" in line],
        steps=steps,
        last_step=last_step,
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
        sizes=sizes,
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


def _whole_lines(path: Path, values: bool) -> list[Line]:
    """All lines of the file that can be read; half of one that is just being written is not.

    With `values`, those of the steps are a `Series` each; else of such a line it is kept where it is in the file.
    """
    lines, texts, begin, end = list[Line](), list[bytes](), 0, 0
    try:
        for text in lines_of(path) if os.path.lexists(path) else ():
            texts.append(text)
            end += len(text) + 1
            if end - begin > _TOGETHER:
                lines += _parsed(texts, begin, values)
                texts, begin = [], end
    except OSError as error:
        raise RunFolderError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    return lines + _parsed(texts, begin, values)


def _parsed(texts: list[bytes], begin: int, values: bool) -> list[Line]:
    """Some neighbouring lines of the file, of which the first begins at a byte."""
    unread = [not values and is_whole_steps(text) for text in texts]
    found = _read_at_once([_STEPS if skipped else text or b"null" for skipped, text in zip(unread, texts, strict=True)])
    lines = list[Line]()
    for line, skipped, text in zip(found, unread, texts, strict=True):
        if isinstance(line, dict):
            lines.append({"kind": "steps", "begin": begin} if skipped else _packed(line) if values else _sound(line))
        begin += len(text) + 1
    return lines


def _read_at_once(texts: list[bytes]) -> list[Any]:
    if not any(b"\\u" in text or may_be_deep(text) for text in texts):
        with suppress(ValueError):  # all at once, which takes half of the time
            found: list[Any] = json.loads(f"[{b','.join(texts).decode()}]")
            if len(found) == len(texts):
                return found
    return [parsed(text) for text in texts]


def _packed(line: Line) -> Line:
    from .series import packed

    return packed(line) if line.get("kind") == "steps" else _sound(line)


def _steps_of(path: Path, lines: list[Line], values: bool) -> tuple[dict[str, Series], int]:
    """The values of the steps, if they are wanted, and the last step that has one."""
    if not values:
        return {}, _last_step(path, lines)
    from .series import series_of

    steps = series_of(lines)
    return steps, max((int(series.step[-1]) for series in steps.values() if len(series)), default=0)


def _last_step(path: Path, lines: list[Line]) -> int:
    """Of lines that hold, the last step that has a value; of those that were not read, as few as need be are read."""
    for line in reversed(lines):
        if line.get("kind") not in ("step", "steps"):
            continue
        if "begin" in line:
            line = parsed(next(lines_of(path, line["begin"]), b"")) or {}
        first, columns = line.get("first", line.get("step")), line.get("values")
        if not is_count(first):
            continue
        lists = [c for c in columns.values() if isinstance(c, list)] if isinstance(columns, dict) else [[0]]
        if places := [place for column in lists for place, value in enumerate(column) if value is not None]:
            return first + max(places)
    return 0


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
            sound |= {name: value} if is_count(value) else {}
        elif name == "kind" or is_number(value) or (line.get("kind") != "row" and name not in ("lr", "time")):
            sound[name] = value
    return sound


def _numbers(table: Line) -> Line:
    sound = {k: _NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in table.items()}
    return {name: value for name, value in sound.items() if isinstance(value, bool) or is_number(value)}


def _rows(lines: Iterable[Line]) -> list[Line]:
    """Of two rows with one number the later."""
    rows = {line["number"]: line for line in lines if line.get("kind") == "row" and "number" in line}
    return [rows[number] for number in sorted(rows)]


def _started(folder: Path) -> list[Line]:
    try:
        attempts = read_json(folder / RUN)["attempts"]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [attempt for attempt in attempts if isinstance(attempt, dict)] if isinstance(attempts, list) else []
