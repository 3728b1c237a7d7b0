"""Calls of `run` and of `run_epoch` that are made within, between and instead of others."""

import json

import pytest
from torch.optim import lr_scheduler

from tests.helpers import PlainTrainer, assert_equal, loader, make, mlp, sgd, weights
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.trainer.addons import StateManagerAddon

Managed = PlainTrainer.add_on(StateManagerAddon)


class Evaluates(PlainTrainer):
    """Evaluates on further data after each epoch, by a run within the run."""

    def check_better(self, cur_epoch, cur_loss):
        better = super().check_better(cur_epoch, cur_loss)
        self.toggle("test")
        self.run(1, loader(16))
        self.toggle("train")
        return better


class Twice(PlainTrainer):
    """Trains one epoch before the others."""

    def run(self, n_epoch=None, loader=None, valid_loader=None, **options):
        super().run(1, loader, valid_loader, **options)
        return super().run(n_epoch - 1, loader, valid_loader, **options)


class EndsEarly(PlainTrainer):
    def check_better(self, cur_epoch, cur_loss):
        if cur_epoch == 1:
            self.stop("good enough")
        return super().check_better(cur_epoch, cur_loss)


class Stops(Managed):
    fails_at = 0

    def train_step(self, batch):
        if self.progress_checker.get_step() == self.fails_at:
            raise ArithmeticError("on purpose")
        return super().train_step(batch)


def plateau(kind):
    """Train with a schedule that follows the validation's loss; return the weights and what was asked of it."""
    model, losses = mlp(), []
    optimizer = sgd(model)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    step, scheduler.step = scheduler.step, lambda loss: (losses.append(loss), step(loss))
    trainer = make(kind, model=model, optimizer=optimizer, scheduler=scheduler)
    given, valid = loader(), loader(20)
    trainer.run(3, given, valid)
    return trainer, losses, (given, valid)


def test_an_evaluation_by_run_within_a_run_leaves_that_as_it_was():
    plain, wanted, _ = plateau(PlainTrainer)
    trainer, losses, (given, valid) = plateau(Evaluates)
    assert losses == wanted
    assert_equal(weights(trainer.model), weights(plain.model))
    assert trainer.loader is given
    assert trainer.valid_loader is valid
    assert (trainer.batch_size, trainer.valid_batch_size) == (plain.batch_size, plain.valid_batch_size)


def test_a_run_that_evaluates_by_run_is_saved_and_gone_on_with(tmp_path):
    kind = Evaluates.add_on(StateManagerAddon)
    whole = make(kind, save_path=tmp_path / "whole")
    whole.run(3, loader(shuffle=True), loader(20))
    first = make(kind, save_path=tmp_path / "parts")
    first.run(1, loader(shuffle=True), loader(20), resume="auto")
    again = make(kind, save_path=tmp_path / "parts")
    again.run(3, loader(shuffle=True), loader(20), resume="last")
    assert_equal(weights(again.model), weights(whole.model))


def test_a_run_of_the_users_own_may_call_run_several_times(tmp_path):
    plain = make(Twice)
    plain.run(3, loader())
    trainer = make(Twice.add_on(StateManagerAddon), save_path=tmp_path)
    trainer.run(3, loader())
    assert_equal(weights(trainer.model), weights(plain.model))
    again = make(Managed, save_path=tmp_path)
    again.load_state()
    assert_equal(weights(again.model), weights(plain.model))
    assert len(again.history) == 3


def test_a_run_of_the_users_own_may_begin_by_saving(tmp_path):
    class Saves(PlainTrainer):
        def run(self, *args, **options):
            self.saved = self.save_state()
            return super().run(*args, **options)

    trainer = make(Saves.add_on(StateManagerAddon), save_path=tmp_path, keep_last=None)
    trainer.run(1, loader())
    assert trainer.saved is None  # as soon as no step is half done
    assert sorted(path.name[-6:] for path in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-6"]


@pytest.mark.parametrize("evaluate", ["run", "run_epoch"])
def test_an_evaluation_leaves_what_was_loaded_to_the_training(tmp_path, evaluate):
    whole = make(Managed, save_path=tmp_path / "whole")
    whole.run(2, loader(shuffle=True))
    first = make(Stops, save_path=tmp_path / "parts", save_every="4st")
    first.fails_at = 6
    with pytest.raises(ArithmeticError):
        first.run(2, loader(shuffle=True))
    again = make(Managed, save_path=tmp_path / "parts")
    again.load_state("last")
    again.toggle("test")
    again.run(1, loader(16)) if evaluate == "run" else again.run_epoch(loader(16))
    again.toggle("train")
    again.run(2, loader(shuffle=True))
    assert again.progress_checker.get_step() == 13
    assert_equal(weights(again.model), weights(whole.model))


@pytest.mark.parametrize("evaluate", ["run", "run_epoch"])
def test_a_run_that_was_stopped_is_still_done_when_it_is_saved_after_an_evaluation(tmp_path, evaluate):
    trainer = make(EndsEarly.add_on(StateManagerAddon), save_path=tmp_path)
    trainer.run(9, loader())
    trainer.toggle("test")
    trainer.run(1, loader(16)) if evaluate == "run" else trainer.run_epoch(loader(16))
    trainer.toggle("train")
    trainer.save_state()
    again = make(EndsEarly.add_on(StateManagerAddon), save_path=tmp_path)
    again.run(9, loader(), resume="auto")
    assert again.progress_checker.get_step() == 13
    assert again.stop_reason == "good enough"


def test_an_epoch_that_is_evaluated_alone_leaves_why_the_run_ended():
    trainer = make(PlainTrainer)
    trainer.run(1, loader(), max_steps=4)
    trainer.toggle("test")
    trainer.run_epoch(loader(16))
    assert trainer.stop_reason == "4 steps done"


def test_a_run_that_is_refused_after_one_that_broke_off_changes_nothing(tmp_path):
    trainer = make(Stops, save_path=tmp_path)
    trainer.fails_at = 3
    with pytest.raises(ArithmeticError):
        trainer.run(1, loader())
    with pytest.raises(ValueError, match="can be walked once"):
        trainer.run(2, iter(list(loader())))
    with pytest.raises(CheckpointError, match="broke off within an epoch"):
        trainer.save_state()


def test_what_was_logged_before_a_run_that_is_refused_stays(tmp_path):
    trainer = make(Managed, save_path=tmp_path)
    trainer.log({"mine": 1.0})
    with pytest.raises(ValueError, match="can be walked once"):
        trainer.run(2, iter(list(loader())))
    trainer.run(1, loader())
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines].count("attempt") == 1  # a second one would strike out what stands before
    assert [line["values"] for line in lines if line["kind"] == "logged"] == [{"mine": 1.0}]
