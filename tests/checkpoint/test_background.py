"""Jobs beside the main thread, across forks and at the end of a program."""

import os
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from zae_engine.checkpoint.background import Background

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # which is what is tried


def test_a_job_runs_beside():
    background, go, seen = Background(), threading.Event(), []
    assert not background.busy
    background.submit(lambda: (go.wait(30), seen.append(threading.current_thread())))
    assert background.busy
    with pytest.raises(RuntimeError, match="a job is running"):
        background.submit(go.set)
    assert background.wait(0.05) >= 0.05
    assert background.busy
    go.set()
    assert 0 < background.wait() < 30
    assert not background.busy
    assert seen[0] is not threading.current_thread()
    assert background.wait() == 0
    background.submit(seen.clear)
    background.close()
    assert not seen


@pytest.mark.parametrize("error", [OSError("disk is full"), SystemExit(3), KeyboardInterrupt()])
def test_a_failure_is_kept_until_it_is_asked_for_once(error, capsys):
    def job():
        raise error

    background = Background()
    background.submit(job)
    background.wait()
    assert background.failure() is error
    assert background.failure() is None
    background.submit(job)
    background.wait()
    background.submit(lambda: None)
    background.wait()
    assert background.failure() is None
    assert capsys.readouterr().err == ""


class Asking(Dataset):
    def __init__(self, background):
        self.background = background

    def __len__(self):
        return 4

    def __getitem__(self, index):
        busy, waited, failure = self.background.busy, self.background.wait(), self.background.failure()
        done = []
        self.background.submit(lambda: done.append(1))  # works in the child, too
        self.background.wait()
        return torch.tensor([busy, waited, failure is not None, len(done)], dtype=torch.float64)


@pytest.mark.usefixtures("starts_processes")
def test_a_forked_worker_has_no_job():
    background, go = Background(), threading.Event()
    background.submit(lambda: go.wait(60))
    try:
        rows = torch.cat(
            list(DataLoader(Asking(background), num_workers=2, multiprocessing_context="fork", timeout=30))
        )
        assert background.busy
    finally:
        go.set()
    background.wait()
    assert rows.tolist() == [[0, 0, 0, 1]] * 4


@pytest.mark.usefixtures("starts_processes")
def test_many_forks_in_the_middle_of_jobs_end():
    background, stop = Background(), threading.Event()

    def job():
        while not stop.wait(0.0001):
            torch.ones(100).sum()

    background.submit(job)
    try:
        for _ in range(20):
            if (child := os.fork()) == 0:
                os._exit(3 if background.busy else 0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
    background.close()


PROGRAM = """
import atexit, sys, time
import torch.distributed as dist
from zae_engine.checkpoint.background import Background

path, end = sys.argv[1:]
dist.init_process_group("gloo", init_method="file://" + path + ".store", rank=0, world_size=1)
background = Background()

def job():
    for count in range(20):
        with open(path, "a") as file:
            file.write(f"{count} {dist.is_initialized()}\\n")
        time.sleep(0.02)
    if end == "failing":
        raise OSError("no space")

background.submit(job)
atexit.register(lambda: print("handler", background.busy))
atexit.register(dist.destroy_process_group)
exec({"exit": "sys.exit(5)", "error": "1 / 0"}.get(end, "pass"))
"""


@pytest.mark.parametrize(("end", "code"), [("exit", 5), ("error", 1), ("failing", 0)])
def test_a_job_is_finished_before_the_program_ends(nursery, tmp_path, end, code):
    path = tmp_path / "out"
    ended = nursery.run("-c", PROGRAM, path, end)
    assert ended.returncode == code, ended.stderr
    assert path.read_text() == "".join(f"{count} True\n" for count in range(20))
    assert (
        ended.stdout.splitlines()[-1] == "handler False"
    )  # exit handlers, the process group's too, come after the job
    assert ("the last checkpoint could not be written" in ended.stderr) == (end == "failing")
    assert ("OSError: no space" in ended.stderr) == (end == "failing")


def test_a_job_costs_little():
    background, took = Background(), []
    for _ in range(50):
        started = time.perf_counter()
        background.submit(lambda: None)
        took.append(time.perf_counter() - started)
        background.wait()
    assert min(took) < 0.005
