"""Processes of which some never come."""

import time

import pytest

from tests.launch.processes import clean, free_port

SCRIPT = """
import sys, warnings
from datetime import timedelta
from accelerate.utils import InitProcessGroupKwargs
from zae_engine.launch import first_meeting
from zae_engine.trainer.processes.device import make_accelerator

warnings.simplefilter("ignore")
first_meeting.SLOW = float(sys.argv[1])
make_accelerator("cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=float(sys.argv[2])))])
"""


def alone(nursery, rank, slow, limit, **more):
    """One process that believes to be one of several."""
    world = {"WORLD_SIZE": 7, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 7, "MASTER_ADDR": "127.0.0.1"}
    env = clean(MASTER_PORT=free_port(), **world, **more)
    return nursery.begin("-c", SCRIPT, slow, limit, env=env)


@pytest.mark.parametrize("rank", [0, 2])
def test_whoever_waits_says_for_whom_and_what_to_unset(nursery, rank):
    process = alone(nursery, rank, 0.5, 1000)
    begin = time.monotonic()
    try:
        process.until(lambda: "\n" in process.err.read_text())
    finally:
        process.kill()
    said = process.err.read_text()
    assert time.monotonic() - begin < 60
    others = "1, 2, 3, 4 and 2 more" if rank == 0 else "0, 1, 3, 4 and 2 more"
    begins = f"zae-engine: for 0.5 s, process {rank} of 7 has waited for processes {others} at 127.0.0.1:"
    assert said.startswith(begins)
    assert "unset RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT LOCAL_WORLD_SIZE\n" in said


def test_what_to_unset_has_what_torchs_variables_are_made_from(nursery):
    world = {"OMPI_COMM_WORLD_SIZE": 2, "OMPI_COMM_WORLD_RANK": 0, "OMPI_COMM_WORLD_LOCAL_RANK": 0}
    done = nursery.run("-c", SCRIPT, "100", "2", env=clean(**world))
    assert done.returncode == 1
    left = done.stderr.partition("MASTER_PORT")[2].split()
    assert set(world) <= set(left), done.stderr


@pytest.mark.parametrize("rank", [0, 2])
def test_an_end_of_the_wait_is_explained(nursery, rank):
    done = alone(nursery, rank, 100, 2).wait()
    assert done.returncode == 1
    assert f"LaunchError: the processes have not met: process {rank} of 7 has waited" in done.stderr
