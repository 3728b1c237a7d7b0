"""Asked to end, failing, short of disk: one checkpoint, the right exit code, and the same command goes on exactly."""

import os
import re
import signal
import time

import pytest

from tests.recovery.harness import assert_each_step_once, assert_same, finish, serials, start

pytestmark = pytest.mark.usefixtures("starts_processes")

SETUP = {"epochs": 3, "patience": 50, "save_every": "1ep"}  # 8 steps an epoch, 24 in all
LAST = 24
ROOM = [30_000, 3_000]  # bytes that process 0 and 1 may still write: less than their largest files have


def sent(*names, step, at="train", **more) -> list[dict]:
    return [{"do": "signal", "signals": names, "step": step, "at": at, **more}]


def partials(folder) -> list[str]:
    return [path.name for path in (folder / "run" / "checkpoints").glob(".*.partial")]


def assert_goes_on(nursery, folder, wanted, setup, processes=1) -> None:
    """The same command brings the run to the end that it would have had."""
    found = finish(nursery, folder, setup, processes)
    assert_same(found, wanted)
    assert_each_step_once(found)


def stop(nursery, folder, setup, mishaps, processes=1) -> int:
    """Run until what happens ends it with 75; return the step of the one new checkpoint."""
    before = max((serial for serial, _ in serials(folder)), default=0)
    command = start(nursery, folder, setup, processes, mishaps)
    codes = command.codes(launcher=False)
    assert codes == [75] * processes, f"{mishaps}: {codes}\n{command.log()}"
    assert partials(folder) == []
    serial, step = serials(folder)[-1]
    assert serial == before + 1, mishaps
    assert f"Saved as {serial:06d}-step-{step} in '{folder}/run'; the same command goes on from there" in command.log()
    return step


MOMENTS = [  # what happens, and the step after which the run leaves
    (sent("SIGTERM", step=1, at="epoch"), 1),  # before the first step
    (sent("SIGTERM", step=3), 3),
    (sent("SIGUSR1", step=5), 5),  # in a step after which a validation is due
    (sent("SIGTERM", step=6, at="test"), 5),  # in that validation, twice
    (sent("SIGUSR1", step=6, at="test"), 5),
    (sent("SIGINT", step=7), 7),
    (sent("SIGTERM", step=9, at="epoch"), 9),  # between two epochs
    (sent("SIGINT", "SIGINT", step=10), 10),  # as a terminal and a launcher send it
    (sent("SIGTERM", "SIGUSR1", "SIGINT", step=13), 13),
    (sent("SIGTERM", step=LAST), LAST),
    (sent("SIGTERM", step=LAST + 1, at="test"), LAST),  # in the last validation
]
SETUPS = {
    "plain": {},
    "workers": {"workers": 2, "schedule": "plateau", "save_async": False, "save_format": "ckpt"},
}


@pytest.mark.parametrize("more", SETUPS.values(), ids=SETUPS)
def test_one_process(nursery, tmp_path, undisturbed, more):
    setup = SETUP | {"save_every": "100ep"} | more
    for mishaps, step in MOMENTS:
        assert stop(nursery, tmp_path, setup, mishaps) == step, mishaps
    assert_goes_on(nursery, tmp_path, undisturbed(setup), setup)


ON_TWO = [
    sent("SIGTERM", step=1, at="epoch", rank=1),
    sent("SIGTERM", step=4, rank=0),
    sent("SIGTERM", step=9, rank=1),
    sent("SIGUSR1", step=16, at="test", rank=1),
    sent("SIGTERM", step=21, at="test", rank=0),
    sent("SIGINT", step=25),
    [*sent("SIGTERM", step=31, rank=0), *sent("SIGUSR1", step=31, rank=1)],
    sent("SIGTERM", step=48, rank=0),
    sent("SIGTERM", step=49, at="test", rank=1),
]


@pytest.mark.slow
def test_one_of_two_processes(nursery, tmp_path, undisturbed):
    setup = SETUP | {"epochs": 6, "save_every": "100ep"}
    for mishaps in ON_TWO:
        first = mishaps[0]["step"] - (mishaps[0]["at"] == "test")
        assert first <= stop(nursery, tmp_path, setup, mishaps, processes=2) <= first + 5, mishaps
    assert_goes_on(nursery, tmp_path, undisturbed(setup, 2), setup, 2)


def test_one_of_two_processes_in_a_long_validation(nursery, tmp_path, undisturbed):
    """Both leave after the same batch: between two at which they ask each other, the other one knows of nothing."""
    setup = SETUP | {"valid": 160, "valid_every": "1ep", "save_every": "100ep"}
    assert stop(nursery, tmp_path, setup, sent("SIGTERM", step=9, at="test", rank=0, skips=11), processes=2) == 8
    assert_goes_on(nursery, tmp_path, undisturbed(setup, 2), setup, 2)


def test_in_a_validation_after_an_epoch(nursery, tmp_path, undisturbed):
    setup = SETUP | {"valid_every": "1ep", "save_every": "100ep"}
    assert stop(nursery, tmp_path, setup, sent("SIGTERM", step=9, at="test")) == 8
    assert_goes_on(nursery, tmp_path, undisturbed(setup), setup)


@pytest.mark.parametrize("processes", [1, 2])
def test_while_a_checkpoint_is_being_written(nursery, tmp_path, undisturbed, processes):
    setup = SETUP | {"save_every": "2st", "width": 2048, "epochs": 1}
    command = start(nursery, tmp_path, setup, processes, sent("SIGTERM", step=3, saving=True, rank=processes - 1))
    assert command.codes(launcher=False) == [75] * processes, command.log()
    serial, step = serials(tmp_path)[-1]
    assert serial == (step + 1) // 2
    assert_goes_on(nursery, tmp_path, undisturbed(setup, processes), setup, processes)


def test_a_later_ctrl_c_ends_at_once(nursery, tmp_path, undisturbed):
    mishaps = sent("SIGINT", "SIGINT", step=11, between=1.1)
    command = start(nursery, tmp_path, SETUP, 1, mishaps)
    assert command.codes() == [-signal.SIGINT], command.log()
    assert "KeyboardInterrupt" in command.log()
    assert partials(tmp_path) == []
    assert serials(tmp_path)[-1] == (1, 8)
    assert_goes_on(nursery, tmp_path, undisturbed(SETUP), SETUP)


def test_a_stop_and_a_signal_in_one_step(nursery, tmp_path, undisturbed):
    wanted = undisturbed(SETUP, mishaps=[{"do": "stop", "signals": [], "step": 11}])
    assert wanted["position"][1] == 12
    command = start(nursery, tmp_path, SETUP, 1, [{"do": "stop", "signals": ["SIGTERM"], "step": 11}])
    assert command.codes() == [75], command.log()
    assert serials(tmp_path) == [(1, 8), (2, 11)]
    assert_goes_on(nursery, tmp_path, wanted, SETUP)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_time_of_a_job(nursery, tmp_path, undisturbed, processes):
    wanted, setup = undisturbed(SETUP, processes), SETUP | {"pause": 0.05, "options": {"max_time": "0.6s"}}
    ends = []
    for _ in range(12):
        command = start(nursery, tmp_path, setup, processes)
        ends.append(command.codes(launcher=False))
        if ends[-1] == [0] * processes:
            break
        assert ends[-1] == [75] * processes, command.log()
    assert len(ends) > 1
    assert_goes_on(nursery, tmp_path, wanted, SETUP, processes)


def test_time_alone_is_an_end_like_any_other(nursery, tmp_path):
    setup = SETUP | {"epochs": 0, "options": {"max_time": "0.5s"}}
    found = finish(nursery, tmp_path, setup)
    again = finish(nursery, tmp_path, setup)  # it says that it is done
    assert again["position"] == found["position"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_run(nursery, tmp_path, undisturbed, number):
    setup = SETUP | {"workers": 2}
    command = start(nursery, tmp_path, setup | {"pause": 0.05})
    assert command.until(lambda: command.where()[1] >= 3)
    assert len(_group(command.pids[0])) == 3
    command.send(number)
    assert command.codes() == [75 if number == signal.SIGTERM else -signal.SIGKILL], command.log()
    ended = time.monotonic()
    if number == signal.SIGKILL:  # the next one does not wait for the workers that are still there
        following = start(nursery, tmp_path, setup)
        assert following.codes() == [0], following.log()
        assert following.locked < 10
    while _group(command.pids[0]):
        assert time.monotonic() < ended + 10
        time.sleep(0.05)
    assert_goes_on(nursery, tmp_path, undisturbed(setup), setup)


def _group(leader: int) -> list[int]:
    """The processes of a group that run."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                state, _, group = file.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            found.append(int(pid))
    return found


@pytest.mark.parametrize(("processes", "saving"), [(1, False), (1, True), (2, True)])
def test_a_mistake_of_the_user(nursery, tmp_path, undisturbed, processes, saving):
    setup = SETUP | ({"save_every": "2st", "width": 2048} if saving else {}) | {"epochs": 2}
    mishaps = [{"do": "raise", "step": 11, "saving": saving, "rank": processes - 1}]
    command = start(nursery, tmp_path, setup, processes, mishaps)
    began = time.monotonic()
    codes = command.codes()
    assert time.monotonic() - began < 20
    assert codes[-1] == 1, command.log()
    last = serials(tmp_path)[-1]
    assert "ArithmeticError: the user's own mistake" in command.log()
    assert f"the last committed state is '{tmp_path}/run/checkpoints/{last[0]:06d}-step-{last[1]}'" in command.log()
    assert "resume='auto'" in command.log()
    assert partials(tmp_path) == []
    assert_goes_on(nursery, tmp_path, undisturbed(setup, processes), setup, processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk(nursery, tmp_path, undisturbed, processes):
    setup = SETUP | {"save_every": "2st", "width": 2048}
    last = processes - 1
    mishaps = [{"do": "fill", "step": 6, "bytes": ROOM[last], "rank": last}, {"do": "empty", "step": 13, "rank": last}]
    command = start(nursery, tmp_path, setup, processes, mishaps)
    assert command.codes() == [0] * processes, command.log()
    assert command.log().count("a checkpoint could not be written") >= 1
    good = rf"The last good one: {re.escape(str(tmp_path))}/run/checkpoints/00000(1-step-2|2-step-4)\b"
    assert re.search(good, command.log())  # that of step 4 may have been on its way when the disk was full
    assert "none of this attempt" not in command.log()  # process 1 does not know, and says nothing
    assert partials(tmp_path) == []
    assert_goes_on(nursery, tmp_path, undisturbed(setup, processes), setup, processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_where_saving_is_required(nursery, tmp_path, undisturbed, processes):
    setup, last = SETUP | {"save_every": "2st", "save_required": True, "width": 2048}, processes - 1
    mishaps = [{"do": "fill", "step": 6, "bytes": ROOM[last], "rank": last}]
    command = start(nursery, tmp_path, setup, processes, mishaps)
    assert command.codes(launcher=False) == [1] * processes, command.log()
    assert "CheckpointError: a checkpoint could not be written" in command.log()
    assert partials(tmp_path) == []
    assert serials(tmp_path)[-1][1] in (2, 4, 6)  # that of step 4 may have been on its way when the disk was full
    assert_goes_on(nursery, tmp_path, undisturbed(setup, processes), setup, processes)


def test_two_jobs_on_one_folder(nursery, tmp_path, undisturbed):
    setup = SETUP | {"pause": 0.5, "epochs": 2}
    first = start(nursery, tmp_path, setup)
    assert first.until(lambda: first.where()[1] >= 2)
    second = start(nursery, tmp_path, setup)
    assert second.codes() == [1], second.log()
    assert first.ended() == [None]  # it was not waited for
    assert f"is in use by process {first.pids[0]}" in second.log()
    first.send(signal.SIGTERM)
    assert first.codes() == [75], first.log()
    setup = SETUP | {"epochs": 2}
    assert_goes_on(nursery, tmp_path, undisturbed(setup), setup)
