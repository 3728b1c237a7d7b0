"""Interrupted on one number of processes, gone on with on another: the same samples, the same model."""

import signal

import pytest

from tests.recovery.harness import assert_each_step_once, check_folder, difference, finish, serials, start

pytestmark = pytest.mark.usefixtures("starts_processes")

PLAIN = {"epochs": 3, "patience": 50, "samples": 120, "batch_size": 24, "norm": False, "save_every": "2st",
         "valid_every": "3st", "schedule": "plateau"}  # 5 steps an epoch, 15 in all  # fmt: skip
SETUPS = {
    "float32": PLAIN | {"dropout": 0.0},
    "shards": PLAIN | {"dropout": 0.3, "shards": 12, "accumulation": None},
}
CHAIN = [(1, 3), (2, 7), (3, 12)]  # on so many processes until this step, in the middle of an epoch; then on one


def interrupt(nursery, folder, setup, processes, step) -> None:
    """SIGTERM to the last process."""
    mishaps = [{"do": "signal", "signals": ["SIGTERM"], "step": step, "rank": processes - 1}]
    command = start(nursery, folder, setup, processes, mishaps)
    assert command.codes(launcher=False) == [75] * processes, command.log()
    assert step <= serials(folder)[-1][1] <= step + 2


@pytest.mark.parametrize("name", SETUPS)
def test_one_two_three_one(nursery, tmp_path, undisturbed, name):
    setup = SETUPS[name]
    for processes, step in CHAIN:
        interrupt(nursery, tmp_path, setup, processes, step)
    found, wanted = finish(nursery, tmp_path, setup), undisturbed(setup)
    assert_each_step_once(found)
    assert_close(found, wanted, 0.0 if name == "shards" else 1e-6)


def test_killed_on_two_and_gone_on_with_on_three(nursery, tmp_path, undisturbed):
    setup = SETUPS["shards"]
    command = start(nursery, tmp_path, setup | {"pause": 0.02}, 2)
    assert command.until(lambda: command.where()[1] == 8), command.log()
    command.send(signal.SIGKILL, [1])
    command.codes()
    assert check_folder(tmp_path, 1) > 0
    found = finish(nursery, tmp_path, setup, 3)
    assert_each_step_once(found)
    assert_close(found, undisturbed(setup), 0.0)


def test_other_micro_batches(nursery, tmp_path, undisturbed):
    setup = SETUPS["float32"]
    for accumulation, step in ((2, 3), (1, 7), (3, 12)):
        interrupt(nursery, tmp_path, setup | {"accumulation": accumulation}, 1, step)
    found = finish(nursery, tmp_path, setup | {"accumulation": 4})
    assert_each_step_once(found)
    assert_close(found, undisturbed(setup), 1e-6)


def test_a_model_that_is_spread(nursery, tmp_path, undisturbed):
    """FSDP2 on 2, 3, 2 processes, then one process with the whole model; one that had it throughout agrees."""
    setup = SETUPS["float32"] | {"spread": True, "save_every": "100ep"}
    for processes, step in ((2, 3), (3, 6), (2, 8)):
        interrupt(nursery, tmp_path, setup, processes, step)
    found = finish(nursery, tmp_path, setup | {"spread": False}, 1)
    assert_each_step_once(found)
    assert_close(found, undisturbed(setup, 1), 1e-6)


def assert_close(found: dict, wanted: dict, largest: float) -> None:
    """Weights and losses within rounding, everything that is counted equal."""
    for key in ("weights", "best"):
        assert difference(found[key], wanted[key]) <= largest, key
    assert largest or difference(found["moments"], wanted["moments"]) == 0
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
    assert [row["step"] for row in found["rows"]] == [row["step"] for row in wanted["rows"]]
    for key in ("best_epoch", "rate", "position"):
        assert found[key] == wanted[key], key
