"""``history.jsonl``: what happened in a run, one JSON object a line, only ever appended to.

A line is of one ``kind``: ``attempt`` (the run was started, or gone on with), ``steps`` (the values of some optimizer
steps, one after the other; where each of them, or a mean of some, is a logger's record, with the ``items`` of each),
``point`` (the means since the last one), ``row`` (one row of the history; of two with the
same number the later one holds), ``logged`` (the user's own values of one step), ``checkpoint`` or ``end``. A run that
goes on from a checkpoint appends an ``attempt`` whose ``after`` says which line of the file it follows, by its number:
from 1, 0 for none. Those in between were of steps that are done again, or of another way on from an earlier checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from ..files import appending, encoded, folder_in, lines_of, parse_json, write_all, write_bytes

Line = dict[str, Any]
_ATTEMPT = b'{"kind": "attempt"'
_OWN = ("kind", "step", "epoch", "time")  # what a line of one step says itself
FOLDER_OF_PICTURES = "pictures"  # in the run's folder
STEPS_A_LINE = 1000  # at most
SUFFIXES = (".gif", ".jpeg", ".jpg", ".png", ".webp")  # of their names


def read_history(path: str | os.PathLike[str]) -> list[Line]:
    """Read the lines that hold: of every step one, of kind ``step``, whatever happened in between.

    A value that is called as one of the line's own keys (``kind``, ``step``, ``epoch``, ``time``) is there as
    ``train_kind``, as its mean is in the rows.

    Parameters
    ----------
    path : path-like
        A run folder, or its ``history.jsonl``. No file has no lines; a line that a crash has cut is passed over.
    """
    return [_flat(line) for line in read_lines(path)]


def read_lines(path: str | os.PathLike[str]) -> list[Line]:
    """As `read_history`, but the values of a step are apart from its line's own keys, as ``values``."""
    lines = list[Line]()
    for line in held([line for text in _texts(Path(path)) if (line := parsed(text)) is not None]):
        lines += one_each(line) if line.get("kind") == "steps" else [line]
    return lines


def _flat(line: Line) -> Line:
    if line.get("kind") != "step" or not isinstance(values := line.get("values"), dict):
        return line
    own = {key: value for key, value in line.items() if key != "values"}
    return own | {f"train_{key}" if key in _OWN else key: value for key, value in values.items()}


def held(lines: Sequence[Line]) -> list[Line]:
    """Of all whole lines of a file those that hold."""
    kept, place = list[Line](), len(lines)
    while place:  # from the last one back, since a line of before that was passed over may hold again
        kept.append(lines[place - 1])
        place = _before(lines[place - 1], place - 1)
    return kept[::-1]


def one_each(line: Line) -> Iterator[Line]:
    """A line of kind ``steps`` as one of kind ``step`` for each of them, with the ``values`` that the step has."""
    values, first = line.get("values"), line.get("first", 1)
    if not isinstance(values, dict) or type(first) is not int:
        return
    columns = {key: column for key, column in values.items() if isinstance(column, list)}
    for place in range(max(map(len, columns.values()), default=0)):
        there = {key: column[place] for key, column in columns.items() if place < len(column)}
        own = {key: value for key, value in there.items() if value is not None}
        yield {"kind": "step", "step": first + place, "epoch": line.get("epoch"), "values": own}


def _texts(path: Path) -> Iterable[bytes]:
    path = path / "history.jsonl" if path.is_dir() else path
    return lines_of(path) if os.path.lexists(path) else ()


def _counted(path: Path) -> tuple[int, list[tuple[int, Line]]]:
    """Whole lines of the file, and its attempts by their numbers; all others are parsed only where a crash may be."""
    count, attempts = 0, list[tuple[int, Line]]()
    for text in _texts(path):
        if text.startswith(_ATTEMPT) or not is_whole(text):
            if (line := parsed(text)) is None:
                continue
            if line.get("kind") == "attempt":
                attempts.append((count + 1, line))
        count += 1
    return count, attempts


def is_whole(text: bytes) -> bool:
    """Whether a line is plainly a whole one, told without parsing it: one that a crash has cut lacks a brace."""
    if (
        not (text.startswith(b'{"kind": "') and text.endswith(b"}") and text.isascii())
        or b"\\" in text
        or b"\0" in text
    ):
        return False
    pieces = text.split(b'"')
    outside = b"".join(pieces[::2])  # of names and texts, which may have braces in them
    return len(pieces) % 2 == 1 and outside.count(b"{") == outside.count(b"}")


def is_whole_steps(text: bytes) -> bool:
    """Whether it is one of kind ``steps``, which are most of the file."""
    return text.startswith(b'{"kind": "steps", ') and is_whole(text)


def parsed(text: bytes) -> Line | None:
    """One line of the file; None when it is not whole."""
    try:
        line = parse_json(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _before(line: Mapping[str, Any], last: int) -> int:
    """The number of the line that a line follows: the last one, unless it says otherwise."""
    after = line.get("after") if line.get("kind") == "attempt" else last
    return after if isinstance(after, int) and 0 <= after <= last else last


class HistoryFile:
    """Appends to a run's ``history.jsonl``; whole lines or none, also when the disk is full.

    Lines are put by the training, and written by whichever thread calls `write`, in the order in which they were put.

    Parameters
    ----------
    path : Path
        Made at the first line.

    Attributes
    ----------
    count : int
        Whole lines, those that wait to be written included; what a checkpoint remembers, to be gone on from.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count, self._attempts = _counted(path)
        self._waiting: list[Line] = []
        self._files: list[tuple[str, bytes]] = []
        self._writing = threading.Lock()

    def put(self, lines: Sequence[Line], files: Sequence[tuple[str, bytes]] = ()) -> int:
        """Keep lines for the next `write`, and the files that they name; return the number of the last line."""
        self._files.extend(files)
        self._waiting.extend(lines)
        for line in lines:
            self.count += 1
            if line.get("kind") == "attempt":
                self._attempts.append((self.count, line))
        return self.count

    @property
    def resumes(self) -> list[int]:
        """The steps after which the run was gone on with, as the lines that hold have it."""
        found, last = list[int](), self.count
        for place, line in reversed(self._attempts):
            if place <= last:
                last = _before(line, place - 1)
                found += [line["step"]] if line.get("after") and type(line.get("step")) is int else []
        return found[::-1]

    def write(self, flush: bool = False) -> None:
        """Write what waits, and with `flush` see to it that it is on the disk; what fails goes with the next one."""
        with self._writing:
            while self._files:  # before the lines, so that whoever reads one finds its picture
                _write_file(self.path.parent, *self._files[0])
                del self._files[0]
            waiting = len(self._waiting)  # more may come meanwhile
            if not waiting and not (flush and self.path.is_file()):
                return
            with appending(self.path) as file:  # without a buffer, which would write what has failed once more
                end = file.seek(0, os.SEEK_END)
                try:
                    write_all(file, self._content(file, waiting, end))
                    if flush:
                        os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
            del self._waiting[:waiting]

    @property
    def waiting(self) -> int:
        """Lines that are not in the file yet."""
        return len(self._waiting)

    def append(self, lines: Sequence[Line] = ()) -> None:
        """Put lines and write them to the disk."""
        self.put(lines)
        self.write(flush=True)

    def _content(self, file: FileIO, waiting: int, end: int) -> bytes:
        texts = [json.dumps(_plain(line), ensure_ascii=False) + "\n" for line in self._waiting[:waiting]]
        return (b"" if _ends_a_line(file, end) else b"\n") + encoded("".join(texts))


def _ends_a_line(file: FileIO, end: int) -> bool:
    if not end:
        return True
    file.seek(end - 1)
    return file.read(1) == b"\n"


def _write_file(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    for part in path.parent.relative_to(folder).parts:
        folder = folder_in(folder, part)
    write_bytes(path, content, sync=False)


def _plain(value: Any) -> Any:
    """Numbers that JSON lacks become text, as everybody can read it."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        if set(map(type, value)) == {float} and all(map(math.isfinite, value)):
            return value  # a column of steps, most of the file
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
