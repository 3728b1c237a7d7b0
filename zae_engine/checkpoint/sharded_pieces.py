"""Tensors whose parts lie in several safetensors files: each part by its place in the whole, read wherever needed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import replacing
from .errors import CheckpointError

FORMAT = 1


@dataclass(frozen=True)
class Piece:
    """Where a part of a tensor belongs.

    Attributes
    ----------
    shape : tuple of int
        The whole tensor's.
    offset : tuple of int
        The first index of the part in each dimension.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]


@dataclass(frozen=True)
class _Stored(Piece):
    """A part in a file."""

    size: tuple[int, ...]
    dtype: torch.dtype
    file: Any


def local_piece(tensor: Any, process: int) -> tuple[Tensor, Piece] | None:
    """What this process is to write of a tensor, and where it belongs; None for nothing.

    Of what several processes hold, the first writes it; of a tensor that is not spread (no DTensor), process 0.
    """
    if not hasattr(tensor, "device_mesh"):
        return (tensor, Piece(tuple(tensor.shape), (0,) * tensor.ndim)) if process == 0 else None
    where = tensor.device_mesh.get_coordinate()
    if where is None or any(at for at, placed in zip(where, tensor.placements, strict=True) if placed.is_replicate()):
        return None
    local, offset = _local(tensor)
    return (local, Piece(tuple(tensor.shape), offset)) if local.numel() or not tensor.numel() else None


def write_pieces(path: Path, tensors: dict[str, Tensor], pieces: dict[str, Piece], index: int, count: int) -> None:
    """Write the parts that one process holds to a safetensors file, and to the disk itself.

    Parameters
    ----------
    path : Path
    tensors, pieces : dict by name
    index, count : int
        Which file of how many this is.

    Raises
    ------
    CheckpointError
        For a dtype that safetensors does not have.
    OSError, SafetensorError
        Of the disk.
    """
    layout = {name: [piece.shape, piece.offset] for name, piece in pieces.items()}
    head = {"format": FORMAT, "index": index, "count": count, "layout": layout}
    try:
        with replacing(path) as partial:
            save_file({k: _alone(v) for k, v in tensors.items()}, partial, {k: json.dumps(v) for k, v in head.items()})
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"safetensors cannot hold a tensor of this training: {error}") from error


class Pieces:
    """The tensors in all files of a folder, which stay open inside ``with``.

    Raises
    ------
    CheckpointError
        When it is entered, for a file that is missing or damaged, and for tensors that are not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored: dict[str, list[_Stored]] = {}
        self._files = ExitStack()

    def __enter__(self) -> Pieces:
        try:
            self._open()
        except BaseException:
            self._files.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's shape."""
        return self._stored[name][0].shape

    def dtype(self, name: str) -> torch.dtype:
        """The tensor's dtype."""
        return self._stored[name][0].dtype

    def whole(self, name: str) -> Tensor:
        """Read a whole tensor onto the CPU."""
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.fill(name, tensor)
        return tensor

    @torch.no_grad()
    def fill(self, name: str, tensor: Tensor) -> None:
        """Read into a tensor of the same shape what this process holds of it."""
        local, offset = _local(tensor) if hasattr(tensor, "device_mesh") else (tensor, (0,) * tensor.ndim)
        for stored in self._stored[name]:
            first = [max(a, b) for a, b in zip(offset, stored.offset, strict=True)]
            last = [
                min(a + m, b + n) for a, m, b, n in zip(offset, local.shape, stored.offset, stored.size, strict=True)
            ]
            if all(a < b for a, b in zip(first, last, strict=True)):
                there = tuple(slice(a - b, c - b) for a, b, c in zip(first, stored.offset, last, strict=True))
                here = tuple(slice(a - b, c - b) for a, b, c in zip(first, offset, last, strict=True))
                local[here].copy_(_read(stored.file, name, there))

    def _open(self) -> None:
        paths = sorted(path for path in self.folder.glob("*.safetensors") if path.is_file())
        if not paths:
            raise CheckpointError(f"{str(self.folder)!r} holds no parts of a training's state")
        count = {self._add(path) for path in paths}
        if count != {len(paths)}:
            said = " or ".join(str(n) for n in sorted(count))
            raise CheckpointError(f"{str(self.folder)!r} holds {len(paths)} parts, which say that there are {said}")
        for name, parts in self._stored.items():
            there = sum(math.prod(part.size) for part in parts)
            if len({(part.shape, part.dtype) for part in parts}) > 1 or there != math.prod(parts[0].shape):
                raise CheckpointError(f"the parts of {name!r} in {str(self.folder)!r} do not make up one tensor")

    def _add(self, path: Path) -> int:
        """Open a file and note its parts; return how many files it says that there are."""
        try:
            file = self._files.enter_context(safe_open(path, "pt"))
            head = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            if head["format"] != FORMAT:
                raise CheckpointError(f"{str(path)!r} is of format {head['format']!r}, and this version reads {FORMAT}")
            for name, (shape, offset) in head["layout"].items():
                part = file.get_slice(name)
                stored = _Stored(tuple(shape), tuple(offset), tuple(part.get_shape()), _empty(file, name).dtype, file)
                if not _inside(stored):
                    raise ValueError(f"{name!r} lies outside of its tensor")
                self._stored.setdefault(name, []).append(stored)
            return int(head["count"])
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{str(path)!r} is damaged or no part of a training's state: {error}") from error


def _local(tensor: Any) -> tuple[Tensor, tuple[int, ...]]:
    """The part of a DTensor that this process holds, and its place."""
    (chunk,) = tensor.__create_chunk_list__()  # torch's protocol for checkpoints, which knows uneven parts
    return tensor.to_local(), tuple(chunk.offsets)


def _inside(part: _Stored) -> bool:
    """Whether a part lies within its tensor."""
    ends = zip(part.offset, part.size, part.shape, strict=True)
    return all(offset >= 0 and offset + size <= whole for offset, size, whole in ends)


def _read(file: Any, name: str, place: tuple[slice, ...]) -> Tensor:
    """Read a part of what a file holds of a tensor."""
    part: Tensor = file.get_slice(name)[place] if place else file.get_tensor(name)  # a number cannot be sliced
    return part


def _empty(file: Any, name: str) -> Tensor:
    """As little as can be read of a tensor, which tells its dtype; the library has no public table of its names."""
    return _read(file, name, (slice(0, 0),) if file.get_slice(name).get_shape() else ())


def _alone(tensor: Tensor) -> Tensor:
    """A tensor on the CPU in memory of its own, which safetensors asks for."""
    tensor = tensor.detach().cpu()
    own = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if own else tensor.clone(memory_format=torch.contiguous_format)
