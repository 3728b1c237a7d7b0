"""Start real processes, as launchers do, and collect what they say."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from tests.family import stacks

ROOT = Path(__file__).parents[2]
PROBE = Path(__file__).with_name("probe.py")
LAUNCHERS = ("ACCELERATE_", "SLURM_", "OMPI_", "PMI_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_", "ZAE_", "FORK_")
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]


def clean(**more):
    """The environment without any launcher's word, and with `more`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS) and k not in NAMES}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in more.items()}


def start(command, env=None, cwd=None, **options):
    pipe = subprocess.PIPE
    return subprocess.Popen(
        list(map(str, command)), env=env or clean(), cwd=cwd, stdout=pipe, stderr=pipe, text=True, **options
    )


def finish(*processes, timeout=90):
    """Wait for all of them; return (exit code, stdout, stderr) of each. None of them survives."""
    try:
        outputs = [p.communicate(timeout=timeout) for p in processes]
    except subprocess.TimeoutExpired:
        there = [psutil.Process(p.pid) for p in processes if p.poll() is None]
        those = stacks([one for p in there for one in (p, *p.children(recursive=True))])
        raise AssertionError(f"not done after {timeout:g} s\n{those}") from None
    finally:
        for p in processes:
            if p.poll() is None:
                kill(p)
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def kill(process):
    """End a launcher that hangs, and those whom it has started."""
    for one in psutil.Process(process.pid).children(recursive=True):
        one.kill()
    process.kill()
    process.communicate()


def run(*command, env=None, cwd=None):
    return finish(start(command, env, cwd))[0]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rows(text):
    """What the probes printed, the first rank first."""
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return sorted(found, key=lambda row: row.get("rank", -1))
