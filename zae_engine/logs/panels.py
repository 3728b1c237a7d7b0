"""Curves made ready to be drawn: which panel a column belongs to, smoothing, and few points of very many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TITLES = {"lr": "learning rate", "grad_norm": "gradient norm"}
NOT_DRAWN = ("kind", "number", "epoch", "step", "time", "seconds", "saving")
_SMOOTH = 30  # of fewer values there is nothing to smooth


def part_of(name: str, names: Mapping[str, Any] | Sequence[str]) -> tuple[str, str]:
    """Quantity and curve: ``test_acc`` is ``('acc', 'test')``; of a validation set x, ``('acc', 'test x')``.

    Parameters
    ----------
    name : str
        A column of the rows; ``lr`` is ``('lr', '')``, ``lr/head`` is ``('lr', 'head')``.
    names : mapping or sequence of str
        All columns, from which the names of validation sets are told.
    """
    return _part(name, names, set(sets_of(names)))


def parts_of(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """As `part_of`, of all columns that are drawn; of ten thousand in no time."""
    known = dict.fromkeys(names)
    sets = set(sets_of(known))
    return {name: _part(name, known, sets) for name in known if name not in NOT_DRAWN}


def _part(name: str, names: Mapping[str, Any] | Sequence[str], sets: set[str]) -> tuple[str, str]:
    if name.startswith("lr/"):  # of one group of the optimizer
        return "lr", name[3:]
    split, _, quantity = name.partition("_")
    if split not in ("train", "test") or not quantity:
        return name, ""
    if split == "test" and sets and f"train_{quantity}" not in names:
        ends = [place for place, sign in enumerate(quantity) if sign == "_"]
        for end in reversed(ends):  # the longest first
            if quantity[:end] in sets:
                return quantity[end + 1 :], f"test {quantity[:end]}"
    return quantity, split


def sets_of(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Names of validation sets, the longest first: each has a loss beside the pooled one."""
    tested = dict.fromkeys(name[5:] for name in names if name.startswith("test_"))
    found = [q[:-5] for q in tested if q.endswith("_loss") and "loss" in tested and f"train_{q}" not in names]
    return sorted(found, key=len, reverse=True)


def window_of(count: int) -> int:
    """How many values `smoothed` takes together: about a fiftieth, an odd number; 1 if they stay as they are."""
    return 1 if count < _SMOOTH else 2 * max(2, count // 100) + 1


def smoothed(values: Floats) -> Floats:
    """The centred mean over `window_of` values, taken twice, so that its edges leave no trace; gaps stay gaps.

    Parameters
    ----------
    values : ndarray, shape (n,)
        What is not finite is in no mean.
    """
    half = window_of(len(values)) // 2
    finite = np.isfinite(values)
    if not half:
        return np.where(finite, values, math.nan)
    for _ in range(2):
        values = _mean(np.where(finite, values, 0.0), finite.astype(float), half)
    return np.where(finite, values, math.nan)


def _mean(values: Floats, weights: Floats, half: int) -> Floats:
    places = np.arange(len(values))
    first, end = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    sums, counts = (np.append(0.0, np.cumsum(column)) for column in (values * weights, weights))
    return np.asarray((sums[end] - sums[first]) / np.maximum(counts[end] - counts[first], 1.0))


def thinned(x: NDArray[Any], y: Floats, buckets: int = 800) -> tuple[NDArray[Any], Floats]:
    """At most two points a bucket of neighbours, its least and its greatest, so that no spike is lost.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        With a NaN in `y` for a gap; infinities become gaps. A bucket that has no finite value stays a gap.
    buckets : int
        Curves of up to twice as many points are left as they are.
    """
    y = np.where(np.isfinite(y), y, math.nan)
    if len(x) <= 2 * buckets:
        return x, y
    size = -(-len(x) // buckets)
    spare = -len(x) % size
    padded = np.append(y, np.full(spare, math.nan)).reshape(-1, size)
    low, high = (np.where(np.isnan(padded), end, padded) for end in (math.inf, -math.inf))
    starts = np.arange(len(padded)) * size
    kept = np.concatenate([[0, len(x) - 1], low.argmin(axis=1) + starts, high.argmax(axis=1) + starts])
    kept = np.unique(kept[kept < len(x)])
    return x[kept], y[kept]
