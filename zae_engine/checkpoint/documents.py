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
from torch import Tensor

from ..files import LARGE, read_bytes, replacing
from .codec import pack, unpack
from .errors import CheckpointError
from .tensors import SAFETENSORS, independent, load_safetensors, save_safetensors

SUFFIXES = (*SAFETENSORS, ".ckpt")
FORMAT = 1


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
        On any device, of any strides; sparse ones are dense in a ``.safetensors`` file, and sparse again when they are
        read. Tensors that share memory are written each for itself. None is changed.
    metadata : mapping of str to str, optional
        For the header of a ``.safetensors`` file; a ``.ckpt`` file has none.

    Raises
    ------
    CheckpointError
        For another suffix, a tensor without plain numbers of its own (meta, quantized, one part of a spread one), and a
        file that cannot be written (no such folder, a full disk).
    """
    path = Path(path)
    _check_suffix(path.suffix)
    with _writing(path) as partial:
        if path.suffix in SAFETENSORS:
            save_safetensors(tensors, partial, metadata)
        else:
            torch.save(independent(tensors, dense=False), partial)


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
        tensors = load_safetensors(path) if path.suffix in SAFETENSORS else _unpickle(path)
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
        document = json.loads(read_bytes(path, LARGE, follow=True).decode("utf-8"))
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


def _unpickle(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of rare dtypes and old protocols, which are no damage where warnings are errors
        return torch.load(path, "cpu", weights_only=True)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Around what writes a file, which is flushed to the disk after it; what went wrong is said in words."""
    try:
        with replacing(path) as partial:
            yield partial
    except CheckpointError:
        raise
    except (
        Exception
    ) as error:  # a full disk is an OSError to Python, a RuntimeError to torch, and another to safetensors
        raise CheckpointError(f"{str(path)!r} cannot be written: {_reason(error)}") from error
