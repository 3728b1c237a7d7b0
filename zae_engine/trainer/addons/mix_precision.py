"""0.7.6's way to choose a precision, translated into ``mixed_precision=``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import patch_environment

from ...launch.machine import this_machine
from ...launch.start import interactive
from ..compose import AddOnBase
from ..options import fixed
from ..processes.device import default_device, find_device
from ..refusals import check_choice

_NAMES = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}


class PrecisionMixerAddon(AddOnBase):
    """Chooses a precision by name, by preference, or by what the device can do.

    Parameters
    ----------
    precision : {'auto', 'fp32', 'fp16', 'bf16'} or a sequence of them
        'auto' takes bf16 where the device has it, else fp16 on an accelerator, else fp32; of a sequence, the first
        that the device has.

    Examples
    --------
    >>> Mixed = MyTrainer.add_on(PrecisionMixerAddon)
    >>> trainer = Mixed(model, device="cuda", optimizer=optimizer, precision=["bf16", "fp16"])
    """

    precision: str | Sequence[str] = fixed()

    def __init__(
        self, model: Any, device: Any = None, *args: Any, precision: str | Sequence[str] = "auto", **kwargs: Any
    ) -> None:
        kwargs["mixed_precision"] = kwargs.get("mixed_precision") or choose(precision, device)
        super().__init__(model, device, *args, **kwargs)
        self.precision = precision


def choose(precision: str | Sequence[str], device: Any) -> str:
    """Return the first precision of the list that `device` has, in Accelerate's spelling."""
    listed = isinstance(precision, Iterable) and not isinstance(precision, str)
    asked: list[Any] = [*precision] if listed else [precision]  # be it what another trainer takes, 16 say
    for name in asked:
        check_choice("precision", name, ("auto", *_NAMES))
    # Whatever stands behind 'auto' is never reached: it finds one on any device.
    named = asked.index("auto") if "auto" in asked else len(asked)
    wanted = [*asked[:named], "bf16", "fp16", "fp32"] if named < len(asked) else asked
    several = isinstance(device, (list, tuple)) and len(device) > 1  # MultiGPUAddon's, and all of one kind
    forks = several and interactive()
    with patch_environment(pytorch_nvml_based_cuda_check="1") if forks else nullcontext():
        there = default_device() if device is None else find_device(device[:1] if several else device)
        possible = [name for i, name in enumerate(wanted) if _has(there, name, i >= named, forks)]
    if not possible:
        raise ValueError(f"precision={precision!r}: {str(there)!r} has none of these; write 'auto', or 'fp32'")
    return _NAMES[possible[0]]


def _has(device: torch.device, name: str, auto: bool, forks: bool) -> bool:
    if device.type == "cpu":
        # bf16 runs on any CPU, but few have it in hardware, so it is not chosen unasked.
        return name == "fp32" or (name == "bf16" and not auto)
    if device.type == "cuda" and name == "bf16":
        if forks:  # a GPU that this process opens is lost for those that are forked from it
            return "bf16" in this_machine().precisions
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True
