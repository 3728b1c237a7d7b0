"""A launcher that starts the group anew when one of its processes is killed."""

import json
import signal

import pytest

from tests.recovery.commands import Typed
from tests.recovery.harness import assert_each_step_once, assert_same, outcome

pytestmark = pytest.mark.usefixtures("starts_processes")

SETUP = {"epochs": 4, "patience": 50, "schedule": "plateau"}
RESTARTS = {"torchrun": ["--max-restarts=3"], "accelerate": ["--max_restarts", "3", "--monitor_interval", "0.1"]}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("launcher", RESTARTS)
def test_a_killed_worker_restarts_the_group(undisturbed, tmp_path, launcher, rank):
    words = [str(tmp_path), json.dumps(SETUP | {"pause": 0.1})]
    command = Typed(launcher, tmp_path, 2, words, *RESTARTS[launcher])
    try:
        assert command.until(lambda: command.where(rank)[1] >= 13, 60), command.log()
        first = command.pid(rank)
        command.send(signal.SIGKILL, [rank])
        assert command.codes() == [0], command.log()
    finally:
        command.end()
    assert command.pid(rank) != first
    found = outcome(tmp_path, 2)
    assert_same(found, undisturbed(SETUP, 2))
    assert_each_step_once(found)
