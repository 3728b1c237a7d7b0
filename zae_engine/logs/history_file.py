"""``history.jsonl``: what happened in a run, one JSON object a line, only ever appended to.

A line is of one ``kind``: ``attempt`` (the run was started, or gone on with), ``step`` (one optimizer step's values),
``row`` (one row of the history; of two with the same number the later one holds) or ``checkpoint``. A run that goes on
from a checkpoint appends an ``attempt`` whose ``after`` says which line of the file it follows, by its number: from 1,
0 for none. Those in between were of steps that are done again, or of another way on from an earlier checkpoint.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def read_history(path: str | os.PathLike[str]) -> list[Line]:
    """Read the lines that hold: of every step one, whatever happened in between.

    Parameters
    ----------
    path : path-like
        A run folder, or its ``history.jsonl``. No file has no lines; a line that a crash has cut is passed over.
    """
    path = Path(path)
    path = path / "history.jsonl" if path.is_dir() else path
    texts = path.read_bytes().split(b"\n") if path.is_file() else ()
    lines = [line for text in texts if (line := _parsed(text)) is not None]
    held, place = list[Line](), len(lines)
    while place:  # from the last one back, since a line of before that was passed over may hold again
        held.append(lines[place - 1])
        place = _before(lines[place - 1], place - 1)
    return held[::-1]


def _count(path: Path) -> int:
    """Whole lines of the file; of a million steps, only those that are not plainly whole are parsed."""
    count = 0
    for text in path.read_bytes().split(b"\n") if path.is_file() else ():
        flat = text.startswith(b'{"kind": "step", ') and text.endswith(b"}") and text.count(b"{") == 1
        ends = text.count(b'"') % 2 == 0 and b"\\" not in text  # and not in the middle of a name, as a cut one may
        count += bool(flat and ends) or _parsed(text) is not None
    return count


def _parsed(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _before(line: Mapping[str, Any], last: int) -> int:
    """The number of the line that a line follows: the last one, unless it says otherwise."""
    after = line.get("after") if line.get("kind") == "attempt" else last
    return after if isinstance(after, int) and 0 <= after <= last else last


class HistoryFile:
    """Appends to a run's ``history.jsonl``; whole lines or none, also when the disk is full.

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
        self.count = _count(path)
        self._waiting: list[bytes] = []

    def hold(self, lines: Sequence[Line]) -> None:
        """Keep lines, which the next `append` writes."""
        self._waiting += [json.dumps(_plain(line), ensure_ascii=False).encode() + b"\n" for line in lines]
        self.count += len(lines)

    def append(self, lines: Sequence[Line] = ()) -> None:
        """Write lines and flush them to the disk; those that cannot be written go with the next ones."""
        self.hold(lines)
        if not self._waiting:
            return
        with open(self.path, "ab") as file:
            end = file.tell()
            try:
                file.write((b"" if self._ends_a_line(end) else b"\n") + b"".join(self._waiting))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, end)
                raise
        self._waiting = []

    def _ends_a_line(self, end: int) -> bool:
        if not end:
            return True
        with open(self.path, "rb") as file:
            file.seek(end - 1)
            return file.read(1) == b"\n"


def _plain(value: Any) -> Any:
    """Numbers that JSON lacks become text, as everybody can read it."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
