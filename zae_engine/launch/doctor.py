"""What a launch would find here, and whether processes can reach each other."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from .._version import __version__
from .machine import Machine

_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
_PREFIXES = ("SLURM_", "ACCELERATE_", "MASTER_", "PET_", "TORCHELASTIC_", "NCCL_", "GLOO_", "FSDP_")


@dataclass(frozen=True)
class Reduction:
    """How the all-reduce went.

    Attributes
    ----------
    processes : int
    backend : str
        ``"gloo"`` on CPUs, ``"nccl"`` on NVIDIA's GPUs.
    seconds : float
        With the start of the processes.
    problem : str
        Empty when it worked.
    """

    processes: int
    backend: str
    seconds: float
    problem: str = ""

    def __str__(self) -> str:
        what = f"all-reduce over {self.processes} process{'es' * (self.processes > 1)} ({self.backend})"
        if not self.problem:
            return f"{what}: works, {self.seconds:.1f} s with the start of the processes"
        return "\n".join([f"{what}: FAILED after {self.seconds:.1f} s", f"  {self.problem}", *self._advice()])

    def _advice(self) -> Iterator[str]:
        yield "What to do:"
        if self.backend == "nccl":
            yield "  run it again with NCCL_DEBUG=INFO; the last lines name the step that failed"
            yield "  try NCCL_P2P_DISABLE=1, then NCCL_IB_DISABLE=1: the one that helps names the faulty link"
            yield "  in a container, give it shared memory (docker run --ipc=host, or --shm-size=8g)"
        interface = "NCCL_SOCKET_IFNAME" if self.backend == "nccl" else "GLOO_SOCKET_IFNAME"
        yield f"  see that {interface} is unset, or names a network interface of this machine:" + _interfaces()
        yield f"  see that the host name {socket.gethostname()!r} resolves to an address of this machine (/etc/hosts)"


def describe_versions() -> dict[str, str]:
    """Return the versions of what a training depends on."""
    import accelerate
    import torch

    found = {
        "zae-engine": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "accelerate": str(accelerate.__version__),
        "CUDA": str(torch.version.cuda or "none in this build of torch"),
    }
    if torch.cuda.is_available() and torch.distributed.is_nccl_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return found


def describe_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables that decide about a launch."""
    return {k: v for k, v in sorted(environ.items()) if k in _VARIABLES or k.startswith(_PREFIXES)}


def find_config() -> str | None:
    """Return the configuration that Accelerate takes when none is given; None when there is none."""
    from accelerate.commands.config.config_args import default_config_file

    return str(default_config_file) if os.path.isfile(default_config_file) else None


def try_reduce(machine: Machine, timeout: float = 60.0) -> Reduction:
    """Sum one number over as many processes as there are devices; over two where there are none.

    Parameters
    ----------
    timeout : float
        Seconds that the processes wait for each other.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    processes, backend = (len(machine.visible), "nccl") if machine.kind == "cuda" else (2, "gloo")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        start_method="spawn",
        max_restarts=0,
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its tracebacks are of itself
    start = time.perf_counter()
    try:
        sums = elastic_launch(config, reduce_ranks)(backend, timeout)
    except ChildFailedError as error:
        return Reduction(processes, backend, time.perf_counter() - start, _first_problem(error))
    expected = processes * (processes + 1) // 2
    problem = "" if set(sums.values()) == {expected} else f"the sums are {sums}, not {expected}"
    return Reduction(processes, backend, time.perf_counter() - start, problem)


def reduce_ranks(backend: str, timeout: float) -> float:
    """Return the sum of all processes' numbers, counted from 1; runs in each of them."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        value = torch.tensor([rank + 1.0], device=device)
        dist.all_reduce(value)
        return value.item()
    finally:
        dist.destroy_process_group()


def _first_problem(error: BaseException) -> str:
    failures = getattr(error, "failures", {})
    messages = [getattr(f, "message", "") for f in failures.values()]
    texts = [m.get("message", "") if isinstance(m, dict) else str(m) for m in messages]
    return next((t.strip().split("\n")[0] for t in texts if t), str(error).split("\n")[0])


def _interfaces() -> str:
    return " " + ", ".join(name for _, name in socket.if_nameindex()) if hasattr(socket, "if_nameindex") else ""
