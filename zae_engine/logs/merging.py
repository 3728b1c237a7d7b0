"""From the lines of ``history.jsonl`` to records: all that is known of a step in one piece, steps that only grow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .history_file import Line, held, parsed, read_history
from .logger import Record

_PLACES = ("epoch", "step", "lr", "seconds", "saving", "number", "kind")
_STEPS = b'{"kind": "steps"'


class Merger:
    """Puts points and rows of one step together; a record is whole when a later step, or the run's end, comes.

    Names: ``train/loss`` is the mean since the last record, ``train/loss_epoch`` the epoch's so far, ``train/acc`` a
    metric that only the epoch has; ``test/loss`` a validation's.

    Parameters
    ----------
    every_step : bool
        A record for each step, with its own values, from lines of kind ``step``.
    """

    def __init__(self, every_step: bool = False) -> None:
        self._open: Record | None = None
        self._of_steps: set[str] = set()
        self._every_step = every_step

    def add(self, line: Line) -> Record | None:
        """Take a line; return the record that it shows to be whole."""
        kind = line.get("kind")
        if kind == "end":
            return self._begin(None)
        if kind not in ("point", "row") and not (kind == "step" and self._every_step):
            return None
        values = {"point": self._of_point, "row": self._of_row}.get(kind, self._of_step)(line)
        step = int(line["step"])
        if self._open is not None and self._open.step == step:
            self._open.values.update(values)
            return None
        return self._begin(Record(step, float(line.get("time") or 0.0), values))

    def _begin(self, record: Record | None) -> Record | None:
        whole, self._open = self._open, record
        return whole

    def _of_step(self, line: Line) -> dict[str, float]:
        return self._trained({key: value for key, value in line.items() if key not in _PLACES})

    def _trained(self, means: dict[str, Any]) -> dict[str, float]:
        self._of_steps |= means.keys()
        return {f"train/{key}": value for key, value in _numbers(means).items()}

    def _of_point(self, line: Line) -> dict[str, float]:
        values = {} if self._every_step else self._trained(line.get("train") or {})
        seconds = line.get("seconds") or {}
        if whole := float(seconds.get("all") or 0.0):
            values["samples/s"] = float(line.get("samples") or 0) / whole
            values["waiting for data"] = float(seconds.get("data") or 0.0) / whole
        return {"epoch": float(line["epoch"]), "lr": float(line["lr"]), **values}

    def _of_row(self, line: Line) -> dict[str, float]:
        values = {"epoch": float(line["epoch"]), "lr": float(line.get("lr") or 0.0)}
        for name, value in _numbers({k: v for k, v in line.items() if k not in _PLACES}).items():
            split, _, key = name.partition("_")
            if split == "train":
                values[f"train/{key}_epoch" if key in self._of_steps else f"train/{key}"] = value
            else:
                values[f"test/{key}" if split == "test" else name] = value
        return values


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """As floats; "nan" and "inf" are how the file has what JSON lacks."""
    return {key: float(value) for key, value in values.items() if value is not None}


class Tail:
    """Reads a history file from its beginning, and then what is appended, as records.

    Parameters
    ----------
    path : Path
        The ``history.jsonl``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset, self._merger = 0, Merger()

    def read(self) -> Iterator[Record]:
        """The records that have become whole since the last time; only those that hold."""
        lines = self.lines()
        if any(line.get("kind") == "attempt" for line in lines) and self._offset:
            self._offset, self._merger = 0, Merger()  # it says which lines of before hold
            lines = self.lines()
        for line in held(lines):
            if (record := self._merger.add(line)) is not None:
                yield record

    def lines(self) -> list[Line]:
        """The new whole lines; the numbers of steps, which no record needs, unparsed."""
        if not self.path.is_file():
            return []
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            content = file.read()
        end = content.rfind(b"\n") + 1
        self._offset += end
        texts = content[:end].split(b"\n")
        lines = ({"kind": "steps"} if t.startswith(_STEPS) and t.endswith(b"}}") else parsed(t) for t in texts)
        return [line for line in lines if line is not None]


def records_of(path: Path, every_step: bool = False) -> list[Record]:
    """All records of a run folder, or of its ``history.jsonl``; of a run that broke off, the last one, too.

    Parameters
    ----------
    path : Path
    every_step : bool
        One for each step, in place of one for each point.
    """
    merger = Merger(every_step)
    if every_step:
        lines = read_history(path)
    else:  # of which the steps, most of the file, need not be read
        tail = Tail(path / "history.jsonl" if path.is_dir() else path)
        lines = held(tail.lines())
    return [record for line in (*lines, {"kind": "end"}) if (record := merger.add(line)) is not None]


def resumes_in(path: Path) -> list[int]:
    """The steps after which a run was gone on with, as its ``history.jsonl`` has it; the steps' values go unread."""
    lines = held(Tail(path).lines())
    return [int(line["step"]) for line in lines if line.get("kind") == "attempt" and line.get("after")]
