"""What differs between two checkpoints: which tensors and by how much, and which plain values."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import LARGE, read_bytes
from .compared_leaves import Leaves, Numbers, Stream, flat
from .documents import SUFFIXES, read_document, read_tensors
from .errors import CheckpointError
from .folder import Checkpoint, locate, problems_of
from .tensors import SAFETENSORS
from .weights import read_weights

_ORDER = ("model", "state", "process")


@dataclass(frozen=True)
class Difference:
    """One tensor or plain value that is not the same in both.

    Attributes
    ----------
    part : str
        The file that it is in, without ending: "model", "state", "process-0".
    name : str
        Its path in the nest, joined by "/".
    what : str
        In words.
    largest : float
        Largest absolute difference of a tensor's elements; infinite where one of two is nan or infinite.
    relative : float
        Largest difference relative to the larger of the two elements.
    count : int
        How many elements differ in at least a bit.
    size : int
        How many elements there are; 0 for a plain value, and for tensors that cannot be compared by element.
    """

    part: str
    name: str
    what: str
    largest: float = 0.0
    relative: float = 0.0
    count: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.part}: {self.name}: {self.what}"


def compare(one: Path, other: Path) -> list[Difference]:
    """Compare two checkpoints to the bit.

    Parameters
    ----------
    one, other : Path
        Checkpoints, run folders (the last of each is taken), or files of weights. Of a checkpoint and a file, the
        model is compared.

    Returns
    -------
    list of Difference
        The model first, then state and processes; tensors before plain values, the largest difference first.

    Raises
    ------
    CheckpointError
        For a path at which there is none, and for a damaged one.
    """
    parts = [read_parts(one), read_parts(other)]
    if one.is_file() or other.is_file():
        parts = [{name: leaves for name, leaves in found.items() if name == "model"} for found in parts]
    first, second = parts
    found = [
        difference
        for part in first.keys() | second.keys()
        for difference in _compare(part, first.get(part, {}), second.get(part, {}))
    ]
    return sorted(found, key=_rank)


def read_parts(path: Path) -> dict[str, Leaves]:
    """Read a checkpoint, the last one of a run folder, or a file of weights, by part.

    Returns
    -------
    dict of str to dict
        Of each part its tensors and plain values by their path in the nest. A file that is neither of tensors nor
        JSON is one value: its size and checksum.

    Raises
    ------
    CheckpointError
        For a path at which there is none, and for a damaged one.
    """
    if path.is_file():
        return {"model": flat(_weights(path))}
    checkpoint = pick(path)
    if problems := problems_of(checkpoint.path):
        raise CheckpointError(f"{str(checkpoint.path)!r} is damaged: {'; '.join(problems)}")
    documents = {name.removesuffix(".json") for name in checkpoint.files if name.endswith(".json")}
    return {
        _part(name): flat(_read(checkpoint, name))
        for name in sorted(checkpoint.files)
        if name.endswith(".json") or _part(name) not in documents
    }


def pick(path: Path) -> Checkpoint:
    """The checkpoint at a path, or the last one of a run folder, damaged or not.

    Raises
    ------
    CheckpointError
        When there is none.
    """
    found = locate(path)
    if isinstance(found, Checkpoint):
        return found
    if not found:
        raise CheckpointError(f"{str(path)!r} has no checkpoint yet")
    return found[-1]


def difference_of(one: Tensor, other: Tensor, part: str = "", name: str = "") -> Difference | None:
    """Compare two tensors to the bit: nan is the same as itself, and -0.0 is not 0.0; None when they are the same."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return Difference(part, name, f"{describe(one)} -> {describe(other)}", largest=math.inf)
    changed = (_bits(one) != _bits(other)).any(1)
    count = int(changed.sum())
    if not count:
        return None
    a, b = _numbers(one, changed), _numbers(other, changed)
    gap = (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    scale = torch.maximum(a.abs(), b.abs()).nan_to_num(nan=0.0)
    relative = torch.where(scale.isfinite() & (scale > 0), gap / scale, gap)
    largest, most = gap.max().item(), relative.max().item()
    what = f"{count} of {one.numel()} differ, by at most {largest:.3g} (relative {most:.3g})"
    return Difference(part, name, what, largest, most, count, one.numel())


def describe(value: Any) -> str:
    """A tensor's dtype and shape, or a plain value, shortened."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    try:
        return reprlib.repr(value)
    except ValueError:  # of an integer of more digits than Python writes
        return f"an {type(value).__name__} that is too long to be shown"


def _weights(path: Path) -> dict[str, Any]:
    if path.suffix in SAFETENSORS:
        return dict(read_tensors(path))
    try:
        return dict(read_weights(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _read(checkpoint: Checkpoint, name: str) -> Any:
    path = checkpoint.file(name)
    if path.suffix in SUFFIXES:
        return read_tensors(path)
    if path.suffix != ".json":
        return {"file": f"{checkpoint.files[name]['size']} bytes, SHA-256 {checkpoint.files[name]['sha256']}"}
    try:
        value = json.loads(read_bytes(path, LARGE, follow=True))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} is no JSON: {error}") from error
    if isinstance(value, dict) and value.keys() >= {"state", "tensors"}:
        return read_document(path.parent, path.stem)
    return value


def _part(name: str) -> str:
    return str(Path(name).with_suffix("").as_posix()) if Path(name).suffix in (*SUFFIXES, ".json") else name


def _compare(part: str, first: Leaves, second: Leaves) -> Iterator[Difference]:
    for path in [*first, *(path for path in second if path not in first)]:
        name = "/".join(map(str, path))
        if path not in second:
            yield Difference(part, name, f"only in the first: {describe(first[path])}", largest=math.inf)
        elif path not in first:
            yield Difference(part, name, f"only in the second: {describe(second[path])}", largest=math.inf)
        elif found := _compare_leaf(first[path], second[path], part, name):
            yield found


def _compare_leaf(one: Any, other: Any, part: str, name: str) -> Difference | None:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return difference_of(one, other, part, name)
    if isinstance(one, Stream) and isinstance(other, Stream):
        return None if one == other else Difference(part, name, "the random stream is at another place")
    if isinstance(one, Numbers) and isinstance(other, Numbers):
        return None if repr(one.values) == repr(other.values) else Difference(part, name, one.against(other))
    same = type(one) is type(other) and (
        repr(one) == repr(other) if isinstance(one, (float, complex)) else one == other
    )
    return None if same else Difference(part, name, f"{describe(one)} -> {describe(other)}")


def _bits(tensor: Tensor) -> Tensor:
    """A row of bytes for each element."""
    return tensor.contiguous().reshape(-1, 1).view(torch.uint8).reshape(tensor.numel(), tensor.element_size())


def _numbers(tensor: Tensor, chosen: Tensor) -> Tensor:
    """The chosen elements in float64, in which integers above 2**53 are rounded."""
    flat = _bits(tensor)[chosen].reshape(-1).view(tensor.dtype)  # torch 2.9 cannot choose among all dtypes
    return (torch.view_as_real(flat) if flat.is_complex() else flat).double()


def _rank(difference: Difference) -> tuple[Any, ...]:
    order = next((i for i, part in enumerate(_ORDER) if difference.part.startswith(part)), len(_ORDER))
    return order, difference.part, -difference.largest, -difference.count, difference.name
