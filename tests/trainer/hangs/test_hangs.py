"""Whoever waits says for whom: real processes, of which one hangs, is stopped, killed, or fails."""

import os
import re
import signal
import sys
import threading
import time

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

from tests.helpers import PlainTrainer, make
from tests.launch.processes import clean, finish, free_port, start
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.hangs.loader_workers import lost_workers
from zae_engine.trainer.hangs.peer_store import Peers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("starts_processes")]

COMMAND = [sys.executable, "-m", "tests.trainer.hangs.waiting_run"]
PLACE = r"tests/trainer/hangs/waiting_run\.py:\d+, in "
WAITS = r"process 0 \(pid \d+\) is in the exchange of gradients, in step \d+, and waits for process 1 \(pid \d+\)"
WORKER = r"worker \d \(pid \d+\) of its loader, which "
# By its end, which is seen with the next batch, or by torch's signal handler, which may come first.
KILLED = rf"(.* has lost {WORKER}was killed by SIGKILL|DataLoader worker \(pid \d+\) is killed)"
LOST = r"process 0 of 2 \(pid \d+\) has lost process 1 \(pid \d+\), which has failed in step \d+: "


def on_two(what, limit, waiting=0):
    """What the process that waits says, and the one that is waited for."""
    world = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    both = [start([*COMMAND, what, limit], clean(**world, RANK=i, LOCAL_RANK=i)) for i in range(2)]
    waits, hangs = both[waiting], both[1 - waiting]
    try:
        ((code, _, said),) = finish(waits)
        assert code == 1, said
    finally:
        family = [hangs, *psutil.Process(hangs.pid).children(recursive=True)]
        for one in family:
            one.kill()
        _, other = hangs.communicate()
    return said, other


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("code", rf"is in .*{PLACE}train_step, in step 12"),
        ("stopped", r"is stopped \(`kill -CONT \d+` lets it go on\)"),
        ("dataset", rf"is waiting for {WORKER}is in .*{PLACE}__getitem__, in step \d+"),
    ],
)
def test_the_process_that_does_not_come_is_named_and_ends_the_run(what, words):
    said, _ = on_two(what, "6s")
    sentence = f"nothing has gone on: {WAITS}, which {words}$"
    assert re.search(rf"^zae-engine: for [3-6] s {sentence}", said, re.MULTILINE), said
    assert re.search(rf"RuntimeError: for too long {sentence}", said, re.MULTILINE), said


def test_a_process_that_hangs_between_two_runs_is_named():
    said, _ = on_two("between", "8s")
    place = r"(is in .*, outside of the epochs), and waits for process 1 \(pid \d+\), which is in "
    sentence = rf"nothing has gone on: process 0 \(pid \d+\) {place}.*{PLACE}main, outside of the epochs$"
    assert re.search(rf"^zae-engine: for [6-8] s {sentence}", said, re.MULTILINE), said
    assert re.search(rf"RuntimeError: for too long {sentence}", said, re.MULTILINE), said


def test_the_first_process_is_named_though_what_it_keeps_for_all_does_not_answer():
    said, _ = on_two("first stopped", "6s", waiting=1)
    assert re.search(r"RuntimeError: .* process 0 \(pid \d+\), which is stopped \(`kill -CONT", said), said


@pytest.mark.slow  # each starts two processes, as those above
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("raised", "ArithmeticError: the user's own mistake"),
        ("killed", "RuntimeError: " + KILLED),
    ],
)
def test_a_process_that_fails_is_named_by_the_others(what, words):
    said, other = on_two(what, "60s")
    assert re.search(LOST + words, said), said
    if what == "killed":
        assert re.search(r"RuntimeError: process 1 of 2 \(pid \d+\) has lost (a )?worker .*of its loader", other)


class Hangs:
    """A dataset that works in the first process only."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        if get_worker_info() is not None:
            time.sleep(600)
        return torch.ones(8), torch.tensor(0)


def test_a_loader_s_worker_is_named_and_ends_a_run_of_one_process(capsys):
    where = rf"{WORKER}is in .*test_hangs\.py:\d+, in __getitem__"
    with pytest.raises(RuntimeError, match=rf"this process has waited in step 1 for {where}; max_wait=2 s is over"):
        make(max_wait="2s").run(1, DataLoader(Hangs(), batch_size=4, num_workers=1))
    assert re.search(rf"nothing has gone on: this process is waiting for {where}, in step 1\n", capsys.readouterr().err)


class Killed:
    """A dataset whose workers end in the middle."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        if get_worker_info() is not None and i == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.ones(8), torch.tensor(0)


def test_workers_that_are_gone_are_told():
    iterator = iter(DataLoader(Killed(), batch_size=4, num_workers=1))
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(iterator)
    assert re.fullmatch(f"{WORKER}was killed by SIGKILL", lost_workers(iterator))
    iterator = iter(DataLoader(Killed(), batch_size=4, num_workers=2, sampler=[0, 1, 2, 3]))
    assert lost_workers(iterator, 0.1) == ""
    list(iterator)
    assert lost_workers(iterator, 0.1) == ""


class Wrapped:
    """What a user puts around a loader."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def test_a_worker_is_named_outside_of_a_run(tmp_path, capsys):
    loader, said = (
        DataLoader(Hangs(), batch_size=4, num_workers=1),
        f"this process waits for {WORKER}is in .*__getitem__",
    )
    with pytest.raises(RuntimeError, match="max_wait=2 s is over"):
        make(max_wait="2s").inference(loader)
    assert re.search(said, capsys.readouterr().err)
    trainer = make(PlainTrainer.add_on(StateManagerAddon), save_path=tmp_path, max_wait="2s")
    with pytest.raises(RuntimeError, match="max_wait=2 s is over"):  # what a later start is compared with is looked at
        trainer.run(1, loader)
    assert re.search(said, capsys.readouterr().err)


def test_a_store_that_is_gone_is_not_asked_again():
    store = torch.distributed.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    peers = Peers([("here", 1), ("there", 2)], 0)
    peers._store = torch.distributed.TCPStore("127.0.0.1", store.port, is_master=False)
    peers.tell(words="")
    assert peers._store is not None
    del store
    for _ in range(3):
        peers.tell(words="")
    assert peers._store is None


def test_nobody_watches_a_run_that_waits_for_nobody():
    class Counted(PlainTrainer):
        def train_step(self, batch):
            names.append([thread.name for thread in threading.enumerate()])
            return super().train_step(batch)

    names = []
    data = [(torch.ones(8), torch.tensor(0))] * 8
    make(Counted).run(1, DataLoader(data, batch_size=4))
    assert not any("zae-watch" in seen for seen in names)
    make(Counted).run(1, DataLoader(data, batch_size=4, num_workers=1))
    assert "zae-watch" in names[-1]
    make(Counted).run(1, Wrapped(DataLoader(data, batch_size=4, num_workers=1)))
    assert "zae-watch" in names[-1]
    assert "zae-watch" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.slow
def test_a_stopped_worker_ends_a_process_that_takes_a_batch_from_it():
    """It has sent a batch whose memory it has to hand over: that wait of torch's has no end."""
    ((code, _, said),) = finish(start([*COMMAND, "stopped worker", "4s"]))
    assert code == 1
    assert re.search(rf"{WORKER}is stopped .*max_wait=4 s is over, so this process ends", said), said


@pytest.mark.parametrize("value", ["3ep", "soon", 5, -1, "0s"])
def test_what_is_no_time_is_refused(value):
    with pytest.raises(ValueError, match="max_wait="):
        make(max_wait=value)
    assert make(max_wait=None).max_wait is None
    assert make().max_wait == 1800
