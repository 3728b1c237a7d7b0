"""Tensors of every kind as dense ones on the CPU, each for itself, and to and from safetensors files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import TensorSpec, safe_open, serialize_file
from safetensors.torch import save_file
from torch import Tensor

from .codec import RESERVED
from .errors import CheckpointError

SAFETENSORS = (".safetensors", ".safetensor")

_ODD, _SPARSE = "dtypes", "layouts"  # entries of the metadata: what is raw bytes of another dtype; what was sparse
_KEPT = {  # what safetensors 0.8 has itself
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.bfloat16, torch.float16, torch.float32, torch.float64),
    *(torch.complex64, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
}
_RAW = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.complex128, torch.complex32)}
_LAYOUTS = {f"sparse_{name}": getattr(torch, f"sparse_{name}") for name in ("coo", "csr", "csc", "bsr", "bsc")}
_LARGEST = 1 << 30  # bytes that a sparse tensor may take as a dense one


def independent(tensors: Mapping[str, Tensor], dense: bool = True) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own and no more of it than it shows.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Of any device and strides: views, cuts, expanded and overlapping ones. None is changed.
    dense : bool
        For safetensors, which has no other: sparse ones as dense ones.

    Raises
    ------
    CheckpointError
        For what has no numbers of its own (meta), is one part of a spread one, or no file of that kind can hold.
    """
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, given in tensors.items():
        _check(name, given, dense)
        tensor = given.detach().cpu()
        if tensor.layout != torch.strided:
            own[name] = tensor.to_dense().contiguous() if dense else tensor
            continue
        tensor = tensor.as_subclass(Tensor).resolve_conj().resolve_neg().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() > tensor.nbytes:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.untyped_storage().data_ptr())
        own[name] = tensor
    return own


def save_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors of any kind for ``safetensors.torch.load_file``, to a file that is there already.

    That shows the dtypes that the format lacks (complex128, complex32) as bytes, and sparse tensors as dense ones.
    """
    own = independent(tensors)
    odd = {name: [_name(t.dtype), list(t.shape)] for name, t in own.items() if t.dtype not in _KEPT}
    raw = {name: t.reshape(-1).view(torch.uint8) if name in odd else t for name, t in own.items()}
    sparse = {name: _layout(t) for name, t in tensors.items() if t.layout != torch.strided}
    more = {key: json.dumps(said) for key, said in ((_ODD, odd), (_SPARSE, sparse)) if said}
    _write(raw, path, {"format": "pt", **(metadata or {}), **more})


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """What ``safetensors.torch.save_file`` does with tensors that are `independent`.

    Which, of thousands of small ones, asks each again whether it shares memory, with the interpreter's lock held: five
    times as long as all the rest, while the training waits for that lock.
    """
    if sys.byteorder != "little":  # as the file is
        save_file(dict(tensors), path, metadata)
        return
    nowhere = torch.empty(1)  # for tensors without numbers, which have no address
    specs = {
        name: TensorSpec(
            dtype=_name(t.dtype), shape=list(t.shape), data_ptr=t.data_ptr() or nowhere.data_ptr(), data_len=t.nbytes
        )
        for name, t in tensors.items()
    }
    serialize_file(specs, path, metadata)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_safetensors` wrote, or anybody, onto the CPU; a damaged file raises anything."""
    with safe_open(path, framework="pt", device="cpu") as file:
        head = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    for name, (dtype, shape) in json.loads(head.get(_ODD, "{}")).items():
        # A copy: bytes may lie anywhere in the file, and complex numbers where the processor can take them at once.
        tensors[name] = tensors[name].clone().view(_RAW[dtype]).reshape(shape)
    for name, (layout, block, apart) in json.loads(head.get(_SPARSE, "{}")).items():
        tensors[name] = _sparse(tensors[name], layout, block, apart)
    return tensors


def as_laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor in the layout of another one: sparse or dense."""
    if tensor.layout == like.layout:
        return tensor
    dense = tensor.to_dense()
    return dense if like.layout == torch.strided else _sparse(dense, *_layout(like))


def _layout(tensor: Tensor) -> tuple[str, list[int] | None, int]:
    """A sparse layout's name, the size of its blocks, and how many of the last dimensions are dense in it."""
    blocks = tensor.layout in (torch.sparse_bsr, torch.sparse_bsc)
    block = list(tensor.values().shape[1:3]) if blocks else None
    return str(tensor.layout).removeprefix("torch."), block, tensor.dense_dim()


def _sparse(dense: Tensor, layout: str, block: list[int] | None, apart: int) -> Tensor:
    """A dense tensor in a layout as `_layout` tells it; an embedding's gradients have whole rows, say."""
    if layout == "sparse_coo":
        return dense.to_sparse(dense.ndim - apart)
    return dense.to_sparse(layout=_LAYOUTS[layout], blocksize=block and tuple(block), dense_dim=apart)


def _check(name: str, tensor: Tensor, dense: bool) -> None:
    if name == RESERVED:
        raise CheckpointError(f"no tensor can be named {RESERVED!r}, which safetensors keeps for itself")
    spread = getattr(type(tensor), "__torch_dispatch__", None) is not getattr(Tensor, "__torch_dispatch__", None)
    sparse = tensor.layout in _LAYOUTS.values()
    other = tensor.layout != torch.strided and not sparse
    if spread or other or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        kind = f"{type(tensor).__name__} of {tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise CheckpointError(f"{name!r} is a {kind}; a checkpoint holds tensors of numbers only")
    if dense and tensor.dtype not in _KEPT and _name(tensor.dtype) not in _RAW:
        raise CheckpointError(f"{name!r} is of {tensor.dtype}, which safetensors cannot hold; save to a '.ckpt' file")
    if dense and sparse and (size := tensor.numel() * tensor.element_size()) > _LARGEST:
        raise CheckpointError(
            f"{name!r} is sparse, and would take {size / 1e9:,.1f} GB in a safetensors file, which has dense tensors"
            " only; save to a '.ckpt' file"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
