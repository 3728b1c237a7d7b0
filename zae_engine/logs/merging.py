"""From the lines of ``history.jsonl`` to records: all that is known of a step in one piece, steps that only grow."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import LONGEST, open_plain
from .history_file import FOLDER_OF_PICTURES, STEPS_A_LINE, SUFFIXES, Line, parsed, read_lines
from .loggers.logger import Record
from .outcome import number
from .step_means import StepMeans

_PLACES = ("epoch", "step", "lr", "seconds", "saving", "number", "kind")
_LARGEST = 1 << 53
_STEPS, _ATTEMPT = b'{"kind": "steps"', b'{"kind": "attempt"'
_WITH_ITEMS = re.compile(rb'\{"kind": "steps", "epoch": \d+, "first": (\d+), "items": ')  # of which means are made


class Merger:
    """Puts points and rows of one step together; a record is whole when a later step, or the run's end, comes.

    Names: ``train/loss`` is the mean since the last record, ``train/loss_epoch`` the epoch's so far, ``train/acc`` a
    metric that only the epoch has; ``test/loss`` a validation's.

    Parameters
    ----------
    every_step : bool
        A record for each step, with its own values, from lines of kind ``step``. Those have no time, which is 0 then.
    folder : Path
        The run's, in which its pictures are.

    Attributes
    ----------
    names : dict of str to str
        The name of each column of the rows so far.
    """

    def __init__(self, every_step: bool = False, folder: Path = Path()) -> None:
        self.names: dict[str, str] = {}
        self._folder = folder
        self._last = (0, 0)  # the place of the last whole record
        self._begins = 0.0  # the step that the file begins with
        self._open: Record | None = None
        self._has_row, self._saved = False, False  # of the open record
        self._time = 0.0
        self._of_steps: set[str] = set()
        self._every_step = every_step

    def add(self, line: Line) -> Record | None:
        """Take a line; return the record that it shows to be whole."""
        kind = line.get("kind")
        if kind != "step":  # which has no time of its own
            self._time = number(line.get("time")) or self._time
        if kind == "end":
            return self._end(line.get("status", "done"))
        if kind == "checkpoint":
            self._saved |= self._open is not None and self._open.step == line.get("step")
        if kind == "attempt" and not line.get("after"):
            self._begins = number(line.get("step"))
        if kind == "logged":
            return self._put(own_of(line, self._folder, self._time), False)
        if kind not in ("mean", "point", "row") and not (kind == "step" and self._every_step):
            return None
        step = line.get("step")
        if type(step) is not int or not 0 <= step < _LARGEST:
            return None  # nobody can tell where it belongs
        if kind == "row" and 0 < step <= self._begins:
            return None  # of another folder, from which this run has begun
        ways = {"mean": self._of_mean, "point": self._of_point, "row": self._of_row}
        values = ways.get(kind, self._of_step)(line)
        return self._put(Record(step, 0.0 if kind == "step" else self._time, values), kind == "row")

    def _put(self, found: Record | None, is_row: bool) -> Record | None:
        there = self._open
        if found is None:
            return None
        if there is not None and there.step == found.step:
            self._open = replace(
                there,
                time=there.time or found.time,
                values=there.values | found.values,
                texts=there.texts | found.texts,
                pictures=there.pictures | found.pictures,
            )
            self._has_row |= is_row
            return None
        whole = self._close()
        if found.step == self._last[0]:  # its record was whole, as at the end of a run, or it is of before all steps
            values = {name: value for name, value in found.values.items() if name != "epoch"}
            found = replace(found, values=values, part=self._last[1] + 1)
        self._open, self._has_row, self._saved = found, is_row, False
        return self._close() if found.part and not is_row else whole  # of what is logged late, nothing is to come

    def _close(self) -> Record | None:
        whole, self._open = self._open, None
        if whole is not None:
            self._last = whole.place
        return whole

    def _end(self, status: str) -> Record | None:
        """A run that is left at a checkpoint goes on there, and may begin with a validation of this very step."""
        if status != "done" and self._saved and not self._has_row:
            return None
        return self._close()

    def _of_step(self, line: Line) -> dict[str, float]:
        apart = line.get("values")  # before, they were among the line's own keys
        return self._trained(apart if isinstance(apart, dict) else {k: v for k, v in line.items() if k not in _PLACES})

    def _trained(self, means: dict[str, Any]) -> dict[str, float]:
        self._of_steps |= means.keys()
        return {f"train/{key}": value for key, value in _numbers(means).items()}

    def _of_mean(self, line: Line) -> dict[str, float]:
        return {"epoch": number(line.get("epoch")), **self._trained(_table(line.get("train")))}

    def _of_point(self, line: Line) -> dict[str, float]:
        values = {} if self._every_step else self._trained(_table(line.get("train")))
        seconds = _table(line.get("seconds"))
        if (whole := number(seconds.get("all"))) > 0:
            values["samples/s"] = number(line.get("samples")) / whole
            values["waiting for data"] = number(seconds.get("data")) / whole
        rates = {name: number(rate) for name, rate in line.items() if name == "lr" or name.startswith("lr/")}
        return {"epoch": number(line.get("epoch")), "lr": 0.0, **rates, **values}

    def _of_row(self, line: Line) -> dict[str, float]:
        values = {"epoch": number(line.get("epoch")), "lr": number(line.get("lr"))}
        for name, value in _numbers({k: v for k, v in line.items() if k not in _PLACES}).items():
            self.names[name] = self._name(name)
            values[self.names[name]] = value
        return values

    def _name(self, column: str) -> str:
        split, _, key = column.partition("_")
        if split == "train":
            return f"train/{key}_epoch" if key in self._of_steps else f"train/{key}"
        return f"test/{key}" if split == "test" else column


def own_of(line: Line, folder: Path, time: float) -> Record | None:
    """What the user has logged at one step; what is not of its kind is left out, for anybody may have written it."""
    step, epoch = line.get("step"), line.get("epoch")
    if type(step) is not int or not 0 <= step < _LARGEST:
        return None
    values, texts, pictures = (_table(line.get(key)) for key in ("values", "texts", "pictures"))
    where = {"epoch": epoch} if type(epoch) is int and abs(epoch) < _LARGEST else {}
    return Record(
        step,
        time,
        _numbers(values | where),
        {name: text for name, text in texts.items() if isinstance(text, str)},
        {name: place for name, text in pictures.items() if (place := picture_in(folder, text)) is not None},
    )


def picture_in(folder: Path, name: Any) -> Path | None:
    """A picture by its name in the run's folder; None for a name, or a link, that leads anywhere else."""
    parts = name.split("/") if isinstance(name, str) and "\\" not in name else []
    if len(parts) != 3 or parts[0] != FOLDER_OF_PICTURES or any(part in ("", ".", "..") for part in parts):
        return None
    path = folder.joinpath(*parts)
    links = any(place.is_symlink() for place in (path, *list(path.parents)[:2]))
    return None if links or not path.name.endswith(SUFFIXES) else path


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """As floats; "nan" and "inf" are how the file has what JSON lacks. What is no number is left out."""
    found = {key: _float(value) for key, value in values.items()}
    return {key: value for key, value in found.items() if value is not None}


def _float(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


class Tail:
    """Reads a history file from its beginning, and then what is appended, as records.

    Of a file of any length it holds a line at a time, so a logger that is slow does not fill the memory.

    Parameters
    ----------
    path : Path
        The ``history.jsonl``.
    after : int
        Steps that have been told before; see `StepMeans`.

    Attributes
    ----------
    stride : int
        How many steps a record is of; see `StepMeans`.
    """

    def __init__(self, path: Path, after: float = 0) -> None:
        self.path, self._after, self.stride = path, after, 1
        self._start_over([])

    def _start_over(self, holds: list[range]) -> None:
        self._offset, self._number, self._merger = 0, 0, Merger(folder=self.path.parent)
        self._holds, self._known = holds, holds[-1].stop if holds else 0
        self._means = StepMeans(self._after)

    def read(self) -> Iterator[Record]:
        """The records that have become whole since the last time; only those that hold."""
        for line in self.lines():
            self._means.stride = self.stride
            for each in self._means.split(line):
                if (record := self._merger.add(each)) is not None:
                    yield record
                    self._means.stride = self.stride

    @property
    def names(self) -> dict[str, str]:
        """By column of the history's rows, the name in the records, as far as rows were read."""
        return self._merger.names

    def rest(self) -> Iterator[Record]:
        """The record that may not be whole yet."""
        for each in self._means.split({"kind": "end"}):
            if (record := self._merger.add(each)) is not None:
                yield record

    def lines(self) -> Iterator[Line]:
        """The new lines that hold; the numbers of steps that no record needs, unparsed."""
        if not self.path.is_file():
            return
        with open_plain(self.path) as file:
            end = os.fstat(file.fileno()).st_size  # what is appended meanwhile comes the next time
            if any(text.startswith(_ATTEMPT) for text in _texts(file, self._offset, end)):
                self._start_over(_ranges(map(_line, _texts(file, 0, end))))
            for text in _texts(file, self._offset, end):
                self._offset += len(text)
                if (line := _line(text, self._after)) is not None:
                    self._number += 1
                    if self._number >= self._known or any(self._number in holds for holds in self._holds):
                        yield line


def _texts(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """The whole lines of a stretch of a file; the last one may be being written."""
    file.seek(begin)
    while begin < end and (text := file.readline(LONGEST)).endswith(b"\n"):
        begin += len(text)
        yield text


def _line(text: bytes, after: float = math.inf) -> Line | None:
    if not (text.startswith(_STEPS) and text.endswith(b"}}\n")):
        return parsed(text)
    found = _WITH_ITEMS.match(text)
    return {"kind": "steps"} if found is None or int(found[1]) + STEPS_A_LINE <= after else parsed(text)


def _ranges(lines: Iterator[Line | None]) -> list[range]:
    """The numbers of the lines that hold, as `held` finds them, of a file that is not kept in memory."""
    count, attempts = 0, list[tuple[int, Any]]()
    for line in lines:
        count += line is not None
        if line is not None and line.get("kind") == "attempt":
            attempts.append((count, line.get("after")))
    holds, last = list[range](), count
    for place, after in reversed(attempts):
        if place <= last:
            holds.append(range(place, last + 1))
            last = after if isinstance(after, int) and 0 <= after < place else place - 1
    return [range(1, last + 1), *reversed(holds)]


def records_of(path: Path, every_step: bool = False, after: int = 0) -> list[Record]:
    """All records of a run folder, or of its ``history.jsonl``; of a run that broke off, the last one, too.

    Parameters
    ----------
    path : Path
    every_step : bool
        One for each step, however many, in place of those that a logger gets. Its time lies between those of the points
        around it.
    after : int
        Steps that a logger has: none of its records goes beyond.
    """
    path = path / "history.jsonl" if path.is_dir() else path
    if not every_step:
        tail = Tail(path, after)
        return [*tail.read(), *tail.rest()]
    # What the user has logged stands behind the steps that were taken with it, and belongs to its own.
    merger, lines = Merger(every_step, path.parent), sorted(read_lines(path), key=_step_of)
    records = [record for line in (*lines, {"kind": "end"}) if (record := merger.add(line)) is not None]
    marks = [line for line in lines if line.get("kind") != "step" and _are_numbers(line.get("time"), line.get("step"))]
    return _timed(records, marks)


def _are_numbers(*values: Any) -> bool:
    return all(type(value) in (int, float) and abs(value) < _LARGEST for value in values)


def _timed(records: list[Record], marks: list[Line]) -> list[Record]:
    """Give those that have no time one that lies between those of lines that have."""
    if not marks:
        return records
    times = np.interp([r.step for r in records], [m["step"] for m in marks], [m["time"] for m in marks])
    return [r if r.time else replace(r, time=float(time)) for r, time in zip(records, times, strict=True)]


def _step_of(line: Line) -> float:
    step = line.get("step")
    return step if type(step) is int else math.inf
