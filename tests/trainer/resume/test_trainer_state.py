"""A trainer's whole state, there and back."""

import pytest
import torch
from torch import nn

from tests.helpers import PlainTrainer, loader, make, mlp, weights
from tests.trainer.addons.resumed import first_difference
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.folder import committed
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.resume.trainer_state import best_extra, with_twins

Managed = PlainTrainer.add_on(StateManagerAddon)


def managed(folder, model=None, optimizer=None, **options):
    model = mlp() if model is None else model
    return make(
        Managed, model=model, save_path=folder, **({"optimizer": optimizer(model)} if optimizer else {}), **options
    )


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.01)


def saved(folder, **options):
    trainer = managed(folder, **options)
    trainer.run(1, loader())
    return trainer


def test_an_optimizers_moments_keep_their_own_number_type(tmp_path):
    first, again = (managed(tmp_path, model=mlp().bfloat16(), optimizer=adam) for _ in range(2))
    for parameter in first.model.parameters():
        state = {
            "step": torch.tensor(1.0),
            "exp_avg": torch.rand(parameter.shape),
            "exp_avg_sq": torch.rand(parameter.shape),
        }
        first.optimizer.state[parameter] = state
    first.save_state()
    again.load_state()
    assert again.optimizer.state[again.model[0].weight]["exp_avg"].dtype == torch.float32
    assert first_difference(first.optimizer.state_dict(), again.optimizer.state_dict()) is None


def with_scaler(trainer):
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    return trainer


def test_a_scaler_goes_on_where_it_was(tmp_path):
    first, again = (with_scaler(managed(tmp_path / "run")) for _ in range(2))
    first.accelerator.scaler.load_state_dict(
        first.accelerator.scaler.state_dict() | {"scale": 2.0, "_growth_tracker": 2}
    )
    first.save_state()
    again.load_state()
    assert again.accelerator.scaler.state_dict() == first.accelerator.scaler.state_dict()
    assert again.accelerator.scaler.get_scale() == 2.0


def test_a_scaler_on_one_side_only_is_told(tmp_path):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match="the scaler: none in the checkpoint, one now"):
        with_scaler(managed(tmp_path)).load_state()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": nn.Linear(8, 3)}, "is of another model than this Linear; missing: weight, bias"),
        ({"optimizer": adam}, "the optimizer: SGD in the checkpoint, Adam now"),
        ({"optimizer": lambda m: torch.optim.SGD(m[0].parameters(), 0.1)}, "the optimizer's groups: "),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, options, words):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        managed(tmp_path, **options).load_state()


class Rate:
    """A scheduler that tells no state."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.param_groups[0]["lr"] *= 0.9


def test_a_scheduler_without_a_state_is_told(tmp_path):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = make(Managed, model=model, optimizer=optimizer, scheduler=Rate(optimizer), save_path=tmp_path)
    with pytest.raises(CheckpointError, match=r"a Rate, has no state_dict\(\)"):
        trainer.run(1, loader())
    assert committed(tmp_path / "checkpoints") == []


def test_tied_weights_have_all_their_names_again():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    whole = weights(model)
    once = {name: whole[name] for name in ("b.weight", "b.bias", "a.bias")}
    got = with_twins(model, {k: once[k] for k in ("a.bias", "b.bias")} | {"a.weight": whole["a.weight"]})
    assert list(got) == list(whole)
    assert first_difference(got, whole) is None


def test_what_of_the_best_weights_is_no_tensor():
    trainer = make()
    assert best_extra(trainer._recorder.best) == {}
    trainer.weight_buffer = {"epoch": [0], "weight": [{"a": torch.ones(1), "_extra_state": {"calls": 3}}]}
    assert best_extra(trainer._recorder.best) == {"_extra_state": {"calls": 3}}
