"""A module's weights to and from one file, readable by torch and safetensors alone."""

from __future__ import annotations

import difflib
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..files import replacing

SAFETENSORS = (".safetensors", ".safetensor")
_WRAPPERS = ("module.", "_orig_mod.")


class WeightsError(ValueError):
    """A file that does not hold weights that can be taken."""


def plain(model: nn.Module) -> nn.Module:
    """The user's own module behind ``torch.compile``, whose keys have no prefix."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The model's state, of spread parameters (FSDP2, ZeRO-3) the whole ones, which all processes have to ask for."""
    with _gathered(model) as gathered:
        state = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in plain(model).state_dict().items()}
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
    """
    path, model = Path(path), plain(model)
    odd = [k for k, v in (state or model.state_dict()).items() if not isinstance(v, Tensor)]
    if odd and path.suffix in SAFETENSORS:
        raise WeightsError(f"safetensors holds tensors only, and {_first(odd)} is none; save to a '.ckpt' file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        if path.suffix in SAFETENSORS and state is not None:
            own = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
            save_file(own, partial)  # which takes no views of one large tensor
        elif path.suffix in SAFETENSORS:
            save_model(model, str(partial))
        else:
            torch.save(model.state_dict() if state is None else state, partial)


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
        raise FileNotFoundError(f"no file {str(path)!r}{_near(path)}")
    try:
        if path.suffix in SAFETENSORS:
            weights = load_file(path)
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
        Keys that all begin with ``module.`` or ``_orig_mod.`` are taken without it. A tied weight may be there once.
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
    own = model.state_dict()
    weights = _without_wrapper(weights, own)
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
    model.load_state_dict({k: _as_sharded(own[k], v) if k in own else v for k, v in weights.items()}, strict=False)


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
    if not isinstance(own[key], Tensor) or is_lazy(own[key]) or not own[key].numel():
        return False
    others = [v for k, v in own.items() if k != key and k in weights and isinstance(v, Tensor) and not is_lazy(v)]
    return any(v.data_ptr() == own[key].data_ptr() and v.shape == own[key].shape for v in others)


def _first(keys: list[str], count: int = 5) -> str:
    rest = f" and {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + rest


def _near(path: Path) -> str:
    there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1)
    return f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""
