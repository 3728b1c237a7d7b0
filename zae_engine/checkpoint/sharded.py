"""The state of a training whose parameters are spread over processes (FSDP2): each writes what it holds.

::

    sharded/process-0.safetensors    local parts of model and optimizer; the header says where each belongs
    sharded/process-1.safetensors
    sharded/values.json              of process 0: the optimizer's groups, and all that is no tensor

Nothing is sent between the processes, neither for saving nor for loading, so files can be written beside the training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..files import LARGE, read_bytes
from .codec import pack, unpack
from .disk import write_json
from .errors import CheckpointError
from .optimizer_states import by_name, load_state, read_state
from .parameter_names import own_names
from .sharded_pieces import Piece, Pieces, local_piece, write_pieces
from .weights import _first, plain

SHARDED, VALUES = "sharded", "values.json"


@dataclass
class Shards:
    """What this process holds of a training: the tensors themselves, to be copied before the training goes on.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Local parts by name, ``model/KEY`` or ``optimizer/state/PARAMETER/KEY``. May be replaced by copies.
    pieces : dict of str to Piece
        Where each belongs.
    values : any
        All that is no tensor, for JSON.
    process, processes : int
        This one's number, and how many there are.
    """

    tensors: dict[str, Tensor]
    pieces: dict[str, Piece]
    values: Any
    process: int
    processes: int

    def write(self, folder: Path) -> list[str]:
        """Write the files of this process, and wait for the disk; needs no other process, and may run in a thread.

        Returns
        -------
        list of str
            Their names, beginning with ``sharded/``.
        """
        names = [f"{SHARDED}/process-{self.process}.safetensors"]
        (folder / SHARDED).mkdir(parents=True, exist_ok=True)
        write_pieces(folder / names[0], self.tensors, self.pieces, self.process, self.processes)
        if self.process == 0:
            names.append(f"{SHARDED}/{VALUES}")
            write_json(folder / names[1], self.values)
        return names


def take_shards(model: nn.Module, optimizer: Optimizer | None = None) -> Shards:
    """Note what this process holds; nothing is copied or sent.

    Of what every process has (buffers, numbers of steps), process 0's is taken.

    Raises
    ------
    CheckpointError
        For a value that no checkpoint can hold, and a state of the optimizer whose spreading is not known.
    """
    process, processes = _place()
    module = plain(model)
    state = {
        "model": _tied_once(module),
        "optimizer": None if optimizer is None else by_name(module, optimizer),
    }
    values, found = pack(state)
    held = {name: part for name, tensor in found.items() if (part := local_piece(tensor, process)) is not None}
    tensors = {name: tensor.detach() for name, (tensor, _) in held.items()}
    return Shards(tensors, {name: piece for name, (_, piece) in held.items()}, values, process, processes)


def save_sharded(folder: Path, model: nn.Module, optimizer: Optimizer | None = None) -> list[str]:
    """Write what this process holds under ``folder/sharded/``; every process has to call it.

    Returns
    -------
    list of str
        The files of this process, as names within `folder`.
    """
    return take_shards(model, optimizer).write(Path(folder))


def load_sharded(folder: Path, model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Load what `save_sharded` wrote, on any number of processes, each of which has to call it.

    Names, shapes and dtypes are compared first, so the state of something else changes nothing. No pickle is executed.

    Parameters
    ----------
    folder : Path
        That has the folder ``sharded``.
    model, optimizer
        As at saving, but spread over the processes as they are now, or not at all.

    Raises
    ------
    CheckpointError
        For files that are missing or damaged, or are of another model or optimizer.
    """
    path, module = Path(folder) / SHARDED, plain(model)
    values = _read_values(path / VALUES)
    with Pieces(path) as pieces:
        state = _tied_once(module)
        _compare(state, values["model"], pieces, type(module).__name__)
        found = {} if optimizer is None else read_state(module, optimizer, values["optimizer"], pieces)
        extra = _extra(values["model"], pieces)
        for key in state.keys() - extra.keys():
            pieces.fill(f"model/{key}", state[key])
    actual = own_names({key: key for key in module.state_dict(keep_vars=True)})
    rest = {actual.get(key, key): value for key, value in (state | extra).items()}
    module.load_state_dict(rest, strict=False)  # what is left to do: extra states, and hooks of the user's
    if optimizer is not None:
        load_state(optimizer, found)


def whole_model(model: nn.Module, kept: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The whole state of a spread model on the CPU, put together parameter by parameter; all processes have to ask.

    Parameters
    ----------
    model : nn.Module
    kept : mapping, optional
        Copies of its state, spread or whole, to be put together in place of what the model has now.

    Returns
    -------
    dict or None
        On process 0 only, copies by the keys of the user's module. Tied parameters share their memory.
    """
    first = _place()[0] == 0
    whole: dict[str, Any] = {}
    known: dict[int, Any] = {}
    for key, value in own_names(plain(model).state_dict(keep_vars=True)).items():
        if id(value) not in known:
            now = value if kept is None else _moved(kept[key], value)
            known[id(value)] = _gathered(now, first) if isinstance(now, Tensor) else now
        whole[key] = known[id(value)]
    return whole if first else None


def _place() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _moved(kept: Any, like: Any) -> Any:
    """A part that was kept on the CPU, where the processes can put it together."""
    return kept.to(like.device) if hasattr(kept, "full_tensor") else kept


def _gathered(tensor: Tensor, first: bool) -> Tensor | None:
    """A tensor's whole value as a copy on the CPU, if this is process 0."""
    with _whole_in_zero3(tensor):
        whole = tensor.detach()
        if hasattr(whole, "full_tensor"):
            whole = whole.full_tensor()
        return whole.to("cpu", copy=True) if first else None


def _whole_in_zero3(tensor: Tensor) -> AbstractContextManager[Any]:
    """Inside, a parameter that ZeRO-3 has spread is whole."""
    if not hasattr(tensor, "ds_id"):
        return torch.no_grad()
    import deepspeed

    gathering: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([tensor])
    return gathering


def _tied_once(module: nn.Module) -> dict[str, Any]:
    """The state with every tensor once, under the first of its names."""
    state = own_names(module.state_dict(keep_vars=True))  # by which FSDP2 lets go of whole parameters, too
    first = {id(value): key for key, value in reversed(state.items()) if isinstance(value, Tensor)}
    kept = {k: v for k, v in state.items() if not isinstance(v, Tensor) or first[id(v)] == k}
    return {k: v.detach() if isinstance(v, Tensor) else v for k, v in kept.items()}


def _is_extra(key: str) -> bool:
    """Whether a key is a module's extra state, which may be anything and of any shape."""
    return key.split("/")[0].endswith("_extra_state")


def _extra(values: dict[str, Any], pieces: Pieces) -> dict[str, Any]:
    """The extra states, whole."""
    whole = {name: pieces.whole(name) for name in pieces if name.startswith("model/") and _is_extra(name[6:])}
    found: dict[str, Any] = unpack({key: value for key, value in values.items() if _is_extra(key)}, whole)
    return found


def _read_values(path: Path) -> dict[str, Any]:
    """Read what is no tensor, and say what is wrong with it."""
    try:
        values = json.loads(read_bytes(path, LARGE, follow=True))
    except FileNotFoundError:
        raise CheckpointError(f"no file {str(path)!r}; is it a checkpoint of a sharded training (FSDP2)?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged or cut short: {error}") from error
    whole = isinstance(values, dict) and isinstance(values.get("model"), dict) and "optimizer" in values
    optimizer = values["optimizer"] if whole else None
    if not whole or not (optimizer is None or {"state", "param_groups", "kind"} <= set(optimizer)):
        raise CheckpointError(f"{str(path)!r} does not hold the values of a sharded training")
    return dict(values)


def _compare(own: dict[str, Any], saved: dict[str, Any], pieces: Pieces, kind: str) -> None:
    """Refuse the state of another model."""
    names = {key: f"model/{key}" for key in own if key in saved and not _is_extra(key)}
    problems = {
        "missing": [key for key in own if key not in saved],
        "unexpected": [key for key in saved if key not in own],
        "without its tensor": [key for key, name in names.items() if name not in pieces],
    }
    if not any(problems.values()):
        as_saved = {key: f"{pieces.shape(name)} {pieces.dtype(name)}" for key, name in names.items()}
        as_own = {key: f"{tuple(own[key].shape)} {own[key].dtype}" for key in names}
        problems["another shape or dtype"] = [
            f"{key} {as_saved[key]} for {as_own[key]}" for key in names if as_saved[key] != as_own[key]
        ]
    if any(problems.values()):
        said = "; ".join(f"{problem}: {_first(keys)}" for problem, keys in problems.items() if keys)
        raise CheckpointError(f"the checkpoint is of another model than this {kind}; {said}")
