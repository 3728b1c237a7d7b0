"""Start one or several processes on this machine that measure together, and read what the first of them found.

``start("tests.benchmarks.processes", 2, ...)`` calls that module's ``measure(...)`` in each of them.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed

ROOT = Path(__file__).resolve().parents[2]
# What another launcher may have left.
FOREIGN = ("ACCELERATE_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_", "SLURM_", "OMPI_", "PMI_")
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def start(module: str, processes: int, **options: Any) -> Any:
    """Call ``module.measure(**options)`` in `processes` processes of one group.

    Parameters
    ----------
    module : str
        Its full name.
    processes : int
        With 1 there is no group.
    **options
        What JSON can hold.

    Returns
    -------
    Any
        What process 0 returned.
    """
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    with TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, *several, "-m", f"{__package__}.group", module, json.dumps(options), str(file)]
        subprocess.run(command, cwd=ROOT, env=clean_environment(), check=True)
        return json.loads(file.read_text(encoding="utf-8"))


def clean_environment() -> dict[str, str]:
    """The environment with one thread a process, without accelerators and without another launcher's words."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN) and k not in NAMES}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def everyone(value: Any) -> list[Any]:
    """Every process's value; they wait for each other here."""
    if not distributed.is_initialized():
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def main(module: str, options: str, file: str) -> None:
    """Be one of the processes."""
    torch.set_num_threads(1)
    several = "WORLD_SIZE" in os.environ
    if several:
        distributed.init_process_group("gloo")
    measure = import_module(module).measure
    gc.freeze()  # what the imports left would take longer to look through, before each block, than a block takes
    found = measure(**json.loads(options))
    if int(os.environ.get("RANK", "0")) == 0:
        Path(file).write_text(json.dumps(found), encoding="utf-8")
    if several:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
