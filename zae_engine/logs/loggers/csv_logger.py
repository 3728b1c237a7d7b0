"""``metrics.csv`` in the run folder: one line a record, for a spreadsheet or ``pandas.read_csv``. Needs nothing."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TextIO

from ...files import appending, cut, encoded, open_plain, replacing, spreadsheet_text, write_all
from ..trust import is_inside, is_named, refuse_elsewhere
from .logger import Logger, Record, RunInfo
from .registry import check_settings

_FIRST = ("step", "time")
_MANY = 1000  # records that wait at most


class CSVLogger(Logger):
    """Columns ``step``, ``time`` (seconds since 1970) and one a value; an empty cell where a record lacks it.

    A value that comes later gets a column, for which the file is written anew beside itself and put in its place. An
    older file of that name, of another run, is renamed (``metrics-1.csv``).

    Parameters
    ----------
    path : path-like, optional
        Setting: the file; by default ``metrics.csv`` in the run folder.

    Attributes
    ----------
    client : Path
        The file.
    """

    name: ClassVar[str] = "csv"
    client: Path
    paths = frozenset({"path"})

    def check(self) -> None:
        """Refuse settings that there are not, and a path that is none."""
        check_settings(type(self), self.settings, ("path",))
        path = self.settings.get("path", "metrics.csv")
        if not isinstance(path, (str, os.PathLike)) or not str(path):
            raise TypeError(f"path={path!r} of the csv logger is no path; write path='metrics.csv'")

    def start(self, info: RunInfo) -> str:
        """Open the file; its id is its path, relative to the run folder where it is inside."""
        own = os.path.abspath(self.settings.get("path", info.folder / "metrics.csv"))
        self.client = path = info.folder / (info.id or own)
        if info.id is not None and not is_inside(path, info.folder) and not is_named(self.settings.get("path"), path):
            refuse_elsewhere(type(self), info.id, path, "path")
        path.parent.mkdir(parents=True, exist_ok=True)
        if info.id is None:
            _keep_aside(path)
        self._columns = _header(path)  # first, since what is no file of ours is not cut
        if info.id is not None:
            _drop_cut_line(path)
        self._waiting: list[Record] = []
        self._last, self._part = _last_place(path) if self._columns else (0, 0)
        return str(path.relative_to(info.folder)) if path.is_relative_to(info.folder) else str(path)

    def last_step(self) -> int | None:
        """The step of the file's last line."""
        return self._last

    def last_part(self) -> int | None:
        """How many lines of that step are before it."""
        return self._part

    def log(self, record: Record) -> None:
        """Keep one record for the next `flush`; one that is there already is passed over."""
        if record.place > (self._waiting[-1].place if self._waiting else (self._last, self._part)) and record.values:
            self._waiting.append(record)
        if len(self._waiting) >= _MANY:
            self.flush()

    def flush(self) -> None:
        """Write what waits, to the disk; all of it or nothing."""
        if not self._waiting:
            return
        names = dict.fromkeys(_column(name) for record in self._waiting for name in record.values)
        columns = list(dict.fromkeys((*self._columns, *(() if self._columns else _FIRST), *names)))
        if columns != self._columns:
            _write_anew(self.client, columns)
            self._columns = columns
        _append(self.client, self._columns, self._waiting)
        (self._last, self._part), self._waiting = self._waiting[-1].place, []

    def finish(self, status: str) -> None:
        """Write what waits."""
        self.flush()


def _row(record: Record) -> dict[str, Any]:
    values = {_column(name): value for name, value in record.values.items()}
    return {**values, "step": record.step, "time": record.time}


def _column(name: str) -> str:
    """A value's column; one that is called as a column of the record itself is kept apart from it."""
    return f"{name} (value)" if name in _FIRST else spreadsheet_text(name)


def _append(path: Path, columns: list[str], records: Iterable[Record]) -> None:
    with appending(path) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            write_all(file, encoded(_text(columns, map(_row, records))))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)  # a disk that was full may have room later: half a line must not be in between
            raise


def _text(columns: list[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue()


def _write_anew(path: Path, columns: list[str]) -> None:
    """Give the file further columns: written beside it, then put in its place, so that a crash loses nothing."""
    with replacing(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        if path.is_file():
            with _lines(path) as old:
                writer.writerows(csv.DictReader(old))


@contextmanager
def _lines(path: Path) -> Iterator[TextIO]:
    with open_plain(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        yield text


def _keep_aside(path: Path) -> None:
    if not path.exists():
        return
    number = 1
    while (aside := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    path.rename(aside)


def _tail(path: Path) -> tuple[int, bytes]:
    """Where the last part of the file starts, and that part: of a large file enough for two lines."""
    size = path.stat().st_size
    with open_plain(path) as file:
        start = file.seek(max(0, size - (1 << 20)))
        return start, file.read()


def _drop_cut_line(path: Path) -> None:
    """A crash may have cut the last line: no cell has a line's end in it, and the header is written whole."""
    if path.is_file():
        start, tail = _tail(path)
        cut(path, start + tail.rfind(b"\n") + 1)


def _header(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with _lines(path) as file:
        columns = next(csv.reader(file), [])
    if columns and columns[:2] != list(_FIRST):
        raise ValueError(
            f"{path} is no file of the csv logger: its first columns are {columns[:2]}, not {list(_FIRST)}"
        )
    return columns


def _last_place(path: Path) -> tuple[int, int]:
    steps = [line.partition(b",")[0] for line in _tail(path)[1].rstrip(b"\n").split(b"\n")]
    if not steps[-1].isdigit():  # the header alone
        return 0, 0
    return int(steps[-1]), steps.count(steps[-1]) - 1
