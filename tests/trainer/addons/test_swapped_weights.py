"""What `check_better` kept is what is saved, whatever the model's weights are before and after."""

import copy
import os

import pytest
import torch
from safetensors.torch import load_file

from tests.averaging import Averaged
from tests.helpers import PlainTrainer, assert_equal, loader, make, mlp, weights
from tests.trainer.records.test_best import Tied
from zae_engine.trainer import AddOnBase
from zae_engine.trainer.addons import StateManagerAddon

ORDERS = {"outside": (StateManagerAddon, Averaged), "inside": (Averaged, StateManagerAddon)}


class Rising(PlainTrainer):
    """Is best in its second epoch."""

    def metric_on_epoch_end(self):
        return {"off": abs(self.progress_checker.get_epoch() - 2.0)}


def managed(folder, order="outside", **options):
    kind = Rising.add_on(*ORDERS[order])
    return make(kind, save_path=folder, monitor="off", monitor_mode="min", **options)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("save_every", ["1ep", "2st", "4ep"])
def test_the_average_that_was_judged_is_in_every_place(tmp_path, order, save_every):
    trainer = managed(tmp_path, order, save_every=save_every)
    trainer.run(3, loader(), loader(20), resume="auto")
    last, judged = weights(trainer.model), trainer.judged
    assert_equal(load_file(tmp_path / "model.safetensors"), judged)
    trainer.apply_weights()
    trainer.save_model(tmp_path / "mine.safetensors")
    assert_equal(load_file(tmp_path / "mine.safetensors"), judged)
    again = managed(tmp_path, order, model=mlp(seed=5), save_every=save_every)
    again.run(3, loader(), loader(20), resume="auto")
    assert_equal(weights(again.model), last)  # the training's own, to go on from
    again.apply_weights()
    assert_equal(weights(again.model), judged)
    if save_every != "4ep":  # else the end alone is saved
        third = managed(tmp_path, order, model=mlp(seed=6), save_every=save_every)
        third.load_state("best")
        third.apply_weights()
        assert_equal(weights(third.model), judged)


def test_a_run_that_goes_on_keeps_the_average_and_the_folder_shows_it_after_a_crash(tmp_path):
    first = managed(tmp_path)
    first.run(2, loader(), loader(20), resume="auto")
    os.replace(tmp_path / "checkpoints" / "000001-step-6" / "model.safetensors", tmp_path / "model.safetensors")
    again = managed(tmp_path)  # the crash came between the commit and the copy: an older one lies there
    again.run(4, loader(), loader(20), resume="auto")
    for found in (load_file(tmp_path / "model.safetensors"), again.weight_buffer["weight"][0]):
        assert_equal(found, first.judged)


def test_what_was_not_swapped_is_not_written_twice(tmp_path):
    kind = Rising.add_on(StateManagerAddon)
    make(kind, save_path=tmp_path, monitor="off", monitor_mode="min").run(3, loader(), loader(20))
    there = sorted(path.name for path in tmp_path.rglob("*.safetensors") if "best" in path.name)
    assert there == []
    managed(tmp_path / "averaged").run(3, loader(), loader(20))
    assert [path.parent.name for path in (tmp_path / "averaged").rglob("best.safetensors")] == ["000002-step-12"]


@pytest.mark.parametrize("save_every", ["1ep", "3ep"])
def test_tied_weights_are_there_once(tmp_path, save_every):
    trainer = managed(tmp_path, model=Tied(), save_every=save_every)
    trainer.run(3, loader(), loader(20))
    assert list(load_file(tmp_path / "model.safetensors")) == ["embed.weight"]
    again = managed(tmp_path, model=Tied())
    again.run(3, loader(), loader(20), resume="auto")
    again.apply_weights()
    assert torch.equal(again.model.head.weight, trainer.judged["embed.weight"])
    assert again.model.head.weight is again.model.embed.weight


class Exchanged(AddOnBase):
    """Evaluates, and is judged by, another module, which stands in the model's place meanwhile."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.average = copy.deepcopy(self.model).requires_grad_(False)

    @torch.no_grad()
    def optimize(self, window):
        with torch.enable_grad():
            super().optimize(window)
        for mine, live in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mine.lerp_(live, 0.1)

    def _exchange(self):
        self.model, self.average = self.average, self.model

    def run_epoch(self, loader, **kwargs):
        if self.mode == "train":
            return super().run_epoch(loader, **kwargs)
        self._exchange()
        super().run_epoch(loader, **kwargs)
        return self._exchange()

    def check_better(self, cur_epoch, cur_loss):
        self._exchange()
        better = super().check_better(cur_epoch, cur_loss)
        self._exchange()
        return better


@pytest.mark.parametrize("valid_every", ["1ep", "2st"])
def test_a_model_that_is_put_back_is_trained_on(tmp_path, valid_every):
    trainer = make(Rising.add_on(Exchanged, StateManagerAddon), save_path=tmp_path, monitor="off", monitor_mode="min")
    trainer.run(3, loader(), loader(20), valid_every=valid_every)
    plain = make(Rising)
    plain.run(3, loader(), loader(20), valid_every=valid_every)
    assert_equal(weights(trainer.model), weights(plain.model))
    judged = load_file(tmp_path / "model.safetensors")
    assert any(not torch.equal(judged[name], value) for name, value in plain.weight_buffer["weight"][0].items())
    trainer.apply_weights()
    assert_equal(weights(trainer.model), judged)


def test_a_model_that_is_not_put_back_in_time_is_refused():
    class Forgetful(PlainTrainer):
        def run_batch(self, batch, **kwargs):
            super().run_batch(batch, **kwargs)
            self.model = copy.deepcopy(self.model)

    with pytest.raises(ValueError, match="another model or optimizer was assigned in the middle of an epoch"):
        make(Forgetful).run(1, loader())
