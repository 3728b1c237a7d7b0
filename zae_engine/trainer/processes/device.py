"""From ``device=``, ``mixed_precision=`` and the launch environment to an Accelerator."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

from ...launch import environment
from ...launch.child_processes import end_with_launcher
from ...launch.environment import World
from ...launch.first_meeting import meeting
from ...launch.fork_fault import guard_forks
from ...launch.rendezvous import with_fresh_store
from ..hangs.watchdog import let_go
from ..refusals import check_number
from ..warn import warn

Device = str | torch.device

PRECISIONS = ("no", "bf16", "fp16", "fp8")

_living: weakref.WeakSet[Accelerator] = weakref.WeakSet()


def make_accelerator(
    device: Device | Sequence[Device] | None = None,
    mixed_precision: str | None = None,
    kwargs_handlers: Sequence[Any] | None = None,
    limit: float | None = None,
) -> Accelerator:
    """Return a new Accelerator for one trainer, on as many processes as the launcher started.

    Parameters
    ----------
    device : str, torch.device, sequence of one of these, or None
        None lets Accelerate choose. Several processes get one of the kind each.
    mixed_precision : {'no', 'bf16', 'fp16', 'fp8'} or None
        None takes the launch configuration's, else 'no'.
    kwargs_handlers : sequence of accelerate.utils.KwargsHandler, optional
        Handed to the Accelerator.
    limit : float, optional
        Seconds that the processes wait for each other.

    Raises
    ------
    ValueError
        When the device is not there, the precision cannot be had on it, or either contradicts the launch
        configuration or another trainer in this process.
    LaunchError
        When Accelerate would not train as many processes together as were started.
    """
    wanted = None if device is None else find_device(device)
    on_cpu = (wanted or default_device()).type == "cpu"
    world = _enter(wanted, on_cpu)
    if wanted is None:
        _check_forced()
    precision = resolve_precision(mixed_precision, wanted or default_device())
    _make_room(wanted, precision)
    fresh = not AcceleratorState._shared_state
    with meeting(world, os.environ), _chosen(wanted if world.size == 1 else None):
        accelerator = Accelerator(
            cpu=on_cpu and (wanted is not None or world.size > 1),
            mixed_precision=precision if fresh else None,
            # The plugin, since the environment beats the plain argument; micro-batches are weighted by the trainer.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=with_fresh_store(kwargs_handlers, limit if world.size > 1 else None),
        )
    environment.check_agreement(world, accelerator.num_processes)
    if world.size > 1:
        guard_forks()
    if clash := _clash(accelerator.state, wanted, None):
        raise ValueError(f"{clash} contradicts what Accelerate chose earlier in this process; make the trainer first")
    if accelerator.is_main_process:
        for notice in environment.notices(os.environ, world, on_cpu, asked=wanted is not None):
            warn(notice)
    _living.add(accelerator)
    return accelerator


def searching(handlers: Sequence[Any] | None) -> list[Any]:
    """Accelerate's handlers, so that processes do without the gradients of what a step does not use.

    What the user has chosen stays.
    """
    chosen = list(handlers or ())
    if not any(isinstance(handler, DistributedDataParallelKwargs) for handler in chosen):
        chosen.append(DistributedDataParallelKwargs(find_unused_parameters=True))
    return chosen


def _enter(wanted: torch.device | None, on_cpu: bool) -> World:
    """Take the launcher's word, and refuse what cannot follow from it; nothing is started yet."""
    end_with_launcher(os.environ)
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    world = environment.enter(os.environ, 0 if on_cpu else len(available_devices()) - 1, grouped)
    kind, index = (None, None) if wanted is None else (wanted.type, wanted.index)
    environment.check_choice(os.environ, world, kind, index)
    state = PartialState._shared_state
    environment.check_untouched(world, state.get("num_processes"))
    if on_cpu and (threads := environment.threads(os.environ, world)):
        os.environ["OMP_NUM_THREADS"] = str(threads)  # else Accelerate takes as many as it likes, with a warning
        torch.set_num_threads(threads)
    return world


def _check_forced() -> None:
    """Refuse a device that the environment names and this machine lacks, which Accelerate would take unseen."""
    if not (forced := os.environ.get("ACCELERATE_TORCH_DEVICE")):
        return
    try:
        find_device(forced)
    except ValueError as error:
        raise environment.LaunchError(
            f"ACCELERATE_TORCH_DEVICE={forced} is set, but {error}; unset it, or give device="
        ) from None


def available_devices() -> list[str]:
    """The devices of this machine, as they are written in ``device=``."""
    found = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator(check_available=True)
        assert kind is not None  # is_available() has just said so
        found += [f"{kind.type}:{i}" for i in range(torch.accelerator.device_count())]
    return found


def default_device() -> torch.device:
    """What Accelerate would choose by itself."""
    devices = available_devices()
    several = environment.number(os.environ, "WORLD_SIZE", 1) > 1
    if environment.flag(os.environ, "ACCELERATE_USE_CPU") or len(devices) == 1 or (several and devices[1] == "mps:0"):
        return torch.device("cpu")
    return torch.device(devices[1])


def find_device(device: Device | Sequence[Device]) -> torch.device:
    """Return the one device that is meant, or say why there is none."""
    if isinstance(device, (list, tuple)):
        if not device:
            raise ValueError("device=[] names no device; give one, such as 'cpu', or None to let Accelerate choose")
        if len(device) != 1:
            raise ValueError(
                f"device={list(map(str, device))} names {len(device)} devices; training on several needs"
                " MultiGPUAddon: write add_on(MultiGPUAddon). Or give one, such as device='cuda:0'"
            )
        device = device[0]
    there = ", ".join(map(repr, available_devices()))
    try:
        wanted = torch.device(device)  # type: ignore[arg-type]  # anything else is what the except is for
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is not a device; this machine has {there}") from error
    if not any(wanted.type == torch.device(d).type and wanted.index in (None, torch.device(d).index or 0)
               for d in available_devices()):  # fmt: skip
        raise ValueError(f"device {str(wanted)!r} is not there; this machine has {there}")
    return wanted


def resolve_precision(argument: str | None, device: torch.device) -> str:
    """Agree on a precision between the argument and the launch configuration.

    ``accelerate launch`` says 'no' also when nobody asked, so a 'no' from there contradicts nothing.
    """
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    for source, value in (("mixed_precision=", argument), ("the launch configuration's mixed_precision ", configured)):
        if value is not None and value not in PRECISIONS:
            raise ValueError(f"{source}{value!r} is not a precision; write one of {', '.join(map(repr, PRECISIONS))}")
    if argument is not None and configured not in ("no", argument):
        raise ValueError(
            f"mixed_precision={argument!r} contradicts the launch configuration, which says {configured!r};"
            " leave the argument out, or change the configuration"
        )
    precision = argument or configured
    if precision == "fp16" and device.type == "cpu":
        raise ValueError(
            "mixed_precision 'fp16' is not possible on the CPU (Accelerate would silently train in fp32);"
            " write 'bf16', which is, or 'no'"
        )
    return precision


def resolve_accumulation(argument: int | None) -> int:
    """Agree on the number of micro-batches between the argument and the launch configuration; 1 when neither says."""
    configured = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    if argument is None:
        return int(configured) if configured and configured.isdecimal() else 1
    check_number("gradient_accumulation_steps", argument, 1, whole=True)
    if configured not in (None, "", "1", "auto", str(argument)):
        raise ValueError(
            f"gradient_accumulation_steps={argument} contradicts the launch configuration, which says {configured};"
            " leave one of the two out"
        )
    return argument


def _make_room(device: torch.device | None, precision: str) -> None:
    """Forget Accelerate's settings when nobody uses them any more; refuse what contradicts those in use."""
    if not AcceleratorState._shared_state:
        return
    clash = _clash(AcceleratorState(), device, precision)
    if not clash:
        return
    let_go()
    gc.collect()  # a trainer that only waits to be collected contradicts nobody
    # The user's own ones are known to the garbage collector only; it may not list ours (after gc.freeze()).
    in_use = bool(_living) or any(issubclass(type(o), Accelerator) for o in gc.get_objects())
    grouped = torch.distributed.is_initialized()  # the process group, and the device with it, stays to the end
    if in_use or (grouped and _clash(AcceleratorState(), device, None)):
        raise ValueError(
            f"{clash} contradicts another trainer (or Accelerator) in this process: Accelerate keeps one device and one"
            " precision per process. Give both the same, or delete the other first (del trainer)"
        )
    AcceleratorState._reset_state(reset_partial_state=not grouped)
    GradientState._reset_state()


def _clash(state: AcceleratorState, device: torch.device | None, precision: str | None) -> str:
    in_use = state.device
    if device is not None and (device.type != in_use.type or device.index not in (None, in_use.index or 0)):
        return f"device {str(device)!r} (in use: {str(in_use)!r})"
    if precision is not None and precision != state.mixed_precision:
        return f"mixed_precision={precision!r} (in use: {state.mixed_precision!r})"
    return ""


@contextmanager
def _chosen(device: torch.device | None) -> Iterator[None]:
    """Accelerate takes a device only from the environment, and there before all else; it is so while it is read."""
    if device is None:
        yield
        return
    before = os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    if device.type != "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    try:
        yield
    finally:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        if before is not None:
            os.environ["ACCELERATE_TORCH_DEVICE"] = before
