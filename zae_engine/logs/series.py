"""The values of every step of a run, by name, as arrays: eight bytes a number, whatever the history's length."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .history_file import Line
from .outcome import is_count, is_number

_OF_LINE = ("kind", "epoch", "first", "time")
_OF_STEP = ("kind", "step", "epoch")


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


def packed(line: Line) -> Line:
    """A line ``steps`` with a `Series` in place of each list of numbers, so that a file of any length can be held."""
    first, values = line.get("first"), line.get("values")
    own = {name: line[name] for name in _OF_LINE if name in line}
    if not is_count(first) or not isinstance(values, dict):
        return own | {"values": {}}
    columns = {name: column for name, column in values.items() if isinstance(column, list)}
    return own | {"values": {name: _packed(first, column) for name, column in columns.items()}}


def _packed(first: int, column: list[Any]) -> Series:
    places = np.arange(first, first + len(column), dtype=np.int64)
    if None in column:  # steps that have no such value
        there = [value is not None for value in column]
        places, column = places[there], [value for value in column if value is not None]
    return Series(places, _floats(column))


def series_of(lines: Iterable[Line]) -> dict[str, Series]:
    """Values by name, of lines ``steps`` (many steps each, `packed`) and ``step`` (one each, of older versions)."""
    parts = defaultdict[str, list[Series]](list)
    steps, values = defaultdict[str, list[int]](list), defaultdict[str, list[Any]](list)
    for line in lines:
        if line.get("kind") == "steps":
            for name, series in line["values"].items():
                parts[name].append(series)
        elif line.get("kind") == "step" and is_count(line.get("step")):
            for name in [name for name in line if name not in _OF_STEP]:
                steps[name].append(line["step"])
                values[name].append(line[name])
    for name, places in steps.items():
        there = [value is not None for value in values[name]]
        known = [value for value in values[name] if value is not None]
        parts[name].insert(0, Series(np.array(places, np.int64)[there], _floats(known)))
    return {name: _joined(each) for name, each in parts.items()}


def _joined(parts: list[Series]) -> Series:
    step, value = (np.concatenate(arrays) for arrays in zip(*((part.step, part.value) for part in parts), strict=True))
    if len(step) and (step[1:] < step[:-1]).any():  # an older version has gone on with the run of a newer one
        order = step.argsort(kind="stable")
        step, value = step[order], value[order]
    return Series(step, value)


def _floats(values: list[Any]) -> NDArray[np.float64]:
    try:
        return np.array(values, np.float64)  # "nan" and "inf" too
    except (TypeError, ValueError, OverflowError):
        return np.array([value if is_number(value) else math.nan for value in values], np.float64)
