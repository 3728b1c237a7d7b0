"""A module's weights to and from one file, readable by torch and safetensors alone."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..files import replacing
from ..suggestions import nearest_path
from ..terminal import PrintableError
from .errors import CheckpointError
from .parameter_names import own_names
from .tensors import SAFETENSORS, as_laid_out, independent, load_safetensors, save_safetensors

_WRAPPERS = ("module.", "_orig_mod.")


class WeightsError(PrintableError, ValueError):
    """A file that does not hold weights that can be taken."""


def plain(model: nn.Module) -> nn.Module:
    """The user's own module behind ``torch.compile``, whose keys have no prefix."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def own_state(model: nn.Module) -> dict[str, Any]:
    """The model's ``state_dict()`` by the names that it has uncompiled, whichever of its parts are compiled."""
    return own_names(plain(model).state_dict())


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The model's state, of spread parameters (FSDP2, ZeRO-3) the whole ones, which all processes have to ask for."""
    with _gathered(model) as gathered:
        state = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in own_state(model).items()}
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()} if gathered else state


@contextmanager
def _gathered(model: nn.Module) -> Iterator[bool]:
    """Inside, parameters that ZeRO-3 has spread are whole, and what is written into them stays; yields if there are."""
    spread = [p for p in model.parameters() if hasattr(p, "ds_id")]
    if not spread:
        yield False
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(spread, modifier_rank=0):
        yield True


def save_weights(model: nn.Module, path: str | os.PathLike[str], state: dict[str, Any] | None = None) -> None:
    """Write the weights of `model`, whole or not at all.

    Parameters
    ----------
    model : nn.Module
        Its own keys are written.
    path : path-like
        ``.safetensors`` or ``.safetensor``: loads with ``safetensors.torch.load_model`` (tied weights are in it once).
        Any other ending: loads with ``model.load_state_dict(torch.load(path, weights_only=True))``.
    state : dict, optional
        The `whole_state` of a sharded model.

    Raises
    ------
    WeightsError
        Naming what a file of that kind cannot hold.

    Notes
    -----
    Whatever memory the weights share or are cut from, each is written for itself, and no more than it shows. What
    safetensors lacks is dense there (sparse weights) or bytes (complex128); `read_weights` gives it back as it was.
    """
    path, state = Path(path), own_state(model) if state is None else own_names(state)
    odd = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if odd and path.suffix in SAFETENSORS:
        raise WeightsError(f"safetensors holds tensors only, and {_first(odd)} is none; save to a '.ckpt' file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        try:
            _write(state, partial, path.suffix)
        except CheckpointError as error:
            raise WeightsError(f"{str(path)!r} is not written: {error}") from error


def _write(state: Mapping[str, Any], path: Path, suffix: str) -> None:
    tensors, twins = _without_twins({k: v for k, v in state.items() if isinstance(v, Tensor)})
    if suffix in SAFETENSORS:
        save_safetensors(tensors, path, twins)
        return
    own = independent(tensors, dense=False)
    own |= {twin: own[first] for twin, first in twins.items()}  # of which torch writes the memory once
    torch.save({k: own.get(k, v) for k, v in state.items()}, path)


def _without_twins(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tied weight once; the others by the name that stands for them, as safetensors' headers have it."""
    own, first, twins = dict[str, Tensor](), dict[object, str](), dict[str, str]()
    for name, tensor in tensors.items():
        place = _place(tensor)
        if place is not None and place in first:
            twins[name] = first[place]
        else:
            own[name], first[place] = tensor, name
    return own, twins


def _place(tensor: Tensor) -> tuple[Any, ...] | None:
    """The same for tensors that are the same memory, seen in the same way; None where there is no such thing."""
    if tensor.layout != torch.strided or tensor.is_meta or is_lazy(tensor) or not tensor.numel():
        return None
    view = (tensor.is_conj(), tensor.is_neg(), tensor.dtype, tensor.shape)
    return (tensor.device, tensor.data_ptr(), *view, tensor.stride())


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read weights onto the CPU. No pickle is ever executed.

    Raises
    ------
    FileNotFoundError
        With the nearest name in the folder.
    WeightsError
        For a file that is cut short or damaged, holds anything but tensors, or would run code when unpickled.
    """
    path = Path(path)
    if not path.is_file():
        meant = nearest_path(path)
        raise FileNotFoundError(f"no file {str(path)!r}" + (f"; did you mean {meant!r}?" if meant else ""))
    try:
        if path.suffix in SAFETENSORS:
            weights = load_safetensors(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{str(path)!r} is refused: it holds more than tensors, or is damaged; nothing of it was run."
            " Save weights with save_model(), or torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # a damaged file raises anything, from EOFError to UnicodeDecodeError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{str(path)!r} is damaged or cut short: {reason}") from error
    named = isinstance(weights, dict) and all(isinstance(k, str) for k in weights)
    if not named or not all(isinstance(v, Tensor) or _is_extra(k) for k, v in weights.items()):
        raise WeightsError(f"{str(path)!r} does not hold a state_dict (names and tensors)")
    return weights


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], strict: bool = True, source: str = "weights") -> None:
    """Put `weights` into `model`, all of them or none.

    Parameters
    ----------
    model : nn.Module
    weights : mapping of str to Tensor
        Keys that all begin with ``module.`` are taken without it, and any without the ``_orig_mod.`` of a part that
        was compiled. A tied weight may be there once.
    strict : bool
        Refuse missing and unexpected keys.
    source : str
        Where they come from, for the message.

    Raises
    ------
    WeightsError
        Naming the keys that are missing, unexpected or of another shape.
    """
    with _gathered(model):
        _load(plain(model), weights, strict, source)


def _load(model: nn.Module, weights: Mapping[str, Tensor], strict: bool, source: str) -> None:
    actual = own_names({name: name for name in model.state_dict()})
    own = own_state(model)
    weights = _without_wrapper(own_names(weights), own)
    problems = {
        "another shape": [
            f"{k} {tuple(weights[k].shape)} for {tuple(v.shape)}"
            for k, v in own.items()
            if k in weights and not _is_extra(k) and not is_lazy(v) and weights[k].shape != v.shape
        ]
    }
    if strict:
        problems["missing"] = [k for k in own if k not in weights and not _tied(k, own, weights)]
        problems["unexpected"] = [k for k in weights if k not in own]
    if any(problems.values()):
        said = "; ".join(f"{kind}: {_first(keys)}" for kind, keys in problems.items() if keys)
        raise WeightsError(f"{source} is of another model than this {type(model).__name__}; {said}")
    if weights and not any(k in own for k in weights):
        raise WeightsError(
            f"{source} has no key in common with this {type(model).__name__}; it has {_first(list(weights))}"
        )
    given = {actual.get(k, k): _fitting(own.get(k), v) for k, v in weights.items()}
    overlapping = {actual[k] for k in own.keys() & weights.keys() if _overlaps(own[k])}
    model.load_state_dict({k: v for k, v in given.items() if k not in overlapping}, strict=False)
    if changed := {k: v for k, v in given.items() if k in overlapping and not torch.equal(model.state_dict()[k], v)}:
        model.load_state_dict(changed, strict=False, assign=True)  # nothing can be written into an expanded one


def _overlaps(tensor: Any) -> bool:
    """Whether several of its numbers are the same memory."""
    dense = isinstance(tensor, Tensor) and not is_lazy(tensor) and tensor.layout == torch.strided
    return dense and any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _fitting(own: Any, value: Any) -> Any:
    """A weight as the model has it: spread over the processes, sparse or dense."""
    if isinstance(own, Tensor) and isinstance(value, Tensor) and not is_lazy(own):
        return as_laid_out(_as_sharded(own, value), own)
    return value


def _as_sharded(own: Any, whole: Any) -> Any:
    """A whole tensor as the part of it that this process holds, where the model is sharded."""
    if not hasattr(own, "device_mesh") or hasattr(whole, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor  # takes a second to import

    return distribute_tensor(whole.to(own.device), own.device_mesh, own.placements)


def _without_wrapper(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Take away the prefixes that DDP and torch.compile put in front of every key, unless they are the model's own."""
    for prefix in _WRAPPERS:
        if weights and all(k.startswith(prefix) for k in weights) and not all(k.startswith(prefix) for k in own):
            return _without_wrapper({k.removeprefix(prefix): v for k, v in weights.items()}, own)
    return weights


def _is_extra(key: object) -> bool:
    """Whether a key is a module's extra state, which may be anything."""
    return isinstance(key, str) and key.endswith("_extra_state")


def _tied(key: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether another key, which is there, stands for the same memory."""
    places = {k: _place(v) for k, v in own.items() if isinstance(v, Tensor) and (k == key or k in weights)}
    place = places.pop(key, None)
    return place is not None and any(other and other[:-1] == place[:-1] for other in places.values())


def _first(keys: list[str], count: int = 5) -> str:
    rest = f" and {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + rest
