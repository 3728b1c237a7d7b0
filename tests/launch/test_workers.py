"""Real forked workers: what they return, print and raise, and that none of them is left."""

import functools
import gc
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed

from zae_engine.launch import forked_workers
from zae_engine.launch.environment import LaunchError
from zae_engine.launch.forked_workers import WorkerError, check_fork, run_workers

pytestmark = pytest.mark.usefixtures("starts_processes")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _nobody_is_left(monkeypatch):
    monkeypatch.setattr(forked_workers, "_GRACE", 1.0)
    before = psutil.Process().children(recursive=True)
    yield
    assert psutil.Process().children(recursive=True) == before
    assert "RANK" not in os.environ


def run(function, *arguments, count=2, **environ):
    return run_workers(functools.partial(function, *arguments), count, "cpu", environ)


def rank():
    return int(os.environ["RANK"])


def reduce():
    torch.distributed.init_process_group("gloo")
    total = torch.tensor([rank() + 1.0])
    torch.distributed.all_reduce(total)
    return {"total": total, "rank": rank(), "threads": torch.get_num_threads(), "mine": os.environ["MINE"]}


def test_workers_find_each_other_and_the_first_ones_value_comes_back():
    value = run(reduce, count=3, MINE="x", OMP_NUM_THREADS="8")
    assert value == {"total": torch.tensor([6.0]), "rank": 0, "threads": 1, "mine": "x"}


def test_it_can_be_done_again_after_this_process_has_computed_with_threads():
    torch.set_num_threads(2)
    weight = torch.randn(300, 300, requires_grad=True)
    (weight @ weight).exp().sum().backward()
    assert torch.equal(run(lambda: weight @ weight, count=1), weight @ weight)
    assert run(rank) == 0


def speak(length):
    print("said by", rank())
    os.system("echo by a child")
    print("é" * length, file=sys.stderr)


def test_what_they_print_is_shown_on_this_process_s_streams(capsys):
    run(speak, 100_000)
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["by a child", "by a child", "said by 0", "said by 1"]
    assert err.count("é") == 200_000
    assert set(err) == {"é", "\n"}


class RefusedError(Exception):
    """Cannot be made from its message alone, so it does not come out of a pickle."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail(kind, *arguments):
    if rank() == 1:
        raise kind(*arguments)
    time.sleep(60)


def test_an_error_comes_back_as_it_was_with_the_workers_traceback():
    began = time.monotonic()
    with pytest.raises(KeyError, match="bad thing") as caught:
        run(fail, KeyError, "bad thing")
    assert isinstance(caught.value.__cause__, WorkerError)
    assert "process 1 of 2 failed" in str(caught.value.__cause__)
    assert "raise kind(*arguments)" in str(caught.value.__cause__)
    assert time.monotonic() - began < 20


def test_an_error_that_cannot_be_sent_is_told():
    with pytest.raises(WorkerError, match=r"(?s)process 1 of 2 failed.*RefusedError: this and that"):
        run(fail, RefusedError, "this", "that")


def late():
    time.sleep(0.3 * (1 - rank()))
    raise ValueError(f"by {rank()}")


def test_of_several_errors_the_first_is_raised():
    with pytest.raises(ValueError, match="by 1"):
        run(late)


def leave(code):
    if rank() == 1:
        time.sleep(0.2)
        sys.exit(code) if code > 0 else os.kill(os.getpid(), -code)
    time.sleep(60)


@pytest.mark.parametrize(("code", "how"), [(3, "exit code 3"), (-9, "SIGKILL")])
def test_a_worker_that_only_ends_is_an_error(code, how):
    with pytest.raises(WorkerError, match=f"process 1 of 2 ended with {how}, and the others with it"):
        run(leave, code)


def part():
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
    if rank() == 1:
        os.kill(os.getpid(), 9)
    torch.distributed.barrier()  # fails, since the other is gone


def test_an_error_that_follows_from_another_s_end_does_not_hide_it():
    with pytest.raises(WorkerError, match="process 1 of 2 ended with SIGKILL"):
        run(part)


def test_a_value_that_cannot_be_sent_is_an_error():
    with pytest.raises((AttributeError, TypeError), match=r"pickle|local object"):
        run(lambda: lambda: 0)


def interrupted():
    raise KeyboardInterrupt


def test_interrupted_workers_bring_nothing():
    with pytest.raises(WorkerError, match="process 0 of 2 was interrupted"):
        run(interrupted)


def wrong():
    raise ValueError("wrong")


def collect():
    gc.collect()
    time.sleep(0.1)


def test_workers_leave_alone_what_waits_to_be_collected():
    gc.disable()
    try:
        for _ in range(3):
            try:
                run(wrong)
            except ValueError as error:
                cycle = [error]
                cycle.append(cycle)
                del cycle, error
            run(collect)
    finally:
        gc.enable()


def forked():
    raise RuntimeError("Unable to handle autograd's threading in combination with fork-based multiprocessing")


def test_what_torch_says_about_forks_gets_its_remedy():
    # In an interpreter of its own: of a build for CUDA, another test of this process may have asked for the devices.
    code = "from tests.launch.test_workers import *; run_workers(forked, 1, 'cuda', {})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    cause, _, said = done.stderr.partition("was the direct cause of the following exception")
    assert "fork-based multiprocessing" in cause
    assert re.search(r"LaunchError: .*or called backward.*restart the kernel", said)
    with pytest.raises(RuntimeError, match="fork-based multiprocessing"):
        run(forked)


def test_devices_that_do_not_take_a_fork_are_refused():
    with pytest.raises(LaunchError, match="which xpu does not support; write the trainer into a file"):
        check_fork("xpu")
    check_fork("cpu")
