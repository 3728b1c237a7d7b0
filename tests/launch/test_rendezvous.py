"""The processes of an elastic restart meet in a part of the store of their own."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from zae_engine.launch.rendezvous import _meet, is_restart, with_fresh_store

pytestmark = pytest.mark.usefixtures("starts_processes")

RESTARTED = {"TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    "changed",
    [
        {"TORCHELASTIC_RESTART_COUNT": "0"},  # the first attempt
        {"TORCHELASTIC_RESTART_COUNT": ""},
        {"TORCHELASTIC_USE_AGENT_STORE": "False"},
        {"GROUP_WORLD_SIZE": "2"},  # each machine's launcher counts for itself
    ],
)
def test_only_a_restart_on_one_machine_meets_apart(changed):
    assert is_restart(RESTARTED)
    assert not is_restart(RESTARTED | changed)
    assert not is_restart({})


def test_nothing_changes_elsewhere(monkeypatch):
    for name in RESTARTED:
        monkeypatch.delenv(name, raising=False)
    own = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    assert with_fresh_store(own) == own
    assert with_fresh_store(None) is None


def test_the_users_own_settings_stay(monkeypatch):
    for name, value in RESTARTED.items():
        monkeypatch.setenv(name, value)
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=7))
    other = DistributedDataParallelKwargs(find_unused_parameters=True)
    changed = with_fresh_store([patience, other])
    assert changed[0] is other
    assert (changed[1].init_method, changed[1].timeout) == ("zae://", timedelta(seconds=7))
    assert patience.init_method is None
    theirs = InitProcessGroupKwargs(init_method="tcp://127.0.0.1:1")
    assert with_fresh_store([theirs]) == [theirs]
    assert with_fresh_store(None)[0].init_method == "zae://"


def test_what_a_dead_attempt_has_left_is_not_seen(monkeypatch):
    agent = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=20), wait_for_workers=False)
    agent.set("default_pg/0", "the address of a dead process")
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}
    for name, value in {**RESTARTED, **variables}.items():
        monkeypatch.setenv(name, value)
    met = []
    threads = [threading.Thread(target=lambda: met.append(next(_meet("zae://", timedelta(seconds=20))))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [(rank, size) for _, rank, size in met] == [(1, 2), (1, 2)]
    one, other = (store for store, *_ in met)
    assert not one.check(["default_pg/0"])
    one.set("default_pg/0", "of a living one")
    assert other.get("default_pg/0") == b"of a living one"
    assert agent.get("default_pg/0") == b"the address of a dead process"
