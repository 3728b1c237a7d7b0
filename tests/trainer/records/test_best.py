"""The best weights, files, and inference."""

import copy

import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from tests.helpers import MLPTrainer, PlainTrainer, assert_equal, data, loader, make, mlp, weights
from zae_engine.trainer import WeightsError


class Scripted(PlainTrainer):
    """Its validation metric follows a script, whatever the weights are."""

    script = (3.0, 1.0, 2.0)

    def metric_on_epoch_end(self):
        return {"score": self.script[self.progress_checker.get_epoch() - 1]} if self.mode == "test" else {}


class Snapshots(Scripted):
    def check_better(self, cur_epoch, cur_loss):
        self.__dict__.setdefault("seen", []).append(weights(self.model))
        return super().check_better(cur_epoch, cur_loss)


@pytest.mark.parametrize(("direction", "best"), [("min", 1), ("max", 0)])
def test_the_best_weights_are_a_copy_and_come_back(direction, best):
    trainer = make(Snapshots, monitor="score", monitor_mode=direction)
    trainer.run(3, loader(), loader(20))
    assert trainer.weight_buffer["epoch"] == [best]
    assert_equal(weights(trainer.model), trainer.seen[2])
    trainer.apply_weights()
    assert_equal(weights(trainer.model), trainer.seen[best])


def test_without_validation_the_training_loss_tells():
    trainer = make(Snapshots)
    history = trainer.run(3, loader())
    assert trainer.loss_buffer == min(history.column("train_loss"))


@pytest.mark.parametrize("name", ["test_score", "score"])
def test_monitor_takes_a_name_with_or_without_prefix(name):
    trainer = make(Scripted, monitor=name, monitor_mode="min")
    trainer.run(2, loader(), loader(20))
    assert trainer.loss_buffer == 1.0


def test_an_unknown_monitor_warns_and_keeps_nothing_else_for_it():
    trainer = make(Scripted, monitor="scroe", monitor_mode="max")
    with pytest.warns(
        UserWarning, match=r"monitor='scroe' is not among the metrics; did you mean 'score'\? Without it"
    ):
        trainer.run(2, loader(), loader(20))
    assert trainer.weight_buffer == {"epoch": [], "weight": []}


def test_a_monitor_that_is_there_at_times_is_compared_with_itself():
    class Sometimes(Scripted):
        def metric_on_epoch_end(self):
            return super().metric_on_epoch_end() if self.progress_checker.get_epoch() != 1 else {}

    trainer = make(Sometimes, monitor="score", monitor_mode="max")
    with pytest.warns(UserWarning, match="monitor='score' is not among the metrics"):
        trainer.run(3, loader(), loader(20))
    assert trainer.loss_buffer == 2.0


def test_apply_weights_before_there_are_any():
    with pytest.raises(WeightsError, match="there are no best weights yet"):
        make().apply_weights()


@pytest.mark.parametrize("name", ["m.safetensors", "m.safetensor", "m.ckpt", "folder/m.pt"])
def test_a_saved_model_comes_back(name, tmp_path):
    trainer = make()
    trainer.run(1, loader())
    trainer.save_model(tmp_path / name)
    other = make(model=mlp(seed=5))
    other.apply_weights(tmp_path / name)
    assert_equal(weights(other.model), weights(trainer.model))


def test_a_saved_model_loads_without_the_library(tmp_path):
    trainer = make()
    trainer.run(1, loader())
    trainer.save_model(str(tmp_path / "m.safetensors"))
    trainer.save_model(str(tmp_path / "m.ckpt"))
    fresh = mlp(seed=5)
    fresh.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert_equal(weights(fresh), weights(trainer.model))
    fresh.load_state_dict(torch.load(tmp_path / "m.ckpt", weights_only=True))
    assert_equal(weights(fresh), weights(trainer.model))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    trainer = make(model=Tied())
    trainer.run(1, loader())
    trainer.save_model(tmp_path / "tied.safetensors")
    for load in (lambda m: load_model(m, tmp_path / "tied.safetensors"), take_with_trainer(tmp_path)):
        fresh = Tied()
        load(fresh)
        assert_equal(weights(fresh), weights(trainer.model))
        assert fresh.head.weight is fresh.embed.weight


def take_with_trainer(folder):
    return lambda model: make(model=model).apply_weights(folder / "tied.safetensors")


def test_a_file_of_another_model_names_the_keys_and_changes_nothing(tmp_path):
    torch.save(nn.Linear(8, 3).state_dict(), tmp_path / "other.ckpt")
    trainer = make()
    before = weights(trainer.model)
    with pytest.raises(
        WeightsError, match=r"another model than this Sequential; missing: 0.weight.*unexpected: weight, bias"
    ):
        trainer.apply_weights(tmp_path / "other.ckpt")
    assert_equal(weights(trainer.model), before)


def test_a_malicious_file_is_refused_and_nothing_runs(tmp_path):
    torch.save({"weight": Touch(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    with pytest.raises(WeightsError, match="is refused: it holds more than tensors"):
        make().apply_weights(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.usefixtures("starts_processes")
def test_inference_returns_outputs_in_the_datasets_order():
    trainer = make(MLPTrainer)
    trainer.run(1, loader())
    outputs = trainer.inference(loader(shuffle=True, num_workers=2))
    assert [len(o) for o in outputs] == [8, 8, 8, 8, 8, 5]
    with torch.no_grad():
        wanted = trainer.model(data().tensors[0])
    assert torch.allclose(torch.cat(outputs), wanted, atol=1e-6)


def test_inference_leaves_everything_as_it_was():
    trainer = make(MLPTrainer, dropout=0.5)
    trainer.run(1, loader(), loader(20))
    trainer.model[2].eval()  # a user's own choice, which must survive
    names = ("log_train", "log_test", "train_metrics", "test_metrics", "mode", "loss_buffer")
    before = {name: copy.deepcopy(getattr(trainer, name)) for name in names}
    modes, state, rows = [m.training for m in trainer.model.modules()], torch.get_rng_state(), len(trainer.history)
    trainer.inference(loader(shuffle=True))
    for name, value in before.items():
        assert str(getattr(trainer, name)) == str(value)
    assert [m.training for m in trainer.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert len(trainer.history) == rows


def test_inference_keeps_a_users_sampler_and_streams():
    trainer = make(MLPTrainer)
    subset = DataLoader(data(), batch_size=4, sampler=SubsetRandomSampler([1, 5, 9], torch.Generator().manual_seed(0)))
    assert sum(len(o) for o in trainer.inference(subset)) == 3

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([data()[i] for i in range(10)])

    assert sum(len(o) for o in trainer.inference(DataLoader(Stream(), batch_size=4))) == 10


def test_inference_needs_an_output():
    with pytest.raises(KeyError, match="test_step returned no 'output' but 'loss'"):
        make().inference(loader())


def test_state_dict_round_trip():
    trainer, other = make(MLPTrainer), make(MLPTrainer)
    trainer.run(2, loader(), loader(20))
    other.load_state_dict(trainer.state_dict())
    assert other.progress_checker.get_epoch() == 3
    assert other.loss_buffer == trainer.loss_buffer
