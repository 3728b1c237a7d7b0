"""Options that are assigned after the trainer was made: they work, or are refused there and then."""

import inspect
import re

import pytest
import torch

from tests.helpers import MLPTrainer, PlainTrainer, assert_equal, loader, make, mlp, sgd, weights
from zae_engine import Trainer
from zae_engine.trainer.addons import (
    EarlyStoppingAddon,
    MultiGPUAddon,
    PrecisionMixerAddon,
    StateManagerAddon,
    TensorBoardLoggerAddon,
    TrackerAddon,
)
from zae_engine.trainer.compose import options_of


class Counting(PlainTrainer):
    """Counts the calls of its step, which are the micro-batches."""

    calls = 0

    def train_step(self, batch):
        self.calls += 1
        return super().train_step(batch)


def test_gradient_accumulation_steps_is_taken_from_the_next_epoch_on():
    trainer, wanted = make(Counting), make(Counting)
    trainer.gradient_accumulation_steps = 4
    trainer.run(1, loader())
    wanted.run(1, loader())
    assert (trainer.calls, wanted.calls) == (24, 6)
    for name, weight in weights(wanted.model).items():
        assert torch.allclose(weight, trainer.model.state_dict()[name], atol=1e-6)


def test_within_a_run_too():
    class Cutting(Counting):
        def run_epoch(self, batches, **kwargs):
            if self.progress_checker.get_epoch() == 2:
                self.gradient_accumulation_steps, self.gradient_clip = 2, 0.01
            super().run_epoch(batches, **kwargs)

    trainer = make(Cutting)
    trainer.run(2, loader())
    assert trainer.calls == 6 + 12
    assert "grad_norm" in trainer.log_train


@pytest.mark.parametrize(
    ("name", "value"),
    [("gradient_clip", 0.01), ("seed", 9), ("on_nan", "stop"), ("scheduler_step_on_batch", True), ("mode", "test")],
)
def test_what_is_assigned_is_as_if_it_was_given(name, value):
    def run(**options):
        model = mlp(0.3)
        optimizer = sgd(model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        return make(model=model, optimizer=optimizer, scheduler=scheduler, **options)

    given, assigned = run(**{name: value}), run()
    setattr(assigned, name, value)
    for trainer in (given, assigned):
        trainer.run(1, loader(shuffle=True))
    assert_equal(weights(assigned.model), weights(given.model))
    assert assigned.optimizer.param_groups[0]["lr"] == given.optimizer.param_groups[0]["lr"]
    assert getattr(assigned, name) == value
    assert assigned.log_train.watch == given.log_train.watch
    assert assigned.seed_was_given


def test_a_seed_with_shards():
    given, assigned = make(dropout=0.5, shards=2, seed=4), make(dropout=0.5, shards=2)
    assigned.seed = 4
    for trainer in (given, assigned):
        trainer.run(1, loader())
    assert_equal(weights(assigned.model), weights(given.model))


class Metric:
    def __init__(self):
        self.seen = 0

    def update(self, output, target):
        self.seen += len(target)

    def compute(self):
        return float(self.seen)

    def reset(self):
        self.seen = 0


def test_metrics_are_measured_from_the_next_epoch_on():
    class Late(MLPTrainer):
        def logging(self, step_dict):
            super().logging(step_dict)
            if self.progress_checker.get_step() == 2:
                self.metrics = {"seen": Metric()}

    trainer = make(Late)
    history = trainer.run(2, loader(), loader(20))
    assert [row.get("train_seen") for row in history] == [None, 45]
    assert [row.get("test_seen") for row in history] == [20, 20]
    trainer.metrics = None
    assert "train_seen" not in trainer.run(1, loader())[-1]


def test_what_early_stopping_waits_for():
    trainer = make(PlainTrainer.add_on(EarlyStoppingAddon), patience=50)
    trainer.optimizer = sgd(trainer.model, lr=0.0)
    trainer.patience, trainer.min_delta = 2, 0.5
    assert len(trainer.run(9, loader())) == 3


WRONG = {
    "gradient_accumulation_steps": (0, ValueError, "gradient_accumulation_steps=0 is not accepted; write a whole"),
    "gradient_clip": (-1, ValueError, "gradient_clip=-1 is not accepted"),
    "seed": (1.5, ValueError, "seed=1.5 is not accepted"),
    "mode": ("tset", ValueError, "mode='tset' is not known; .* did you mean 'test'"),
    "show": (3, TypeError, "show=3 is not accepted"),
    "on_nan": ("halt", ValueError, "on_nan='halt' is not known"),
    "monitor_mode": ("mx", ValueError, "monitor_mode='mx' is not known"),
    "model": (mlp, TypeError, "is not a torch.nn.Module"),
    "metrics": ({"acc": 3}, TypeError, r"metrics\['acc'\]=3 is no metric"),
    "patience": (0, ValueError, "patience=0 is not accepted"),
    "min_delta": ("x", ValueError, "min_delta='x' is not accepted"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_when_it_is_assigned(name):
    value, error, words = WRONG[name]
    trainer = make(PlainTrainer.add_on(EarlyStoppingAddon))
    before = getattr(trainer, name)
    with pytest.raises(error, match=words):
        setattr(trainer, name, value)
    assert getattr(trainer, name) is before
    trainer.run(1, loader())


def test_micro_batches_beside_shards_are_refused():
    trainer = make(shards=2)
    with pytest.raises(ValueError, match="leave gradient_accumulation_steps=4 out"):
        trainer.gradient_accumulation_steps = 4


FIXED = {
    "device": "cuda",
    "mixed_precision": "bf16",
    "split_batches": False,
    "seeded_samples": False,
    "shards": 4,
    "sync_batchnorm": True,
    "kwargs_handlers": [1],
    "max_wait": "3min",
    "save_path": "elsewhere",
    "log_every": "3st",
    "save_format": "ckpt",
    "save_every": "3st",
    "keep_last": 5,
    "keep_best": 5,
    "save_async": False,
    "save_required": True,
    "precision": "bf16",
    "web_logger": {"tensorboard": {}},
}
WORKS = {"model", "optimizer", "scheduler", "log_bar", "scheduler_step_on_batch", "monitor", *WRONG}


@pytest.mark.parametrize("name", FIXED)
def test_what_is_decided_when_the_trainer_is_made_is_refused_afterwards(tmp_path, name):
    kind = PlainTrainer.add_on(PrecisionMixerAddon, StateManagerAddon, TensorBoardLoggerAddon)
    trainer = make(kind, save_path=tmp_path / "run")
    before = getattr(trainer, name)
    words = f"{name}={FIXED[name]!r} cannot be assigned, since .* write {type(trainer).__name__}(..., {name}="
    with pytest.raises(AttributeError, match=re.escape(words).replace(r"\.\*", ".*")):
        setattr(trainer, name, FIXED[name])
    assert getattr(trainer, name) is before or before is None
    if name != "web_logger":
        setattr(trainer, name, before)  # which changes nothing


def test_every_option_works_or_is_refused():
    kind = PlainTrainer.add_on(EarlyStoppingAddon, PrecisionMixerAddon, StateManagerAddon, TrackerAddon, MultiGPUAddon)
    known = {*FIXED, *WORKS, "log_with"}
    assert set(options_of(kind)) == known
    assert set(inspect.signature(Trainer.__init__).parameters) - {"self", "unknown"} <= known


def test_another_optimizer_in_the_middle_of_an_epoch_is_refused_and_before_an_epoch_taken():
    class Exchanging(PlainTrainer):
        at, inside = 2, False

        def exchange(self):
            self.optimizer = sgd(self.model, lr=0.0)

        def run_epoch(self, batches, **kwargs):
            if self.progress_checker.get_epoch() == self.at and not self.inside:
                self.exchange()
                self.before = weights(self.model)
            super().run_epoch(batches, **kwargs)

        def logging(self, step_dict):
            super().logging(step_dict)
            if self.progress_checker.get_step() == 9 and self.inside:
                self.exchange()

    trainer = make(Exchanging)
    trainer.run(2, loader())
    assert_equal(weights(trainer.model), trainer.before)
    trainer = make(Exchanging)
    trainer.inside = True
    with pytest.raises(ValueError, match="another model or optimizer was assigned in the middle of an epoch; assign"):
        trainer.run(2, loader())
    assert trainer.progress_checker.get_step() == 10
    trainer.run(1, loader())  # which prepares it


def test_a_scheduler_of_another_optimizer_is_refused_before_the_epoch():
    class Scheduling(PlainTrainer):
        def run_epoch(self, batches, **kwargs):
            if self.progress_checker.get_epoch() == 2:
                self.scheduler = torch.optim.lr_scheduler.StepLR(sgd(self.model), 1)
            super().run_epoch(batches, **kwargs)

    with pytest.raises(ValueError, match="belongs to another optimizer"):
        make(Scheduling).run(2, loader())
