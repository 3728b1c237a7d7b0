"""What a run is made of, as plain values: to be kept in a checkpoint, and compared when it goes on."""

from __future__ import annotations

import hashlib
import inspect
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..._version import __version__
from ...checkpoint.parameter_names import own_name
from ...redaction import HIDDEN, is_secret_name, redact
from ...redaction import without_secrets as without_secrets  # where it has been looked for
from ...terminal import in_line
from ..interface import Face
from ..several_optimizers import optimizers_of
from ..step.modes import Modes

_LONG = 20_000
_COMPILED = "OptimizedModule"  # the class of what torch.compile puts around a module
_STEPS = ("train_step", "test_step", "metric_on_epoch_end", "run_epoch", "run_batch", "optimize", "check_better")
IN_EVAL = "in eval()"  # the fact of the submodules that are
_KIND = "class"  # of what the other options of the same fact belong to

Facts = dict[str, Any]


def settings_of(trainer: Face, modes: Modes) -> Facts:
    """What decides the result, before anything was trained: a run that goes on has to have the same."""
    facts: Facts = {
        "shards": trainer.shards,
        "gradient_clip": float(trainer.gradient_clip),
        "scheduler_step_on_batch": bool(trainer.scheduler_step_on_batch),
        "mixed_precision": trainer.accelerator.mixed_precision,
        "seeded_samples": bool(trainer.seeded_samples),
        "sync_batchnorm": bool(trainer.sync_batchnorm),
        IN_EVAL: modes.in_words(trainer.model),
        "model": _described(trainer.model),
        "parameters": {
            own_name(name): f"{'lazy' if is_lazy(p) else tuple(p.shape)} {str(p.dtype).removeprefix('torch.')}"
            + ("" if p.requires_grad else " frozen")
            for name, p in trainer.model.named_parameters()
        },
    }
    if trainer.optimizer is not None:
        facts |= _optimizer(trainer.optimizer)
    scheduler = trainer.scheduler
    return facts | {"the scheduler": None if scheduler is None else _options(scheduler, _state(scheduler))}


def data_of(loader: Any, batch_size: int) -> Facts:
    """What the samples and their order come from; the order itself is compared when it is drawn."""
    dataset = getattr(loader, "dataset", loader)
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", getattr(loader, "sampler", None))
    facts: Facts = {
        "the dataset": type(dataset).__name__,
        "the dataset's length": _length(dataset),
        "the batch of an optimizer step": batch_size or None,
        "drop_last": getattr(loader, "drop_last", None),
        "the sampler": type(sampler).__name__ if sampler is not None else None,
    }
    options = {name: getattr(sampler, name, None) for name in ("replacement", "num_samples")}
    return facts | {f"the sampler's {name}": value for name, value in options.items() if isinstance(value, int)}


def circumstances_of(trainer: Face, processes: int, calls: Mapping[str, Any]) -> Facts:
    """What may change without changing the result, or may be meant to: shown when it differs."""
    return {
        **{k: HIDDEN if is_secret_name(k) else redact(str(v)) for k, v in calls.items() if v is not None},
        "processes": processes,
        "gradient_accumulation_steps": trainer.gradient_accumulation_steps,
        "device": trainer.device.type,
        "monitor": f"{trainer.monitor} ({trainer.monitor_mode})",
        **{f"the code of {name}": code for name in _STEPS if (code := _code(type(trainer), name))},
        **versions(),
        "git": git_of(Path(sys.argv[0]).parent.absolute() if sys.argv and sys.argv[0] else Path.cwd()),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each fact that is not what it was."""
    lines = []
    for name in dict.fromkeys((*then, *now)):
        one, other = then.get(name), now.get(name)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            if one.get(_KIND) != other.get(_KIND):  # whose options have nothing to do with each other
                one, other = {_KIND: one.get(_KIND)}, {_KIND: other.get(_KIND)}
            lines += [f"{in_line(name)}: {line}" for line in differences(one, other)]
        elif isinstance(one, str) and isinstance(other, str) and "\n" in one + other:
            lines.append(in_line(f"{name}: {_first_difference(one, other)}"))
        else:
            one, other = (value if isinstance(value, str) else _shown(value) for value in (one, other))
            lines.append(in_line(f"{name}: {one} in the checkpoint, {other} now"))
    return lines


@cache
def versions() -> Facts:
    """Of what computes, as it says of itself: the packages' files would have to be found, and parsed for 10 ms."""
    found = {module.__name__: str(module.__version__) for module in (torch, accelerate, np)}
    return {"zae-engine": __version__, "python": platform.python_version(), **found}


@cache
def git_of(folder: Path) -> str | None:
    """The commit that a folder is checked out at, with a mark when files were changed; None where there is no git.

    Asked once: what this process runs is the code that was there when it began, whatever is checked out later.
    """
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def plain_settings(settings: Mapping[str, Any]) -> Facts:
    """Settings of the user's that JSON can hold, without what looks like a password or a token."""
    return {key: value for key, value in settings.items() if not _is_secret(key) and _is_plain(value)}


def _is_secret(name: str) -> bool:
    return is_secret_name(name) or name.endswith("headers")  # of requests: these are where credentials are sent


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and not _is_secret(key) and _is_plain(v) for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return redact(value) == value
    return value is None or isinstance(value, (int, float))


def _optimizer(optimizer: Any) -> Facts:
    facts: Facts = {}
    for name, part in optimizers_of(optimizer).items():
        whose = f"the optimizer {name!r}" if name else "the optimizer"
        for number, group in enumerate(part.param_groups):
            options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            where = f"group {number} of {whose}" if len(part.param_groups) > 1 else whose
            facts[where] = _options(part, {"parameters": len(group["params"]), **options})
    return facts


def _options(owner: Any, options: Mapping[str, Any]) -> Facts:
    own = {str(key): _shown(value) for key, value in options.items() if not str(key).startswith("_")}
    return {_KIND: type(owner).__name__, **own}


def _state(scheduler: Any) -> Mapping[str, Any]:
    state = scheduler.state_dict() if hasattr(scheduler, "state_dict") else vars(scheduler)
    return {key: value for key, value in state.items() if not isinstance(value, (Tensor, nn.Module))}


def _described(model: nn.Module) -> str:
    with _uncompiled(model) as plain:
        text = re.sub(r"0x[0-9a-fA-F]+", "0x", repr(plain))
    text = re.sub(r"\bFSDP(?=[A-Z])", "", text)  # in front of the class of a module to which fully_shard was applied
    return text if len(text) <= _LONG else hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the modules are there without what ``torch.compile`` puts around them, at each level.

    Their text is made of it, and not mended afterwards: a list of equal modules is written as one line with a number.
    """
    whole = _inner(model)
    around = [(parent._modules, name, child) for parent in whole.modules() for name, child in parent._modules.items()]
    around = [(modules, name, child) for modules, name, child in around if child is not _inner(child)]
    for modules, name, child in around:
        modules[name] = _inner(child)
    try:
        yield whole
    finally:
        for modules, name, child in around:
            modules[name] = child


def _inner(module: Any) -> Any:
    while type(module).__name__ == _COMPILED and hasattr(module, "_orig_mod"):
        module = module._orig_mod
    return module


def _code(cls: type, name: str) -> str | None:
    """A hash of the source of every class's own method of that name, the library's left out."""
    sources = []
    for owner in cls.__mro__:
        if name in owner.__dict__ and not owner.__module__.startswith("zae_engine."):
            try:
                sources.append(inspect.getsource(owner.__dict__[name]))
            except (OSError, TypeError):
                continue
    return hashlib.sha256("".join(sources).encode()).hexdigest()[:12] if sources else None


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _first_difference(one: str, other: str) -> str:
    lines = zip((*one.splitlines(), "(nothing)"), (*other.splitlines(), "(nothing)"), strict=False)
    then, now = next(((a, b) for a, b in lines if a != b), ("", ""))
    return f"{then.strip()} in the checkpoint, {now.strip()} now"


def _shown(value: Any) -> str:
    if isinstance(value, dict) and _KIND in value:
        return str(value[_KIND])
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    text = re.sub(r"0x[0-9a-fA-F]+", "0x", repr(value))
    return text if len(text) <= 200 else text[:200] + "…"
