"""From ``device=``, ``mixed_precision=`` and the launch environment to an Accelerator."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin

from .checks import check_number

Device = str | torch.device

PRECISIONS = ("no", "bf16", "fp16", "fp8")

_living: weakref.WeakSet[Accelerator] = weakref.WeakSet()


def make_accelerator(
    device: Device | Sequence[Device] | None = None, mixed_precision: str | None = None
) -> Accelerator:
    """Return a new Accelerator for one trainer.

    Parameters
    ----------
    device : str, torch.device, sequence of one of these, or None
        None lets Accelerate choose.
    mixed_precision : {'no', 'bf16', 'fp16', 'fp8'} or None
        None takes the launch configuration's, else 'no'.

    Raises
    ------
    ValueError
        When the device is not there, the precision cannot be had on it, or either contradicts the launch
        configuration or another trainer in this process.
    """
    wanted = None if device is None else find_device(device)
    precision = resolve_precision(mixed_precision, wanted or default_device())
    _make_room(wanted, precision)
    fresh = not AcceleratorState._shared_state
    with _chosen(wanted):
        accelerator = Accelerator(
            cpu=wanted is not None and wanted.type == "cpu",
            mixed_precision=precision if fresh else None,
            # The plugin, since the environment beats the plain argument; micro-batches are weighted by the trainer.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            step_scheduler_with_optimizer=False,
        )
    if clash := _clash(accelerator.state, wanted, None):
        raise ValueError(f"{clash} contradicts what Accelerate chose earlier in this process; make the trainer first")
    _living.add(accelerator)
    return accelerator


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
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return torch.device("cpu" if use_cpu or len(devices) == 1 else devices[1])


def find_device(device: Device | Sequence[Device]) -> torch.device:
    """Return the one device that is meant, or say why there is none."""
    if isinstance(device, (list, tuple)):
        if not device:
            raise ValueError("device=[] names no device; give one, such as 'cpu', or None to let Accelerate choose")
        if len(device) != 1:
            raise ValueError(
                f"device={list(map(str, device))} names {len(device)} devices; training on several needs MultiGPUAddon,"
                " which this version does not have yet. Give one, such as device='cuda:0'"
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
    gc.collect()  # a trainer that only waits to be collected contradicts nobody
    # The user's own ones are known to the garbage collector only; it may not list ours (after gc.freeze()).
    in_use = bool(_living) or any(issubclass(type(o), Accelerator) for o in gc.get_objects())
    if in_use or torch.distributed.is_initialized():
        raise ValueError(
            f"{clash} contradicts another trainer (or Accelerator) in this process: Accelerate keeps one device and one"
            " precision per process. Give both the same, or delete the other first (del trainer)"
        )
    AcceleratorState._reset_state(reset_partial_state=True)
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
    """Accelerate takes a device only from the environment; it is put there for as long as it is read."""
    if device is None or device.type == "cpu":
        yield
        return
    before = os.environ.get("ACCELERATE_TORCH_DEVICE")
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    try:
        yield
    finally:
        if before is None:
            del os.environ["ACCELERATE_TORCH_DEVICE"]
        else:
            os.environ["ACCELERATE_TORCH_DEVICE"] = before
