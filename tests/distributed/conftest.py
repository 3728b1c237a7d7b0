import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.cases import cases
from tests.family import run_in_time

ROOT = Path(__file__).parents[2]
STARTERS = {
    1: [sys.executable],
    2: [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "accelerate_configs/cpu_2.yaml",
        "--main_process_port",
        "0",
    ],
    3: ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"],
    4: ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4"],
}


def start(processes: int, *arguments: str, **settings) -> subprocess.CompletedProcess:
    """Run a module on so many processes, as a user starts it."""
    command = [sys.executable, *(STARTERS[processes] if processes > 1 else []), *arguments]
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "RANK", "WORLD", "MASTER"))}
    environment = {**outside, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    return run_in_time(command, **{"env": environment, "cwd": ROOT, "timeout": 280} | settings)


def wanted(processes: int, name: str) -> bool:
    """Four processes are there for the shards; three share out what they divide."""
    if name == "unused-unsaid":  # ends its processes
        return False
    if name.startswith("loader") and name.endswith("1"):
        return processes < 3
    if name.startswith("shards"):
        return processes != 3 or name.endswith("12") or name == "shards-few"
    return processes == 2 if name.startswith("written") else processes < 4


class Results:
    """What every case gave on every number of processes; each number is started once, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run = functools.cache(self._start)

    def _start(self, processes: int) -> Path:
        folder = self.folder / f"on {processes}"
        folder.mkdir(exist_ok=True)
        command = "-m", "tests.distributed.worker", str(folder)
        names = [name for name in cases() if wanted(processes, name)]
        done = start(processes, *command, *names)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return folder

    def __call__(self, name: str, processes: int) -> list[dict]:
        """What each process found."""
        folder = self._run(processes)
        return [torch.load(folder / f"{name}.{rank}.pt", weights_only=False) for rank in range(processes)]


@pytest.fixture(scope="session")
def results(starts_processes, tmp_path_factory) -> Results:
    return Results(tmp_path_factory.mktemp("distributed"))
