"""Files of a checkpoint: tensors, and states of plain values and tensors. No reading executes anything."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import LONGEST, read_bytes, replacing
from .codec import RESERVED, pack, unpack
from .errors import CheckpointError
from .weights import SAFETENSORS

SUFFIXES = (*SAFETENSORS, ".ckpt")
FORMAT = 1

_ODD = "dtypes"  # the entry of the metadata that says which tensors are raw bytes of another dtype
_KEPT = {  # what safetensors 0.8 has itself
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.bfloat16, torch.float16, torch.float32, torch.float64),
    *(torch.complex64, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
}
_RAW = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.complex128, torch.complex32)}


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a file and flush it to the disk.

    Parameters
    ----------
    path : path-like
        ``.safetensors``: for ``safetensors.torch.load_file``, which shows the dtypes that the format lacks (complex128,
        complex32) as bytes. ``.ckpt``: for ``torch.load(path, weights_only=True)``, every dtype as it is.
    tensors : mapping of str to Tensor
        On any device, of any strides. Tensors that share memory are written each for itself. None is changed.
    metadata : mapping of str to str, optional
        For the header of a ``.safetensors`` file; a ``.ckpt`` file has none.

    Raises
    ------
    CheckpointError
        For another suffix, a tensor that is no dense one of plain numbers or one part of a spread one, and a file that
        cannot be written (no such folder, a full disk).
    """
    path = Path(path)
    _check_suffix(path.suffix)
    own = _independent(tensors, path.suffix)
    with _writing(path) as partial:
        if path.suffix in SAFETENSORS:
            _save(own, partial, metadata or {})
        else:
            torch.save(own, partial)


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote, onto the CPU. No pickle is ever executed.

    Raises
    ------
    CheckpointError
        For a file that is not there, cut short or damaged, holds anything but tensors, or would run code.
    """
    path = Path(path)
    _check_suffix(path.suffix)
    if not path.is_file():
        raise CheckpointError(f"no file {str(path)!r}")
    try:
        tensors = _load(path) if path.suffix in SAFETENSORS else _unpickle(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{str(path)!r} is refused: it holds more than tensors, or is damaged; nothing of it was run"
        ) from error
    except Exception as error:  # a damaged file raises anything, from EOFError to UnicodeDecodeError
        raise _damaged(path, error) from error
    if not isinstance(tensors, dict) or not all(isinstance(k, str) and type(v) is Tensor for k, v in tensors.items()):
        raise CheckpointError(f"{str(path)!r} does not hold tensors by name")
    return tensors


def write_document(folder: str | os.PathLike[str], stem: str, tree: Any, suffix: str = ".safetensors") -> list[str]:
    """Write a state of plain values and tensors (see `codec.pack`).

    Returns
    -------
    list of str
        The names of the files: ``stem.json``, and ``stem.safetensors`` (or ``.ckpt``) where there are tensors.
    """
    return write_packed(folder, stem, *pack(tree), suffix)


def write_packed(
    folder: str | os.PathLike[str], stem: str, values: Any, tensors: Mapping[str, Tensor], suffix: str = ".safetensors"
) -> list[str]:
    """Write what `codec.pack` has made of a state, whose tensors may have been copied since; as `write_document`."""
    _check_suffix(suffix)
    folder = Path(folder)
    document = {"format": FORMAT, "tensors": stem + suffix if tensors else None, "state": values}
    if tensors:
        write_tensors(folder / (stem + suffix), tensors)
    text = json.dumps(document, allow_nan=False, ensure_ascii=False) + "\n"
    with _writing(folder / f"{stem}.json") as path:
        path.write_bytes(text.encode())
    return [f"{stem}.json", *([stem + suffix] if tensors else [])]


def read_document(folder: str | os.PathLike[str], stem: str) -> Any:
    """Read what `write_document` wrote, from whichever file of tensors it names.

    Raises
    ------
    CheckpointError
        With the path and the reason, for files that are not there, damaged, or do not belong together.
    """
    path = Path(folder) / f"{stem}.json"
    document = _read_json(path)
    name = document.get("tensors")
    if name is not None and name not in [stem + suffix for suffix in SUFFIXES]:  # never one outside of the folder
        raise CheckpointError(f"{str(path)!r} names {name!r} as its tensors, which is none of this checkpoint")
    tensors = read_tensors(path.with_name(name)) if name is not None else {}
    try:
        return unpack(document["state"], tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"no file {str(path)!r}")
    try:
        document = json.loads(read_bytes(path, LONGEST, follow=True).decode("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise _damaged(path, error) from error
    if not isinstance(document, dict) or not {"format", "state"} <= document.keys():
        raise CheckpointError(f"{str(path)!r} is no state of a checkpoint (it has no 'format' and 'state')")
    if document["format"] != FORMAT:
        raise CheckpointError(
            f"{str(path)!r} is of format {document['format']!r}, and this version reads {FORMAT}; update zae-engine"
        )
    return document


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{str(path)!r} is damaged or cut short: {_reason(error)}")


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_suffix(suffix: str) -> None:
    if suffix not in SUFFIXES:
        raise CheckpointError(f"tensors are kept in '.safetensors' or '.ckpt' files, not in {suffix!r}")


def _independent(tensors: Mapping[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """The tensors as dense ones on the CPU, each with memory of its own and no more of it than it shows."""
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, given in tensors.items():
        _check(name, given, suffix)
        tensor = given.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() > tensor.nbytes:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.untyped_storage().data_ptr())
        own[name] = tensor
    return own


def _check(name: str, tensor: Tensor, suffix: str) -> None:
    if name == RESERVED:
        raise CheckpointError(f"no tensor can be named {RESERVED!r}, which safetensors keeps for itself")
    spread = getattr(type(tensor), "__torch_dispatch__", None) is not getattr(Tensor, "__torch_dispatch__", None)
    if spread or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        kind = f"{type(tensor).__name__} of {tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise CheckpointError(f"{name!r} is a {kind}; a checkpoint holds dense tensors of numbers only")
    if suffix in SAFETENSORS and tensor.dtype not in _KEPT and _name(tensor.dtype) not in _RAW:
        raise CheckpointError(f"{name!r} is of {tensor.dtype}, which safetensors cannot hold; save to '.ckpt' files")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _save(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    odd = {name: [_name(t.dtype), list(t.shape)] for name, t in tensors.items() if t.dtype not in _KEPT}
    raw = {name: t.reshape(-1).view(torch.uint8) if name in odd else t for name, t in tensors.items()}
    save_file(raw, path, {"format": "pt", **metadata, **({_ODD: json.dumps(odd)} if odd else {})})


def _unpickle(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of rare dtypes and old protocols, which are no damage where warnings are errors
        return torch.load(path, "cpu", weights_only=True)


def _load(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt", device="cpu") as file:
        odd = json.loads((file.metadata() or {}).get(_ODD, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    for name, (dtype, shape) in odd.items():
        tensors[name] = tensors[name].view(_RAW[dtype]).reshape(shape)
    return tensors


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Around what writes a file, which is flushed to the disk after it; what went wrong is said in words."""
    try:
        with replacing(path) as partial:
            yield partial
    except (
        Exception
    ) as error:  # a full disk is an OSError to Python, a RuntimeError to torch, and another to safetensors
        raise CheckpointError(f"{str(path)!r} cannot be written: {_reason(error)}") from error
