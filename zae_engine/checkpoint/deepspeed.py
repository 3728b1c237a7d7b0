"""The state of a DeepSpeed engine by its own methods, after a look at its files: they are pickles, and it trusts them.

::

    sharded/latest                   what DeepSpeed and its tools look for
    sharded/zero_to_fp32.py          its tool that puts the weights together
    sharded/state/*.pt               what each process holds
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError

SHARDED, TAG = "sharded", "state"


def save_engine(folder: Path, engine: Any) -> list[str]:
    """Write what this process holds under ``folder/sharded/``; every process has to call it, and waits for the others.

    Parameters
    ----------
    folder : Path
    engine : DeepSpeedEngine
        What ``deepspeed.initialize`` or Accelerate's ``prepare`` made.

    Returns
    -------
    list of str
        The files of this process, as names within `folder`.

    Raises
    ------
    CheckpointError
        With the optimizer offloaded to NVMe, whose files are not told apart by process.
    """
    folder = Path(folder)
    if engine.zero_nvme_offload_optimizer():
        raise CheckpointError("an optimizer offloaded to NVMe cannot be saved; write offload_optimizer_device: cpu")
    engine.save_checkpoint(str(folder / SHARDED), tag=TAG)
    return sorted(path.relative_to(folder).as_posix() for path in _files(folder) if _owner(path) == engine.global_rank)


def load_engine(folder: Path, engine: Any) -> None:
    """Load what `save_engine` wrote, on as many processes, each of which has to call it.

    Parameters
    ----------
    folder : Path
        That has the folder ``sharded``.
    engine : DeepSpeedEngine
        Which has not trained yet.

    Raises
    ------
    CheckpointError
        For a file that is damaged, or holds any object but those that DeepSpeed saves there: it is refused before
        DeepSpeed sees it, and nothing of it is executed. For another number of processes, and another model.
    """
    folder, found = Path(folder), 0
    for path in _files(folder):
        if path.suffix not in ("", ".py") or path.parent.name == TAG:
            found += 1
            _check_processes(check_pickle(path), int(engine.dp_world_size))
    if not found:
        raise CheckpointError(f"{str(folder / SHARDED)!r} holds no state of DeepSpeed")
    loaded, _ = engine.load_checkpoint(str(folder / SHARDED), tag=TAG)
    if loaded is None:
        raise CheckpointError(f"DeepSpeed found nothing to load in {str(folder / SHARDED)!r}; is a file missing?")


def check_pickle(path: Path) -> Any:
    """Read a file of DeepSpeed as data only, with its tensors left on the disk.

    Raises
    ------
    CheckpointError
        For a file that is damaged, or would import or run anything but the classes of `safe_classes`.
    """
    try:
        with torch.serialization.safe_globals(safe_classes()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file raises anything, from EOFError to UnicodeDecodeError
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            said = f"it asks for {asked[1]}, which DeepSpeed saves nothing of"
        elif isinstance(error, pickle.UnpicklingError):  # whose text advises to trust the file
            said = "it holds more than data, or is damaged"
        else:
            said = f"it is damaged or cut short ({(str(error).splitlines() or [type(error).__name__])[0]})"
        raise CheckpointError(f"{str(path)!r} is refused: {said}; nothing of it was run") from error


def safe_classes() -> list[Any]:
    """The classes whose objects are in DeepSpeed's files (ZeRO 1, 2, 3): numbers and enums, which run nothing."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted((folder / SHARDED).rglob("*")) if path.is_file())


def _owner(path: Path) -> int:
    """The process that wrote a file, by DeepSpeed's names: process 0, where there is no number."""
    number = re.search(r"zero_pp_rank_(\d+)_", path.name)
    return int(number[1]) if number else 0


def _check_processes(state: Any, count: int) -> None:
    saved = state.get("dp_world_size", count) if isinstance(state, dict) else count
    if saved != count:
        raise CheckpointError(
            f"the checkpoint was saved by {saved} processes of DeepSpeed, which can load it on as many only, and these"
            f" are {count}; start {saved}, or train with FSDP2, whose checkpoints load on any number"
        )
