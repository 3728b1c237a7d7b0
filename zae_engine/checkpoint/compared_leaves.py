"""The leaves of a nest, as they are compared and shown; what belongs together, a random stream say, is one."""

from __future__ import annotations

import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Leaves = dict[tuple[Any, ...], Any]  # tensors and plain values by their path in the nest
_STREAMS = {"python", "numpy", "torch"}  # beside each other, the random streams of a process
_MANY = 20  # numbers; more of them in a list are one leaf


@dataclass(frozen=True)
class Stream:
    """Where a random stream is; two of them are compared as a whole, since there is nothing in between."""

    text: str

    def __repr__(self) -> str:
        return "state of a random stream"


@dataclass(frozen=True)
class Numbers:
    """A long list of numbers."""

    values: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"{len(self.values):,} numbers"

    def against(self, other: Numbers) -> str:
        """How they differ, in words."""
        if len(self.values) != len(other.values):
            return f"{self!r} -> {other!r}"
        count = sum(map(_differ, self.values, other.values))
        first = next(i for i, pair in enumerate(zip(self.values, other.values, strict=True)) if _differ(*pair))
        return (
            f"{count:,} of {self!r} differ, the first of them at {first}: {self.values[first]!r} -> "
            f"{other.values[first]!r}"
        )


def flat(tree: Any) -> Leaves:
    """Leaves by their path."""
    return dict(_leaves(tree))


def _differ(one: Any, other: Any) -> bool:
    return type(one) is not type(other) or repr(one) != repr(other)  # nan is itself, -0.0 is not 0.0


def _leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if (one := _as_one(tree)) is not None:
        yield path, one
        return
    items: Any = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if _is_list(tree) else ()
    if isinstance(tree, np.ndarray):
        tree = _array(tree)
    if not items or not len(tree):
        yield path, tree
    streams = isinstance(tree, Mapping) and tree.keys() >= _STREAMS
    for key, value in items:
        if streams:
            yield (*path, key), Stream(_text(value))
        else:
            yield from _leaves(value, (*path, key))


def _as_one(tree: Any) -> Stream | Numbers | None:
    """What stands for a whole part of the nest: the state of Python's random or of numpy's, a long list of numbers."""
    if isinstance(tree, Mapping) and "bit_generator" in tree and "state" in tree:
        return Stream(_text(tree))
    if isinstance(tree, (list, tuple)) and len(tree) == 3 and _is_list(tree[1]) and len(tree[1]) == 625:
        return Stream(_text(tree))
    if isinstance(tree, array.array) or (_is_list(tree) and len(tree) > _MANY):
        values = tuple(tree)
        return Numbers(values) if len(values) > _MANY and all(map(_is_number, values)) else None
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and value.bit_length() <= 64)  # longer: as a value


def _text(value: Any) -> str:
    """A state in full; Python writes integers of any length, but not as decimals."""
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{value.dtype} {value.tolist()}"
    if isinstance(value, Mapping):
        return str({str(key): _text(inner) for key, inner in value.items()})
    return str([_text(inner) for inner in value]) if isinstance(value, (list, tuple)) else repr(value)


def _array(array: np.ndarray[Any, Any]) -> Any:
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError:  # long doubles, foreign byte orders: compared as bytes
        return f"{array.dtype.str} {list(array.shape)} {array.tobytes().hex()}"


def _is_list(tree: Any) -> bool:
    return isinstance(tree, (list, tuple)) and not isinstance(tree, torch.Size)
