"""What Pythons with a faulty fork do beside gloo's threads."""

import sys
import time

import pytest

from tests.launch.processes import clean, free_port
from zae_engine.launch.fork_fault import fork_fault, wait_for_gloo

# Process 1 comes late, so process 0's callback is there before the exchange is done: gloo's thread runs it, and is busy
# (without the interpreter's lock) when process 0 forks.
SCRIPT = """
import os, threading, time
import torch
import torch.distributed as dist
from zae_engine.launch import fork_fault

torch.set_num_threads(1)
dist.init_process_group("gloo")
if dist.get_rank():
    time.sleep(0.5)
    dist.all_reduce(torch.ones(1))
else:
    started, over = threading.Event(), []

    def busy(future):
        started.set()
        for _ in range(8):
            torch.ones(600, 600) @ torch.ones(600, 600)
        over.append(threading.get_native_id())

    if "GUARDED" in os.environ:
        os.register_at_fork(before=fork_fault.wait_for_gloo)
    dist.all_reduce(torch.ones(1), async_op=True).get_future().then(busy)
    assert started.wait(20)
    if not (child := os.fork()):
        os._exit(0)
    print("over" if over else "busy", threading.get_native_id() in over)
    os.waitpid(child, 0)
    while not over:
        time.sleep(0.01)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("guarded", [False, True])
def test_a_fork_waits_until_gloo_s_threads_sleep(nursery, guarded):
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": 2}
    world |= {"GUARDED": 1} if guarded else {}
    both = [nursery.begin("-c", SCRIPT, env=clean(**world, RANK=rank)) for rank in range(2)]
    done = [process.wait() for process in both]
    assert [one.returncode for one in done] == [0, 0], done
    assert done[0].stdout == ("over False\n" if guarded else "busy False\n")


@pytest.mark.parametrize(
    ("version", "mended"),
    [((3, 11, 7), "3.11.10"), ((3, 11, 9), "3.11.10"), ((3, 10, 14), "3.10.15"), ((3, 11, 10), None),
     ((3, 10, 15), None), ((3, 12, 0), None), ((3, 13, 1), None), ((4, 10, 0), None)],
)  # fmt: skip
def test_the_versions_with_the_fault(version, mended):
    fault = fork_fault(version, "linux")
    assert (fault is None) == (mended is None)
    assert mended is None or f"Python {mended} has this mended" in fault
    assert fork_fault(version, "darwin") is None


@pytest.mark.skipif(fork_fault() is None, reason="this Python has no such fault")
def test_the_guard_is_registered_once_and_only_among_several_processes(nursery):
    script = (
        "import os; found = []; os.register_at_fork = lambda **hooks: found.append(hooks.get('before'))\n"
        "from zae_engine.trainer.processes.device import make_accelerator\n"
        "from zae_engine.launch.fork_fault import wait_for_gloo\n"
        "for _ in range(2): make_accelerator('cpu')\n"
        "print(found.count(wait_for_gloo))"
    )
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    both = [nursery.begin("-c", script, env=clean(**world, RANK=rank, LOCAL_RANK=rank)) for rank in range(2)]
    alone = nursery.begin("-c", script, env=clean())
    assert [process.wait().stdout for process in (*both, alone)] == ["1\n", "1\n", "0\n"]


def test_this_process_is_not_held_up_without_gloo():
    before = time.monotonic()
    wait_for_gloo()
    assert time.monotonic() - before < 0.5
