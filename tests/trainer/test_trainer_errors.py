"""A bad input gets a sentence before the first batch, and nothing is lost."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.helpers import MLPTrainer, PlainTrainer, assert_equal, data, loader, make, mlp, sgd, weights
from zae_engine.trainer.addons import EarlyStoppingAddon


def returning(make_values):
    class Returning(PlainTrainer):
        def train_step(self, batch):
            return make_values(super().train_step(batch)["loss"])

    return Returning


BAD_STEPS = {
    "no loss": (lambda loss: {"lose": loss}, KeyError, "returned no 'loss' but 'lose'; rename 'lose' to 'loss'"),
    "a tensor": (lambda loss: loss, TypeError, "returned a Tensor; return a dict with 'loss'"),
    "nothing": (lambda loss: None, TypeError, "returned a NoneType"),
    "a float": (lambda loss: {"loss": loss.item()}, TypeError, "a loss of type float; return the tensor"),
    "many": (lambda loss: {"loss": loss * torch.ones(3)}, ValueError, r"a loss of shape \(3,\); return one number"),
    "detached": (lambda loss: {"loss": loss.detach()}, ValueError, "a loss without a graph"),
}


@pytest.mark.parametrize("case", BAD_STEPS)
def test_a_bad_step_is_named_and_the_weights_stay(case):
    values, error, sentence = BAD_STEPS[case]
    trainer = make(returning(values))
    before = weights(trainer.model)
    with pytest.raises(error, match=sentence):
        trainer.run(1, loader())
    assert_equal(weights(trainer.model), before)


@pytest.mark.parametrize("retain", [False, True])
def test_backward_in_a_step_is_refused(retain):
    class Eager(PlainTrainer):
        def train_step(self, batch):
            values = super().train_step(batch)
            values["loss"].backward(retain_graph=retain)
            return values

    with pytest.raises(ValueError, match=r"train_step called loss.backward\(\); return the loss only"):
        make(Eager).run(1, loader())


def test_a_test_step_without_loss():
    class Bad(PlainTrainer):
        def test_step(self, batch):
            return {"output": 1}

    with pytest.raises(KeyError, match="test_step returned no 'loss' but 'output'"):
        make(Bad).run(1, loader(), loader())


@pytest.mark.parametrize(("loss", "sentence"), [(None, "of type NoneType"), (torch.ones(4), r"of shape \(4,\)")])
def test_a_test_step_whose_loss_is_no_number(loss, sentence):
    class Bad(PlainTrainer):
        def test_step(self, batch):
            return {"loss": loss}

    with pytest.raises(ValueError, match=f"test_step returned a loss {sentence}; return one number"):
        make(Bad).run(1, loader(), loader())


def test_a_loss_of_shape_one_is_a_number():
    trainer = make(returning(lambda loss: {"loss": loss.reshape(1)}))
    plain = make()
    assert trainer.run(1, loader())[-1]["train_loss"] == plain.run(1, loader())[-1]["train_loss"]


def test_an_optimizer_of_another_model():
    with pytest.raises(ValueError, match="4 of the optimizer's 4 parameters are not the model's"):
        PlainTrainer(mlp(), device="cpu", optimizer=sgd(mlp()))


BAD_PARTS = {
    "no optimizer": ({"optimizer": None}, ValueError, "mode='train' needs an optimizer"),
    "mode": ({"mode": "trian"}, ValueError, r"mode='trian' is not known; .* did you mean 'train'\?"),
    "optimizer type": ({"optimizer": "sgd"}, TypeError, "optimizer='sgd' is not a torch.optim.Optimizer"),
    "clip": ({"gradient_clip": -1}, ValueError, "gradient_clip=-1 is not accepted; write a number of at least 0"),
    "parts": ({"gradient_accumulation_steps": 1.5}, ValueError, "gradient_accumulation_steps=1.5 is not accepted"),
    "seed": ({"seed": -3}, ValueError, "seed=-3 is not accepted; write a whole number of at least 0"),
    "on_nan": ({"on_nan": "ignore"}, ValueError, "write one of 'warn', 'stop'"),
    "monitor_mode": ({"monitor_mode": "maximum"}, ValueError, "write one of 'min', 'max'"),
    "scheduler": ({"scheduler": object()}, TypeError, r"has no step\(\)"),
    "option": (
        {"gradient_clp": 1.0},
        TypeError,
        r"PlainTrainer has no option 'gradient_clp'; did you mean 'gradient_clip'",
    ),
    "precision": ({"mixed_precision": "bf61"}, ValueError, "'bf61' is not a precision"),
    "fp16": ({"mixed_precision": "fp16"}, ValueError, "'fp16' is not possible on the CPU"),
    "device": ({"device": "cpuu"}, ValueError, "device='cpuu' is not a device; this machine has 'cpu'"),
    "devices": ({"device": ["cpu", "cpu"]}, ValueError, "names 2 devices; training on several needs MultiGPUAddon"),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_a_bad_part_is_refused_at_once(case):
    options, error, sentence = BAD_PARTS[case]
    with pytest.raises(error, match=sentence):
        make(**options)


def test_a_model_that_is_a_class():
    with pytest.raises(TypeError, match=r"is not a torch.nn.Module; create it first: model=Net\(\)"):
        PlainTrainer(nn.Linear, device="cpu", mode="test")


def test_a_scheduler_of_another_optimizer():
    with pytest.raises(ValueError, match=r"the scheduler \(StepLR\) belongs to another optimizer"):
        make(scheduler=lr_scheduler.StepLR(sgd(mlp()), 1))


def test_plateau_per_batch():
    model = mlp()
    optimizer = sgd(model)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(ValueError, match="ReduceLROnPlateau waits for an epoch's loss"):
        make(model=model, optimizer=optimizer, scheduler=plateau, scheduler_step_on_batch=True)


@pytest.mark.parametrize("kind", [lr_scheduler.OneCycleLR, lr_scheduler.PolynomialLR])
def test_a_schedule_that_cannot_last_the_run(kind):
    model = mlp()
    optimizer = sgd(model)
    schedule = kind(optimizer, 0.1, total_steps=11) if kind is lr_scheduler.OneCycleLR else kind(optimizer, 11)
    trainer = make(model=model, optimizer=optimizer, scheduler=schedule, scheduler_step_on_batch=True)
    before = weights(model)
    with pytest.raises(ValueError, match=r"=11 steps, but this run takes it to 12"):
        trainer.run(2, loader())
    assert_equal(weights(model), before)
    trainer.run(loader=loader(), max_steps=11)


BAD_RUNS = {
    "no loader": ({"n_epoch": 1}, TypeError, "loader=None cannot be walked; give a DataLoader"),
    "no end": ({"loader": []}, ValueError, r"run\(\) does not say when to end"),
    "loader": ({"n_epoch": 1, "loader": 3}, TypeError, "loader=3 cannot be walked"),
    "valid": ({"n_epoch": 1, "loader": [], "valid_loader": {"a": 4}}, TypeError, "valid_loader 'a'=4 cannot be walked"),
    "epochs": ({"n_epoch": -1, "loader": []}, ValueError, "n_epoch=-1 is not a duration"),
    "time": ({"max_time": 10, "loader": []}, ValueError, "max_time=10 is not a duration; .*'10min'"),
    "every": (
        {"n_epoch": 1, "valid_every": "often", "loader": []},
        ValueError,
        "valid_every='often' is not a duration",
    ),
    "option": ({"n_epoch": 1, "loader": [], "max_step": 1}, TypeError, "did you mean 'max_steps'"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_a_bad_run_is_refused_at_once(case):
    options, error, sentence = BAD_RUNS[case]
    with pytest.raises(error, match=sentence):
        make().run(**options)


def test_training_after_test_without_optimizer():
    trainer = PlainTrainer(mlp(), device="cpu", mode="test", log_bar=False)
    trainer.toggle("train")
    with pytest.raises(ValueError, match="mode='train' needs an optimizer"):
        trainer.run(1, loader())


def test_max_steps_means_nothing_in_mode_test():
    with pytest.raises(ValueError, match="max_steps and max_time end a training"):
        make(mode="test").run(1, loader(), max_steps=3)


def test_a_second_trainer_that_contradicts_the_first():
    first = make(mixed_precision="bf16")
    with pytest.raises(ValueError, match=r"mixed_precision='no' \(in use: 'bf16'\) contradicts another trainer"):
        make(mixed_precision="no")
    first.run(1, loader())  # nothing was lost
    with pytest.raises(ValueError, match=r"mixed_precision='no' \(in use: 'bf16'\)"):
        make()  # not even silently
    del first
    assert make(mixed_precision="no").accelerator.mixed_precision == "no"


def test_two_trainers_side_by_side_train_as_each_alone():
    one, two = make(), make(seed=1, dropout=0.5)
    one.run(1, loader(shuffle=True))
    two.run(1, loader(shuffle=True))
    one.run(1, loader(shuffle=True))
    alone = make()
    alone.run(2, loader(shuffle=True))
    assert_equal(weights(one.model), weights(alone.model))


def test_an_error_in_the_users_code_comes_through_and_training_can_go_on():
    class Fragile(MLPTrainer):
        broken = True

        def test_step(self, batch):
            if self.broken:
                raise RuntimeError("mine")
            return super().test_step(batch)

    trainer = make(Fragile)
    with pytest.raises(RuntimeError, match="mine"):
        trainer.run(1, loader(), loader())
    assert trainer.mode == "train"
    assert trainer.model.training
    trainer.broken = False
    assert trainer.run(1, loader(), loader())[-1]["test_loss"] > 0


def test_an_unknown_option_names_the_near_miss_and_its_owner():
    stacked = PlainTrainer.add_on(EarlyStoppingAddon)
    with pytest.raises(TypeError, match=r"did you mean 'patience' \(of EarlyStoppingAddon\)\?"):
        make(stacked, patiense=3)


def test_accumulation_needs_batches_that_can_be_cut():
    class Strings(PlainTrainer):
        def train_step(self, batch):
            return super().train_step(data()[:4])

    with pytest.raises(TypeError, match="needs batches that can be cut along their first dimension"):
        make(Strings, gradient_accumulation_steps=2).run(1, [["a", "b"], ["c", "d"]])


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"metrics": [1]}, TypeError, r"metrics=\[1\] is no dict; name each metric: metrics={'acc': "),
        (
            {"max_wait": "3st"},
            ValueError,
            "is no time; write '10min' or a timedelta, or None for no end",
        ),
        ({"max_wait": 3}, ValueError, "max_wait=3 is not a duration"),
    ],
)
def test_an_option_of_another_kind_is_refused(options, error, sentence):
    with pytest.raises(error, match=sentence):
        make(**options)
