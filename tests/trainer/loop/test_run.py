"""How long a run goes on, and what its history says."""

import csv
import time

import pytest
import torch
from torch.optim import lr_scheduler

from tests.helpers import MLPTrainer, PlainTrainer, assert_equal, loader, make, mlp, sgd, weights


def test_run_returns_the_history_with_a_row_an_epoch():
    trainer = make(MLPTrainer)
    history = trainer.run(3, loader(), loader(20))
    assert history is trainer.history
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history.column("step") == [6, 12, 18]
    wanted = {"epoch", "step", "lr", "train_loss", "train_acc", "test_loss", "test_acc", "seconds"}
    assert wanted <= set(history[-1])


def test_running_again_goes_on():
    twice, once = make(), make()
    twice.run(1, loader(shuffle=True))
    twice.run(2, loader(shuffle=True))
    once.run(3, loader(shuffle=True))
    assert twice.history.column("epoch") == [1, 2, 3]
    assert twice.progress_checker.get_epoch() == 4
    assert_equal(weights(twice.model), weights(once.model))


@pytest.mark.parametrize(
    "limit", [{"max_steps": 8}, {"max_steps": "8st"}, {"n_epoch": "8st"}, {"n_epoch": 5, "max_steps": 8}]
)
def test_max_steps_ends_in_the_middle_of_an_epoch(limit):
    trainer = make()
    history = trainer.run(loader=loader(), valid_loader=loader(20), **limit)
    assert history.column("step") == [6, 8]
    assert history[-1]["test_loss"] is not None
    assert trainer.stop_reason == "8 steps done"


def test_n_epoch_takes_a_duration():
    assert len(make().run("2ep", loader())) == 2


def test_max_time_ends_the_run():
    class Slow(PlainTrainer):
        def train_step(self, batch):
            time.sleep(0.05)
            return super().train_step(batch)

    trainer = make(Slow)
    trainer.run(n_epoch=1000, loader=loader(), max_time="0.2s")
    assert 2 <= trainer.progress_checker.get_step() - 1 <= 6


def test_stop_ends_after_the_step():
    class Stopper(PlainTrainer):
        def train_step(self, batch):
            if self.progress_checker.get_step() == 3:
                self.stop("enough")
            return super().train_step(batch)

    trainer = make(Stopper)
    trainer.run(5, loader())
    assert trainer.history[-1]["step"] == 3
    assert trainer.stop_reason == "enough"


def test_valid_every_epochs_always_validates_the_last():
    history = make().run(5, loader(), loader(20), valid_every="2ep")
    assert ["test_loss" in row for row in history] == [False, True, False, True, True]


def test_valid_every_steps_adds_rows_within_the_epoch():
    trainer = make(MLPTrainer)
    history = trainer.run(2, loader(), loader(20), valid_every="4st")
    assert [(row["epoch"], row["step"], "test_loss" in row) for row in history] == [
        (1, 4, True),
        (1, 6, False),
        (2, 8, True),
        (2, 12, True),
    ]


def test_a_validation_within_an_epoch_is_shown(capsys):
    make(MLPTrainer, log_bar=True).run(1, loader(), loader(20), valid_every="4st")
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("Epoch 1/1, step 4 | ") and "test_acc" in line for line in lines)


def test_the_best_row_is_found():
    history = make(MLPTrainer).run(4, loader(), loader(20))
    assert history.best("test_loss")["test_loss"] == min(history.column("test_loss"))
    assert history.best("test_acc", "max")["test_acc"] == max(history.column("test_acc"))
    with pytest.raises(KeyError, match="no finite value in a column 'test_ac'; there are epoch, step"):
        history.best("test_ac")


def test_each_validation_is_looked_at_once():
    values = []

    class Counter(PlainTrainer):
        def check_better(self, cur_epoch, cur_loss):
            values.append((cur_epoch, cur_loss))
            return super().check_better(cur_epoch, cur_loss)

    trainer = make(Counter)
    trainer.run(2, loader(), loader(20), valid_every="3st")
    assert [epoch for epoch, _ in values] == [0, 0, 1, 1]
    assert values[-1][1] == trainer.history[-1]["test_loss"]


def test_valid_every_time():
    class Slow(PlainTrainer):
        def train_step(self, batch):
            time.sleep(0.06)
            return super().train_step(batch)

    history = make(Slow).run(1, loader(), loader(8), valid_every="0.1s")
    assert len(history) >= 2


def test_named_validation_sets_and_their_union():
    trainer = make(MLPTrainer)
    history = trainer.run(1, loader(), {"small": loader(13), "large": loader(45)})
    row = history[-1]
    assert row["test_loss"] == pytest.approx((row["test_small_loss"] * 13 + row["test_large_loss"] * 45) / 58)
    assert {"test_small_acc", "test_large_acc"} <= set(row)
    assert trainer.test_metrics["small_loss"] == row["test_small_loss"]


def test_mode_test_evaluates_and_changes_nothing():
    model = mlp(dropout=0.5)
    trainer = MLPTrainer(model, device="cpu", mode="test", log_bar=False)
    before, state = weights(model), torch.get_rng_state()
    history = trainer.run(1, loader())
    assert_equal(weights(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(trainer.test_metrics) == {"loss", "acc"}
    assert history[-1]["test_loss"] == trainer.test_metrics["loss"]


def test_toggle_to_test_after_training(capsys):
    trainer = make(MLPTrainer, log_bar=True)
    trainer.run(3, loader())
    trainer.toggle()
    trainer.run(1, loader())
    assert "Epoch 1/1 test | test_loss" in capsys.readouterr().err
    assert trainer.mode == "test"
    assert "test_acc" in trainer.history[-1]
    assert trainer.progress_checker.get_epoch() == 4


def test_validation_draws_nothing_from_the_training_streams():
    with_validation, without = make(dropout=0.5), make(dropout=0.5)
    with_validation.run(2, loader(), loader(30, shuffle=True), valid_every="2st")
    without.run(2, loader())
    assert_equal(weights(with_validation.model), weights(without.model))


@pytest.mark.parametrize("with_validation", [True, False])
def test_reduce_on_plateau_gets_the_right_loss(with_validation):
    model = mlp()
    optimizer = sgd(model)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer)
    trainer = make(model=model, optimizer=optimizer, scheduler=scheduler)
    history = trainer.run(2, loader(), loader(20) if with_validation else None)
    column = history.column("test_loss" if with_validation else "train_loss")
    assert scheduler.best == min(column)


def test_a_scheduler_per_batch_takes_one_step_a_step():
    model = mlp()
    optimizer = sgd(model)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)
    trainer = make(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scheduler_step_on_batch=True,
        gradient_accumulation_steps=4,
    )
    trainer.run(2, loader())
    assert scheduler.last_epoch == 12


@pytest.mark.parametrize(
    "build",
    [
        lambda o: lr_scheduler.StepLR(o, 1),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
        lambda o: lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
        lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]),
        lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
        lambda o: lr_scheduler.PolynomialLR(o, 18),
    ],
)
@pytest.mark.parametrize("on_batch", [True, False])
def test_torchs_schedulers_draw_the_same_curve_as_by_hand(build, on_batch):
    model, other = mlp(), mlp()
    optimizer, reference = sgd(model), sgd(other)
    rates = []

    class Recorder(PlainTrainer):
        def optimize(self, window):
            super().optimize(window)
            rates.append(self.optimizer.param_groups[0]["lr"])

    trainer = make(
        Recorder, model=model, optimizer=optimizer, scheduler=build(optimizer), scheduler_step_on_batch=on_batch
    )
    trainer.run(3, loader())
    scheduler, wanted = build(reference), []
    for step in range(1, 19):
        reference.step()
        wanted.append(reference.param_groups[0]["lr"])
        if on_batch or step % 6 == 0:
            scheduler.step()
    assert rates == wanted


def test_the_history_goes_to_a_file_and_a_picture(tmp_path):
    history = make(MLPTrainer).run(2, loader(), loader(20))
    history.to_csv(tmp_path / "h.csv")
    history.plot(tmp_path / "h.png")
    with open(tmp_path / "h.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["test_acc"]) == history[1]["test_acc"]
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")


def test_run_options_of_an_override_reach_it():
    class Extra(PlainTrainer):
        def run_epoch(self, loader, **kwargs):
            self.got = kwargs
            super().run_epoch(loader, **kwargs)

    trainer = make(Extra)
    trainer.run(1, loader(), flavour="sweet")
    assert trainer.got == {"flavour": "sweet"}
    with pytest.raises(TypeError, match="did you mean 'max_steps'"):
        trainer.run(1, loader(), max_step=3)
