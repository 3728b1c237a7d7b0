"""What this machine has: its accelerators, its CPU cores, the precisions that they compute in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

# Asked in a process of its own: a launcher that opens the GPUs holds memory on them as long as the run lasts.
_PROBE = """
import json, torch
print(json.dumps([(torch.version.hip is not None, *torch.cuda.get_device_capability(i))
                  for i in range(torch.cuda.device_count())]))
"""
_KINDS = {"xpu": "MULTI_XPU", "npu": "MULTI_NPU", "mlu": "MULTI_MLU", "musa": "MULTI_MUSA", "hpu": "MULTI_HPU"}


@dataclass(frozen=True)
class Machine:
    """The devices that a launch can use.

    Attributes
    ----------
    kind : str
        ``"cpu"``, ``"cuda"``, ``"mps"`` and so on.
    visible : tuple of str
        The accelerators that may be used, as ``CUDA_VISIBLE_DEVICES`` names them; empty without any.
    cores : int
        CPU cores.
    precisions : tuple of str
        What every one of the devices computes in.
    """

    kind: str = "cpu"
    visible: tuple[str, ...] = ()
    cores: int = 1
    precisions: tuple[str, ...] = ("no", "bf16")

    @property
    def several(self) -> str:
        """The ``distributed_type`` of several processes on such devices."""
        return _KINDS.get(self.kind, "MULTI_GPU")

    def without_accelerators(self) -> Machine:
        """Return this machine as one that has a CPU only."""
        return Machine(cores=self.cores)

    def describe(self) -> str:
        """Say in a few words what there is."""
        if not self.visible:
            return f"no accelerator, {self.cores} CPU cores"
        return f"{len(self.visible)} {self.kind} device{'s' * (len(self.visible) > 1)} ({', '.join(self.visible)})"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def look(environ: Mapping[str, str] = os.environ) -> Machine:
    """Look at this machine's devices, in a way that leaves this process free to fork; not at their precisions."""
    import torch
    from accelerate.utils import patch_environment

    # Counting by the CUDA runtime would spoil CUDA in forked processes.
    with patch_environment(pytorch_nvml_based_cuda_check="1"):
        found = torch.accelerator.current_accelerator(check_available=True)
        count = torch.accelerator.device_count() if found is not None else 0
    if found is None:
        return Machine(cores=cores())
    visible = name_visible(count, environ.get("CUDA_VISIBLE_DEVICES") if found.type == "cuda" else None)
    return Machine(found.type, visible, cores())


def this_machine(environ: Mapping[str, str] = os.environ) -> Machine:
    """Look at this machine, and at what its devices compute in; no GPU is opened by this process."""
    machine = look(environ)
    if not machine.visible:
        return machine
    return replace(machine, precisions=_ask_cuda() if machine.kind == "cuda" else ("no", "bf16", "fp16"))


def name_visible(count: int, variable: str | None) -> tuple[str, ...]:
    """Name the visible devices as ``CUDA_VISIBLE_DEVICES`` does; count from 0 when it is not set."""
    named = tuple(name.strip() for name in (variable or "").split(",") if name.strip())
    return named[:count] if named else tuple(map(str, range(count)))


def list_precisions(capabilities: list[tuple[bool, int, int]]) -> tuple[str, ...]:
    """Return what all of these devices compute in.

    Parameters
    ----------
    capabilities : list of (bool, int, int)
        Of each device: whether it is AMD's, and its compute capability. NVIDIA's compute in bf16 from 8.0 on and in
        fp8 from 8.9 on (CUDA C++ Programming Guide, "Compute Capabilities").
    """
    weakest = min(((9, 0) if amd else (major, minor)) for amd, major, minor in capabilities)
    bf16 = ("bf16",) if weakest >= (8, 0) else ()
    fp8 = ("fp8",) if weakest >= (8, 9) and not any(amd for amd, _, _ in capabilities) else ()
    return ("no", "fp16", *bf16, *fp8)


def _ask_cuda() -> tuple[str, ...]:
    answer = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120)
    capabilities = json.loads(answer.stdout) if answer.returncode == 0 else []
    return list_precisions(capabilities) if capabilities else ("no", "fp16", "bf16")
