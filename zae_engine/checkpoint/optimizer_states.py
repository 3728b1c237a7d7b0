"""An optimizer's state by the names of the parameters, whose places in the optimizer may be others the next time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .codec import unpack
from .errors import CheckpointError
from .parameter_names import own_name
from .sharded_pieces import Pieces

_ROOT = "optimizer/state/"


def by_name(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's ``state_dict()``, with names for numbers, and the optimizer's kind.

    Raises
    ------
    CheckpointError
        For a state whose spreading over the processes is not known.
    """
    names = _names(module, optimizer)
    found = optimizer.state_dict()
    state = {_given(names, key): entries for key, entries in found["state"].items()}
    for name, parameter in zip(names, _parameters(optimizer), strict=True):
        _check_spread(name, parameter, state.get(name, {}))
    groups = [group | {"params": [names[i] for i in group["params"]]} for group in found["param_groups"]]
    return {**found, "state": state, "param_groups": groups, "kind": _kind(optimizer)}


def read_state(module: nn.Module, optimizer: Optimizer, saved: Any, pieces: Pieces) -> dict[str, Any]:
    """What to give to the optimizer's ``load_state_dict()``: of spread parameters, the part that this process holds.

    Parameters
    ----------
    module, optimizer
        As they are now; neither is changed.
    saved : any
        What `by_name` gave, packed.
    pieces : Pieces
        The tensors.

    Raises
    ------
    CheckpointError
        For the state of another optimizer.
    """
    if not isinstance(saved, dict):
        raise CheckpointError("the checkpoint has no state of an optimizer; leave the optimizer out")
    if saved["kind"] != _kind(optimizer):
        raise CheckpointError(f"the checkpoint is of the optimizer {saved['kind']}, and this one is {_kind(optimizer)}")
    names = _names(module, optimizer)
    by_path = dict(zip(names, _parameters(optimizer), strict=True))
    common = {name: pieces.whole(name) for name in pieces if name[:10] == "optimizer/" and not name.startswith(_ROOT)}
    rest = unpack({key: value for key, value in saved.items() if key not in ("state", "kind")}, common)
    number = {name: i for i, name in enumerate(names)}
    rest["param_groups"] = _same_groups(rest["param_groups"], _groups(optimizer, names), number)
    placed = {name: _placed(name, by_path, pieces) for name in pieces if name.startswith(_ROOT)}
    state = {number.get(key, key): value for key, value in unpack(saved["state"], placed).items()}
    return {**rest, "state": state}


def load_state(optimizer: Optimizer, found: dict[str, Any]) -> None:
    """Give the optimizer what `read_state` found, in the dtypes that it was saved in."""
    optimizer.load_state_dict(found)
    for number, parameter in enumerate(_parameters(optimizer)):
        held = optimizer.state.get(parameter, {})
        for key, saved in found["state"].get(number, {}).items():
            # torch casts states to the dtype of their parameter: float32 moments of bfloat16 would lose their digits.
            if isinstance(saved, Tensor) and isinstance(held.get(key), Tensor) and held[key].dtype != saved.dtype:
                held[key] = saved.to(held[key].device)


def _kind(optimizer: Optimizer) -> str:
    """The class's name, also behind Accelerate's wrapper."""
    return type(getattr(optimizer, "optimizer", optimizer)).__name__


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """The parameters in the order of their numbers."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _names(module: nn.Module, optimizer: Optimizer) -> list[str]:
    """The names of the parameters in the order of their numbers; by number, where the module does not have them."""
    known = {id(parameter): own_name(name) for name, parameter in module.named_parameters()}
    return [known.get(id(parameter), f"#{number}") for number, parameter in enumerate(_parameters(optimizer))]


def _given(names: list[str], key: Any) -> Any:
    """A parameter's name for its number; a state's own key stays."""
    return names[key] if isinstance(key, int) else key


def _groups(optimizer: Optimizer, names: list[str]) -> list[list[str]]:
    """The names in each group."""
    left = iter(names)
    return [[next(left) for _ in group["params"]] for group in optimizer.param_groups]


def _check_spread(name: str, parameter: Tensor, entries: Mapping[str, Any]) -> None:
    """Refuse a state of a spread parameter of which it is not known what each process holds."""
    if not hasattr(parameter, "device_mesh"):
        return
    for key, value in entries.items():
        if isinstance(value, Tensor) and value.ndim and not _like(value, parameter):
            raise CheckpointError(
                f"the optimizer's {key!r} of {name!r} has shape {tuple(value.shape)} here, but the parameter,"
                f" of shape {tuple(parameter.shape)}, is spread over the processes: such a state cannot be saved."
                " Take an optimizer whose states have the parameter's shape (SGD, AdamW), or train without FSDP"
            )


def _like(value: Tensor, parameter: Tensor) -> bool:
    return hasattr(value, "device_mesh") and value.shape == parameter.shape


def _same_groups(saved: list[dict[str, Any]], own: list[list[str]], number: dict[str, int]) -> list[dict[str, Any]]:
    """The saved options of each group, with the numbers of its parameters as they are now."""
    if len(saved) != len(own):
        raise CheckpointError(
            f"the checkpoint's optimizer has {len(saved)} groups of parameters, and this one {len(own)}"
        )
    for at, (group, names) in enumerate(zip(saved, own, strict=True)):
        if odd := sorted(set(group["params"]) ^ set(names)):
            where = "the checkpoint" if odd[0] in group["params"] else "this optimizer"
            raise CheckpointError(f"group {at} of the optimizer has other parameters; {odd[0]!r} is in {where}'s only")
    return [group | {"params": [number[n] for n in names]} for group, names in zip(saved, own, strict=True)]


def _placed(name: str, parameters: Mapping[str, Tensor], pieces: Pieces) -> Tensor:
    """Read a state's tensor: as its parameter is spread, if it has the parameter's shape, or else whole."""
    owner = name.removeprefix(_ROOT)
    while owner and owner not in parameters:
        owner = owner.rpartition("/")[0]
    parameter = parameters.get(owner)
    if parameter is None or not parameter.ndim or tuple(parameter.shape) != pieces.shape(name):
        return pieces.whole(name)
    tensor = torch.empty_like(parameter.detach(), dtype=pieces.dtype(name))
    pieces.fill(name, tensor)
    return tensor
