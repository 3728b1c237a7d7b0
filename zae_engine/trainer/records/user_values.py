"""Values of the user's own, given to `Trainer.log` anywhere: kept with their step until they are written down."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ...logs.history_file import FOLDER_OF_PICTURES, Line
from ..nested_values import is_scalar, snapshot
from ..warn import warn
from .images import encoded, is_picture
from .to_host import read

OWN = "own/"  # in front of a name that is the trainer's
_TAKEN = ("epoch", "kind", "lr", "samples/s", "step", "time", "waiting for data")
_ACCEPTED = "give numbers, texts, and pictures (arrays, images of PIL, figures of matplotlib, paths)"
_LIGHTNING = (
    *("prog_bar", "logger", "on_step", "on_epoch", "reduce_fx", "enable_graph", "sync_dist", "sync_dist_group"),
    *("add_dataloader_idx", "batch_size", "metric_attribute", "rank_zero_only"),
)


@dataclass
class _Step:
    """What was logged at one step."""

    epoch: int
    time: float
    numbers: dict[str, tuple[str, list[Any]]] = field(default_factory=dict)  # of the batches of what, and their values
    texts: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, tuple[str, bytes]] = field(default_factory=dict)


class OwnValues:
    """Takes values as they come, and gives them as lines of ``history.jsonl``, one a step.

    Of several values of one name at one step, those of a step's calls (micro-batches, the batches of a validation) are
    averaged; elsewhere the last one holds.

    Parameters
    ----------
    kept : bool
        Whether somebody writes them down. Else they are looked at, and forgotten.
    """

    def __init__(self, kept: bool) -> None:
        self._kept, self._heard = kept, True
        self._steps: dict[int, _Step] = {}
        self._of_training: set[str] = set()
        self._kinds: dict[str, str] = {}
        self._said: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._steps)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, nothing is taken: what an inference or a rehearsal computes is no value of the run."""
        before, self._heard = self._heard, False
        try:
            yield
        finally:
            self._heard = before

    def take(self, given: Mapping[str, Any], step: int, epoch: int, batch_of: str, shared: bool) -> None:
        """Take values of one step.

        Parameters
        ----------
        given : mapping
            As `named` has it.
        step, epoch : int
            To which they belong.
        batch_of : str
            ``'train'`` or ``'test'`` within a step; else empty.
        shared : bool
            Whether training and evaluation have one step, so that their values have one name.
        """
        if not self._heard:
            return
        for name, value in given.items():
            if isinstance(value, Mapping):
                self.take({f"{name}/{inner}": each for inner, each in value.items()}, step, epoch, batch_of, shared)
            elif isinstance(name, str) and name.strip():
                self._take_one(self._name(_clean(name), batch_of, shared), value, (step, epoch), batch_of)
            else:
                self._say(repr(name), f"trainer.log got the name {name!r}, which is left out; names are texts")

    def named(self, values: Any, value: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `Trainer.log` was given, by name: a mapping, or a name and a value as Lightning has it."""
        for option in options:
            if option not in _LIGHTNING:
                raise TypeError(f"log() got an unexpected option {option!r}; write log({{'name': value}})")
            self._say(
                option,
                f"{option}= is an option of Lightning's log() and does nothing here; what train_step and test_step"
                " return is shown, and averaged over the epoch and over the processes",
            )
        if isinstance(values, str):
            return {values: value}
        if isinstance(values, Mapping):
            return values
        kind = type(values).__name__
        self._say("what", f"trainer.log got a {kind}, which is left out; write trainer.log({{'name': value}})")
        return {}

    def lines(self, last: int) -> tuple[list[Line], list[tuple[str, bytes]]]:
        """Give what belongs to steps up to `last`, and forget it: lines, and pictures by their path in the folder."""
        steps = [step for step in sorted(self._steps) if step <= last]
        taken = {step: self._steps.pop(step) for step in steps}
        means = iter(_means([values for own in taken.values() for _, values in own.numbers.values()]))
        lines, files = list[Line](), list[tuple[str, bytes]]()
        for step, own in taken.items():
            line: Line = {"kind": "logged", "step": step, "epoch": own.epoch, "time": own.time}
            line["values"] = {name: next(means) for name in own.numbers}
            pictures = {name: _file(name, step, *picture) for name, picture in own.pictures.items()}
            if own.texts:
                line["texts"] = own.texts
            if pictures:
                line["pictures"] = {name: path for name, (path, _) in pictures.items()}
            lines.append(line)
            files += pictures.values()
        return lines, files

    def forget(self) -> None:
        """Drop all that was taken and not given yet: its steps are done again, or never."""
        self._steps.clear()

    def _name(self, name: str, batch_of: str, shared: bool) -> str:
        if batch_of == "train":
            self._of_training.add(name)
        if name in _TAKEN or name.startswith(("_", "train/", "test/", OWN)):
            self._say(
                name,
                f"trainer.log: the name {name!r} is one of the trainer's own, so the value is kept as {OWN + name!r};"
                " give it another name",
            )
            return OWN + name
        if batch_of == "test" and (shared or name in self._of_training):
            return f"{OWN}test/{name}"  # so that the two are not mixed
        return name

    def _take_one(self, name: str, value: Any, place: tuple[int, int], batch_of: str) -> None:
        try:
            number = _number(value)
            text = _clean(value) if isinstance(value, str) and not is_picture(value) else None
            pictured = number is None and text is None and is_picture(value)
            picture = encoded(value) if pictured and self._kept else None
        except Exception as error:  # what a figure, a file or a number of the user's is wrong with ends no training
            self._say(name, f"trainer.log leaves {name!r} out: {error}")
            return
        if number is None and text is None and not pictured:
            self._say(name, f"trainer.log leaves {name!r} out, a {type(value).__name__}; {_meant(value)}")
            return
        kind = "picture" if pictured else "text" if number is None else "number"
        if self._kinds.setdefault(name, kind) != kind:
            self._say(name, f"trainer.log leaves {name!r} out, a {kind}: before, it was a {self._kinds[name]}")
            return
        if not self._kept:
            return
        own = self._steps.setdefault(place[0], _Step(place[1], time.time()))
        if number is not None:
            before, values = own.numbers.get(name, ("", []))
            if not (batch_of and batch_of == before):
                values = []  # the last one holds
            values.append(number)
            own.numbers[name] = (batch_of, values)
        elif text is not None:
            own.texts[name] = text
        elif picture is not None:
            own.pictures[name] = picture

    def _say(self, about: str, text: str) -> None:
        if about not in self._said:
            self._said.add(about)
            warn(text)


def _meant(value: Any) -> str:
    if all(callable(getattr(value, method, None)) for method in ("update", "compute", "reset")):
        return "give metric objects to the trainer: metrics={'acc': metric}"
    return _ACCEPTED


def _number(value: Any) -> Any:
    """A number as it is now, still on its device; None for what is none."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, Tensor):
        one = value.numel() == 1 and not value.is_complex()
        return snapshot(value.reshape(())) if one else None
    return float(value) if is_scalar(value) else None


def _means(columns: list[list[Any]]) -> Iterator[float]:
    """The mean of each column, with one copy from the device; of equal values that value."""
    flat = iter(read([value for column in columns for value in column]))
    for column in columns:
        values = [next(flat) for _ in column]
        yield values[0] if min(values) == max(values) else sum(values) / len(values)


def _file(name: str, step: int, suffix: str, content: bytes) -> tuple[str, bytes]:
    """Where a picture lies in the run's folder: a folder a name, a file a step."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60]
    if plain != name:
        plain += f"-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return f"{FOLDER_OF_PICTURES}/{plain}/{step:09d}{suffix}", content


def _clean(text: str) -> str:
    """A text that can be written: a lone surrogate cannot."""
    return text.encode("utf-8", "replace").decode()
