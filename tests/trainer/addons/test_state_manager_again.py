"""What a process, or the next one, does after a call of `run` that ended somehow."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.helpers import PlainTrainer, assert_equal, loader, make, weights
from tests.trainer.addons.resumed import first_difference, outcome
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.folder import committed
from zae_engine.logs.history_file import read_history
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.processes.signals import Interrupted


class Disturbed(PlainTrainer):
    """Does something once, at one step of the training, or at one batch of the evaluation."""

    at, tests_at, tested = -1, -1, 0

    def disturb(self):
        os.kill(os.getpid(), signal.SIGTERM)

    def train_step(self, batch):
        if self.progress_checker.get_step() == self.at:
            self.at = -1
            self.disturb()
        return super().train_step(batch)

    def test_step(self, batch):
        self.tested += 1
        if self.tested == self.tests_at:
            self.disturb()
        return super().train_step(batch)


class CalledAfterTesting(PlainTrainer):
    """Gets a signal when an evaluation in the middle of an epoch is done."""

    called = False

    def check_better(self, cur_epoch, cur_loss):
        if self.called:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().check_better(cur_epoch, cur_loss)


class Failing(Disturbed):
    error = RuntimeError

    def disturb(self):
        raise self.error


class Loading(Disturbed):
    def disturb(self):
        self.load_state("last")


class Unsavable(PlainTrainer):
    def state_dict(self):
        return {**super().state_dict(), "Unsavable": {"thing": object()}}


class Unwritable(Disturbed):
    """For some steps, the checkpoints have no folder."""

    def train_step(self, batch):
        step, folder = self.progress_checker.get_step(), self.save_path / "checkpoints"
        if step == 2:
            shutil.rmtree(folder, ignore_errors=True)
            folder.write_text("no folder")
        if step == 4:
            self._checkpointer._saver.wait()
            folder.unlink()
        return super().train_step(batch)


class Heavy(PlainTrainer):
    """Writing takes much longer than training."""

    def train_step(self, batch):
        x, y = batch
        return {"loss": nn.functional.cross_entropy(self.model[0](x), y)}


def managed(folder, kind=PlainTrainer, **options):
    return make(kind.add_on(StateManagerAddon), save_path=folder, **options)


def steps_of(folder):
    return [line["step"] for line in read_history(folder) if line["kind"] == "step"]


def test_save_state_between_two_calls_is_no_call(tmp_path):
    trainer, plain = managed(tmp_path / "run"), make()
    for epochs in (2, 1):
        trainer.run(epochs, loader(), resume="auto")
        trainer.save_state()
        plain.run(epochs, loader())
    assert_equal(weights(trainer.model), weights(plain.model))
    assert steps_of(tmp_path / "run") == list(range(1, 19))


class Once:
    """A loader that has nothing to give in its second epoch."""

    walks = 0

    def __iter__(self):
        self.walks += 1
        return iter(loader(16) if self.walks == 1 else ())


@pytest.mark.filterwarnings("ignore:the loader gave no batch")
def test_a_run_whose_loader_has_nothing_more_to_give_is_complete(tmp_path):
    trainer = managed(tmp_path)
    trainer.run(3, Once())
    assert committed(tmp_path / "checkpoints")[-1].manifest["complete"]
    assert trainer.save_state() is not None
    again = managed(tmp_path)
    again.run(3, Once(), resume="auto")
    assert (again.stop_reason, len(again.history)) == ("the loader gave no batch", 1)
    assert_equal(weights(again.model), weights(trainer.model))


@pytest.mark.filterwarnings("ignore:the loader gave no batch")
def test_a_run_that_had_nothing_to_train_on_is_not_done(tmp_path):
    managed(tmp_path).run(2, [])
    trainer = managed(tmp_path)
    trainer.run(2, loader(16), resume="auto")
    assert len(trainer.history) == 2


def test_more_epochs_of_a_run_that_save_state_followed(tmp_path):
    trainer = managed(tmp_path / "run")
    trainer.run(1, loader(), resume="auto")
    trainer.save_state()
    again, plain = managed(tmp_path / "run"), make()
    again.run(3, loader(), resume="auto")
    plain.run(3, loader())
    assert_equal(weights(again.model), weights(plain.model))


def test_what_was_loaded_and_saved_begins_a_call(tmp_path):
    managed(tmp_path / "one").run(2, loader())
    trainer = managed(tmp_path / "other")
    trainer.load_state(tmp_path / "one")
    trainer.save_state()
    trainer.run(1, loader(), resume="auto")
    assert trainer.progress_checker.get_epoch() - 1 == 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_call_that_broke_off_before_a_save_is_not_gone_on_with_where_it_stands(tmp_path, error):
    trainer, plain = managed(tmp_path / "run", Failing), make()
    trainer.run(1, loader(), resume="auto")
    trainer.at, trainer.error = 9, error
    with pytest.raises(error):
        trainer.run(1, loader(), resume="auto")
    trainer.run(1, loader(), resume="auto")
    plain.run(1, loader())
    plain.run(1, loader())
    assert_equal(weights(trainer.model), weights(plain.model))
    assert steps_of(tmp_path / "run") == list(range(1, 13))


def test_a_run_that_broke_off_before_any_save_cannot_be_begun_anew_as_it_stands(tmp_path):
    trainer = managed(tmp_path, Failing)
    trainer.at = 4
    with pytest.raises(RuntimeError):
        trainer.run(1, loader(), resume="auto")
    with pytest.raises(CheckpointError, match="broke off after step 3 with nothing saved"):
        trainer.run(1, loader(), resume="auto")


def test_what_was_tried_from_an_earlier_checkpoint_and_given_up_leaves_the_history_as_it_was(tmp_path):
    managed(tmp_path, keep_last=None).run(3, loader())
    trainer = managed(tmp_path, Failing, keep_last=None)
    trainer.at = 9
    with pytest.raises(RuntimeError):
        trainer.run(4, loader(), resume=tmp_path / "checkpoints" / "000001-step-6")
    managed(tmp_path, keep_last=None).run(4, loader(), resume="auto")
    assert steps_of(tmp_path) == list(range(1, 25))


def test_load_state_within_a_run_is_refused(tmp_path):
    trainer = managed(tmp_path, Loading)
    trainer.at = 9
    with pytest.raises(CheckpointError, match="within a run"):
        trainer.run(2, loader())


def test_a_state_that_cannot_be_saved_is_told_before_anything_is_trained(tmp_path):
    trainer = managed(tmp_path, Unsavable)
    with pytest.raises(CheckpointError, match="stack/Unsavable/thing is a object"):
        trainer.run(1, loader())
    assert trainer.progress_checker.get_step() == 1


def test_a_stop_says_that_it_was_saved_whatever_failed_before(tmp_path):
    trainer = managed(tmp_path, Unwritable, save_every="2st")
    trainer.at = 9
    with (
        pytest.warns(UserWarning, match="could not be written"),
        pytest.raises(Interrupted, match=r"Saved as .*step-9"),
    ):
        trainer.run(2, loader(), resume="auto")


def evaluated(folder, tests_at=-1):
    """Two validation sets, whose order comes from generators of their own."""
    trainer = managed(folder, Disturbed)
    trainer.tests_at = tests_at
    sets = {n: loader(shuffle=True, generator=torch.Generator().manual_seed(i)) for i, n in enumerate(("a", "b"))}
    trainer.run(2, loader(), sets, resume="auto")
    return trainer


@pytest.mark.parametrize("at", [2, 9])
def test_an_evaluation_that_was_broken_off_begins_again_in_the_same_order(tmp_path, at):
    with pytest.raises(Interrupted):
        evaluated(tmp_path / "one", at)
    one, other = evaluated(tmp_path / "one"), evaluated(tmp_path / "other")
    assert first_difference(outcome(one), outcome(other)) is None


def test_what_was_tested_when_the_signal_came_is_not_tested_again(tmp_path):
    def run(folder, called=False):
        trainer = managed(folder, CalledAfterTesting)
        trainer.called = called
        trainer.run(2, loader(), loader(20), valid_every="2st", resume="auto")
        return trainer

    with pytest.raises(Interrupted):
        run(tmp_path / "one", called=True)
    one, other = run(tmp_path / "one"), run(tmp_path / "other")
    assert one.log_test.losses.values == other.log_test.losses.values
    assert first_difference(outcome(one), outcome(other)) is None


def test_a_run_that_broke_off_is_not_gone_on_with_from_memory(tmp_path):
    trainer = managed(tmp_path, Failing, save_every="1st")
    trainer.at = 3
    with pytest.raises(RuntimeError):
        trainer.run(2, loader())
    with pytest.raises(CheckpointError, match=r"broke off, and 000002-step-2 was saved before; write run"):
        trainer.run(2, loader())
    trainer.run(2, loader(), resume="auto")
    assert steps_of(tmp_path) == list(range(1, 13))


@pytest.mark.parametrize("resume", ["last", "path"])
def test_a_checkpoint_that_is_named_is_gone_on_with_whichever_call_it_is_of(tmp_path, resume, capsys):
    trainer = managed(tmp_path)
    trainer.run(1, loader())
    trainer.run(1, loader())
    again = managed(tmp_path, log_bar=True)
    again.run(4, loader(), resume="auto")
    assert "Call 1 of run() was done before" in capsys.readouterr().err
    assert again.progress_checker.get_epoch() == 3
    other = managed(tmp_path)
    other.run(4, loader(), resume=committed(tmp_path / "checkpoints")[-1].path if resume == "path" else resume)
    assert other.progress_checker.get_epoch() == 6  # the second call, which began after one epoch, has four now


def test_a_signal_while_the_end_of_a_run_is_written_does_not_cut_it(nursery, tmp_path):
    code = (
        "import torch; from torch import nn; from tests.trainer.addons.test_state_manager_again import *\n"
        "model = nn.ModuleList([nn.Linear(8, 3), nn.Linear(4000, 4000)])\n"
        f"managed({str(tmp_path)!r}, Heavy, model=model).run(1, loader(16))"
    )
    process = nursery.begin("-c", code)
    process.until(lambda: list(tmp_path.glob("checkpoints/.*.partial")) != [])
    process.send(signal.SIGTERM)
    assert process.wait().returncode == 75  # a script may have more to do, for which there is no time now
    assert [c.step for c in committed(tmp_path / "checkpoints")] == [2]


SPREAD = """
import warnings
import torch
from torch.distributed.fsdp import fully_shard
from tests.helpers import mlp
from tests.trainer.addons.test_state_manager_again import *

torch.distributed.init_process_group("gloo")
model = mlp()
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
for part in (model[0], model[3], model):
    fully_shard(part, mesh=mesh)
trainer = managed({folder!r}, Refused, model=model)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trainer.run(2, Stream(), loader(), valid_every="4st")
"""


class Stream:
    """Has no length, so that nobody knows that the fourth batch is the last one."""

    def __iter__(self):
        yield from list(loader(32))


class Refused(PlainTrainer):
    """Once, the history of process 0 cannot be written, when the other process has written all that it has."""

    def train_step(self, batch):
        history = self._checkpointer._saver._history
        if history is not None and self.progress_checker.get_step() in (4, 5):
            if history.path.is_dir():
                history.path.rmdir()
                history.path.with_name("kept").rename(history.path)
            else:
                history.path.rename(history.path.with_name("kept"))
                history.path.mkdir()
        return super().train_step(batch)

    def state_dict(self):
        return {**super().state_dict(), "Refused": torch.zeros(20_000_000)}  # which process 0 alone writes, for long


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_a_save_of_a_spread_model_that_failed_on_one_process_stops_none(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SPREAD.format(folder=str(tmp_path / "run")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    assert subprocess.run(command, timeout=100, env=os.environ | {"PYTHONPATH": os.getcwd()}).returncode == 0
    assert [c.step for c in committed(tmp_path / "run" / "checkpoints")][-1] == 8
