"""Corners where a trainer may go wrong without a word."""

import copy
import math
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

from tests.helpers import (
    MLPTrainer,
    PlainTrainer,
    assert_equal,
    data,
    largest_difference,
    loader,
    make,
    mlp,
    sgd,
    weights,
)
from zae_engine.trainer.data.cut import count_samples

ROOT = Path(__file__).parents[2]


def test_an_optimizer_over_a_part_trains_that_part_and_clips_it_alone():
    model = mlp()
    trainer = make(model=model, optimizer=sgd(model[3]), gradient_clip=1.0)
    before = weights(model)
    trainer.run(1, loader())
    trainer.run(1, loader())  # the other parameters have gradients by now
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[3].weight, before["3.weight"])
    own = torch.cat([p.grad.flatten() for p in model[3].parameters()]).norm().item()
    assert min(trainer.log_train["grad_norm"][-1].item(), 1.0) == pytest.approx(own, rel=1e-4)


def test_a_group_added_in_the_middle_of_a_run_is_cleared_and_clipped():
    class Unfreezing(PlainTrainer):
        def optimize(self, window):
            if self.progress_checker.get_step() == 3:
                self.optimizer.add_param_group({"params": list(self.model[0].parameters())})
            super().optimize(window)
            self.norms.append(torch.cat([p.grad.flatten() for p in self._place.update.parameters]).norm().item())

    model = mlp()
    trainer = make(Unfreezing, model=model, optimizer=sgd(model[3]), gradient_clip=0.01)
    trainer.norms = []
    trainer.run(2, loader())
    assert trainer._place.update.parameters[0] is model[0].weight
    assert trainer.norms == pytest.approx([0.01] * 12, rel=1e-3)


def test_an_optimizers_own_zero_grad_is_called():
    class Own(torch.optim.SGD):
        cleared = 0

        def zero_grad(self, set_to_none=True):
            self.cleared += 1
            super().zero_grad(set_to_none)

    model = mlp()
    optimizer = Own(model.parameters(), lr=0.1)
    make(model=model, optimizer=optimizer).run(1, loader())
    assert optimizer.cleared >= 6


def test_two_trainers_share_a_model():
    model = mlp()
    one, two = make(model=model, optimizer=sgd(model[0])), make(model=model, optimizer=sgd(model[3]))
    for _ in range(2):
        one.run(1, loader())
        two.run(1, loader())
    assert one.history[-1]["train_loss"] > two.history[-1]["train_loss"]


class DetectionTrainer(PlainTrainer):
    def train_step(self, batch):
        images, targets = batch
        assert len(images) == len(targets)
        features = torch.stack([image.mean((1, 2)) for image in images])
        wanted = torch.stack([target["boxes"].mean(0) for target in targets])
        return {"loss": nn.functional.mse_loss(self.model(features), wanted)}


def test_lists_of_images_and_targets_are_samples():
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 4 + i, 5, generator=generator) for i in range(7)]
    targets = [{"boxes": torch.rand(1 + i, 4, generator=generator)} for i in range(7)]
    batches = [(images[:4], targets[:4]), (images[4:], targets[4:])]
    results = []
    for parts in (1, 2):
        torch.manual_seed(0)
        trainer = make(DetectionTrainer, model=nn.Linear(3, 4), gradient_accumulation_steps=parts)
        trainer.run(2, batches)
        results.append(weights(trainer.model))
        assert trainer.log_train["num_items"] == [4, 3]
    assert largest_difference(*results) <= 1e-6


def test_an_evaluation_by_itself_gets_a_row_of_its_own():
    trainer = make(MLPTrainer)
    trainer.run(2, loader(), loader(20))
    last = dict(trainer.history[-1])
    trainer.toggle("test")
    trainer.run(1, loader(10))
    assert trainer.history[1] == last
    assert len(trainer.history) == 3
    assert "train_loss" not in trainer.history[2]


def test_the_callers_random_streams_go_on_where_they_were():
    trainer = make(dropout=0.5)  # which sets torch's
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    trainer.run(2, loader(shuffle=True), loader(20))
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("shuffle", [True, False])
def test_inference_draws_nothing_from_the_loaders_own_generator(shuffle):
    batches = loader(shuffle=shuffle, generator=torch.Generator().manual_seed(3))
    before = batches.generator.get_state()
    make(MLPTrainer).inference(batches)
    assert torch.equal(batches.generator.get_state(), before)


def test_each_run_says_that_its_loss_is_not_finite():
    class Bad(PlainTrainer):
        def train_step(self, batch):
            return {"loss": super().train_step(batch)["loss"] * torch.nan}

    trainer = make(Bad)
    for first in (1, 7):
        with pytest.warns(UserWarning, match=f"'loss' is nan from step {first} on; on_nan='stop' would end the run"):
            trainer.run(1, loader())


def test_on_nan_stop_acts_within_a_long_epoch():
    class Slow(PlainTrainer):
        def train_step(self, batch):
            loss = super().train_step(batch)["loss"]
            torch.randn(400, 400) @ torch.randn(400, 400)
            return {"loss": loss * (torch.nan if self.progress_checker.get_step() > 5 else 1)}

    trainer = make(Slow, on_nan="stop")
    with pytest.warns(UserWarning, match="the run stops"):
        trainer.run(1, (batch for _ in range(10**6) for batch in loader()))
    assert trainer.progress_checker.get_step() < 10**6


def one_cycle(trainer_options, total):
    model = mlp()
    optimizer = sgd(model)
    return make(
        model=model,
        optimizer=optimizer,
        scheduler=lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total),
        **trainer_options,
    )


def test_a_schedule_per_epoch_is_held_to_max_steps():
    with pytest.raises(ValueError, match="lasts total_steps=3 steps, but this run takes it to 4"):
        one_cycle({}, 3).run(max_steps=20, loader=loader())  # 6 steps an epoch
    one_cycle({}, 3).run(10, loader(), max_steps=12)


@pytest.mark.parametrize("limit", [{"max_time": "1s"}, {"n_epoch": 2}])
def test_a_schedule_with_an_end_needs_a_run_with_one(limit):
    batches = (batch for batch in loader()) if "n_epoch" in limit else loader()
    trainer = one_cycle({"scheduler_step_on_batch": "n_epoch" in limit}, 12)
    with pytest.raises(ValueError, match=r"nothing says how many|can be walked once"):
        trainer.run(loader=batches, **limit)


def test_a_row_within_an_epoch_has_no_metric_of_the_last_one():
    trainer = make(MLPTrainer)
    trainer.run(2, loader(), loader(20), valid_every="4st")
    within = next(row for row in trainer.history if row["step"] == 8)
    assert "train_acc" not in within
    assert "train_acc" in trainer.history[-1]


SCRIPT = """from tests.helpers import *
trainer = make(MLPTrainer, log_bar=True)
trainer.run(3, loader())
print(len(trainer.history))"""


def test_a_full_disk_behind_the_output_ends_no_training(nursery, tmp_path):
    process = nursery.start("-c", SCRIPT, out=tmp_path / "out", err=Path("/dev/full"))
    assert nursery.code(process, 60) in (0, 120)  # 120: Python could not flush the output itself at its end
    assert (tmp_path / "out").read_text().strip() == "3"


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("redirection", ["2>&-", "2> >(true)"])
def test_an_output_that_is_gone_ends_no_training(redirection):
    command = f"'{sys.executable}' -c '{SCRIPT}' {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert done.returncode in (0, 120)
    assert done.stdout.strip() == "3"


@pytest.mark.parametrize("shown", [True, False])
def test_lazy_modules_train(shown, capsys):
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3))
    trainer = make(model=model, log_bar=shown)
    trainer.run(1, loader())
    assert model[0].weight.shape == (16, 8)
    assert ("parameters and lazy ones" in capsys.readouterr().err) == shown


def test_numbers_of_numpy_are_numbers():
    trainer = make(seed=np.int64(3), gradient_accumulation_steps=np.int64(2), gradient_clip=np.float32(1))
    trainer.run(np.int64(2), loader(), max_steps=np.int32(9))
    assert trainer.progress_checker.get_step() == 10


def test_a_run_of_no_epoch_does_nothing():
    assert len(make().run(0, loader())) == 0


def test_values_of_an_evaluation_are_what_they_were():
    class Counting(PlainTrainer):
        seen = torch.zeros(())

        def test_step(self, batch):
            self.seen += 1
            return super().test_step(batch) | {"seen": self.seen}

    trainer = make(Counting, mode="test")
    trainer.run(1, loader())
    assert [int(v) for v in trainer.log_test["seen"]] == [1, 2, 3, 4, 5, 6]


def plateau(**run):
    model = mlp()
    optimizer = sgd(model)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer)
    trainer = make(model=model, optimizer=optimizer, scheduler=scheduler)
    trainer.run(4, loader(), **run)
    return trainer, scheduler


def test_plateau_hears_of_validations_within_epochs():
    trainer, scheduler = plateau(valid_loader=loader(20), valid_every="5st")
    assert scheduler.last_epoch == 4
    assert scheduler.best in trainer.history.column("test_loss")


def test_without_a_validation_set_the_training_loss_decides():
    trainer, scheduler = plateau(valid_loader={})
    assert scheduler.best == trainer.loss_buffer == min(trainer.history.column("train_loss"))


@pytest.mark.filterwarnings("ignore:valid_loader")
@pytest.mark.parametrize("empty", [[], {"a": []}])
def test_without_a_validation_sample_nothing_decides(empty):
    trainer, scheduler = plateau(valid_loader=empty)
    assert scheduler.best == trainer.loss_buffer == math.inf
    assert trainer.weight_buffer["epoch"] == []


def test_metrics_of_named_sets_are_pooled_by_samples():
    trainer = make(MLPTrainer, monitor="acc", monitor_mode="max")
    row = trainer.run(1, loader(), {"a": loader(10), "b": loader(40)})[-1]
    assert row["test_acc"] == pytest.approx((row["test_a_acc"] * 10 + row["test_b_acc"] * 40) / 50)
    assert trainer.loss_buffer == row["test_acc"]


@pytest.mark.parametrize("name", ["", 0, None])
def test_a_validation_set_needs_a_name(name):
    with pytest.raises(ValueError, match=f"valid_loader has a set named {name!r}; name each set by a word"):
        make().run(1, loader(), {name: loader()})


def test_max_time_that_ends_in_a_validation_ends_the_run():
    class Slow(PlainTrainer):
        def test_step(self, batch):
            time.sleep(0.3)
            return super().test_step(batch)

    trainer = make(Slow)
    trainer.run(loader=loader(), valid_loader=loader(8), max_time="0.3s")
    assert len(trainer.history) == 1


def test_a_deep_copy_trains_by_itself():
    trainer = make(MLPTrainer, log_bar=True)
    trainer.run(1, loader())
    other = copy.deepcopy(trainer)
    before = weights(trainer.model)
    other.run(1, loader())
    assert_equal(weights(trainer.model), before)
    assert len(other.history) == 2
    assert other.log_train._noticed().__self__ is other._recorder


def test_an_override_of_optimize_may_do_its_own_step():
    class Own(PlainTrainer):
        def optimize(self, window):
            self.optimizer.zero_grad()
            values = self.train_step(window.micros[0][0])
            values["loss"].backward()
            self.optimizer.step()
            window.values = {"loss": values["loss"].detach()}

    model = mlp()
    optimizer = sgd(model)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    trainer = make(Own, model=model, optimizer=optimizer, scheduler=scheduler, scheduler_step_on_batch=True)
    trainer.run(1, loader())
    assert scheduler.last_epoch == 6


class Modes(PlainTrainer):
    def train_step(self, batch):
        assert self.model.training
        return super().train_step(batch)

    def test_step(self, batch):
        assert not self.model.training
        assert not torch.is_grad_enabled()
        return super().test_step(batch) | {"output": self.model(batch[0])}


def test_dropout_and_gradients_are_off_in_every_evaluation():
    trainer = make(Modes, dropout=0.9)
    trainer.run(1, loader(), loader(20), valid_every="2st")
    first, second = (torch.cat(trainer.inference(loader())) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.cat(trainer.inference(loader(batch_size=45))), trainer.inference(loader(batch_size=45))[0])


def test_a_batch_by_itself_is_trained_or_evaluated_in_the_right_mode():
    trainer = make(Modes, dropout=0.5)
    batch = next(iter(loader()))
    trainer.model.eval()
    trainer.run_batch(batch)
    trainer.toggle("test")
    trainer.run_batch(batch)
    assert trainer.model.training


def test_an_optimizer_that_needs_a_closure_is_refused():
    model = mlp()
    with pytest.raises(ValueError, match="LBFGS computes the loss several times a step"):
        make(model=model, optimizer=torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize("items", [None, "8", -3, torch.ones(8)])
def test_num_items_that_are_no_number_are_refused(items):
    class Bad(PlainTrainer):
        def train_step(self, batch):
            return super().train_step(batch) | {"num_items": items}

    with pytest.raises(ValueError, match="train_step returned num_items="):
        make(Bad).run(1, loader())


def test_a_key_that_is_no_string_is_refused():
    class Bad(PlainTrainer):
        def train_step(self, batch):
            return super().train_step(batch) | {0: 1.0}

    with pytest.raises(TypeError, match="train_step returned the key 0; name each value by a string"):
        make(Bad).run(1, loader())


def test_a_users_own_grad_norm_is_kept():
    class Own(PlainTrainer):
        def train_step(self, batch):
            return super().train_step(batch) | {"grad_norm": 5.0}

    assert make(Own, gradient_clip=1.0).run(1, loader())[-1]["train_grad_norm"] == 5.0


BAD_LOADERS = {
    "dataset": (lambda: data(), "loader is a TensorDataset, a dataset; wrap it: DataLoader"),
    "dict": (lambda: {"x": 1}, "cannot be walked; give a DataLoader"),
    "string": (lambda: "data", "cannot be walked; give a DataLoader"),
    "tensor": (lambda: torch.ones(3, 3), "cannot be walked; give a DataLoader"),
}


@pytest.mark.parametrize("case", BAD_LOADERS)
def test_what_is_no_loader_is_refused(case):
    build, sentence = BAD_LOADERS[case]
    with pytest.raises(TypeError, match=sentence):
        make().run(1, build())
    with pytest.raises(TypeError, match=sentence):
        make().inference(build())


def test_a_generator_cannot_validate_within_an_epoch():
    with pytest.raises(ValueError, match="valid_loader is a generator, which can be walked once, but valid_every="):
        make().run(1, loader(), (b for b in loader()), valid_every="2st")


def test_a_loader_whose_length_is_not_implemented():
    class Odd:
        def __len__(self):
            raise NotImplementedError

        def __iter__(self):
            return iter(loader())

    assert make().run(1, Odd())[-1]["step"] == 6


def test_a_step_may_return_any_dict_in_any_precision():
    class Own(PlainTrainer):
        def train_step(self, batch):
            return defaultdict(list, super().train_step(batch))

    assert make(Own, mixed_precision="bf16").run(1, loader())[-1]["step"] == 6


NUMBERS = {"a": np.array(2.0), "b": torch.ones(1)}


@pytest.mark.parametrize(("metrics", "kept"), [([1], {}), (NUMBERS, {"a": 2.0, "b": 1.0})])
@pytest.mark.filterwarnings("ignore:metric_on_epoch_end")
def test_metrics_of_every_form(metrics, kept):
    class Own(PlainTrainer):
        def metric_on_epoch_end(self):
            return metrics

    trainer = make(Own)
    trainer.run(1, loader())
    assert {k: v for k, v in trainer.train_metrics.items() if k != "loss"} == kept


def test_a_monitor_has_to_be_a_name():
    with pytest.raises(TypeError, match="monitor=3 is not a metric's name"):
        make(monitor=3)


def test_a_scheduler_waits_for_a_real_step(monkeypatch):
    monkeypatch.setattr(
        "zae_engine.trainer.step.update.DirectUpdate.step", lambda self: False
    )  # as an fp16 overflow does
    model = mlp()
    optimizer = sgd(model)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    make(model=model, optimizer=optimizer, scheduler=scheduler, scheduler_step_on_batch=True).run(1, loader())
    assert scheduler.last_epoch == 0


class Extra(nn.Linear):
    """Carries a state that is no tensor."""

    calls = 0

    def get_extra_state(self):
        return {"calls": [self.calls]}

    def set_extra_state(self, state):
        self.calls = state["calls"][0]


def test_extra_state_is_kept_with_the_best_weights_and_in_a_file(tmp_path):
    trainer = make(model=Extra(8, 3))
    trainer.run(1, loader())
    trainer.model.calls = 7
    trainer.apply_weights()
    assert trainer.model.calls == 0
    trainer.save_model(tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match="safetensors holds tensors only, and _extra_state is none"):
        trainer.save_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
def test_a_saved_file_has_the_permissions_of_any_new_file(name, tmp_path):
    make().save_model(tmp_path / name)
    (tmp_path / "new").touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / "new").stat().st_mode


def test_not_one_key_in_common_is_refused_even_if_not_strict(tmp_path):
    torch.save({"other.weight": torch.ones(2)}, tmp_path / "o.ckpt")
    with pytest.raises(ValueError, match=r"has no key in common with this Sequential; it has other\.weight"):
        make().apply_weights(tmp_path / "o.ckpt", strict=False)


def test_replaced_parts_leave_nothing_in_the_accelerator():
    trainer = make()
    for _ in range(3):
        trainer.optimizer = sgd(trainer.model)
        trainer.run(1, loader())
    assert len(trainer.accelerator._models) == len(trainer.accelerator._optimizers) == 1


def test_batches_of_one_sample_train():
    trainer = make(MLPTrainer)
    trainer.run(1, loader(samples=3, batch_size=1), loader(samples=2, batch_size=1))
    assert trainer.log_train["num_items"] == [1, 1, 1]


def test_a_tensor_dataset_of_whole_batches():
    x, y = data(40).tensors
    whole = torch.utils.data.DataLoader(TensorDataset(x.view(5, 8, 8), y.view(5, 8)), batch_size=None)
    trainer, plain = make(), make()
    trainer.run(1, whole)
    plain.run(1, loader(40))
    assert_equal(weights(trainer.model), weights(plain.model))


def raw(samples):
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(8, generator=generator), "y": i % 3} for i in range(samples)]


class RawTrainer(PlainTrainer):
    def train_step(self, batch):
        x = torch.stack([s["x"] if isinstance(s, dict) else s[0] for s in batch])
        y = torch.tensor([s["y"] if isinstance(s, dict) else s[1] for s in batch])
        return super().train_step((x, y))


@pytest.mark.parametrize("form", [list, lambda batch: [(s["x"], s["y"]) for s in batch]])
def test_the_bare_list_of_samples_is_counted_and_cut(form):
    results = []
    for parts in (1, 2):
        trainer = make(RawTrainer, gradient_accumulation_steps=parts)
        batches = torch.utils.data.DataLoader(raw(11), batch_size=4, collate_fn=form)
        trainer.run(2, batches)
        assert trainer.log_train["num_items"] == [4, 4, 3]
        results.append(weights(trainer.model))
    assert largest_difference(*results) <= 1e-6


def test_a_packed_sequence_counts_for_nothing_and_cannot_be_cut():
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    assert count_samples((packed, torch.zeros(2))) == 2  # not the 5 rows of the packed data
    with pytest.raises(TypeError, match="gradient_accumulation_steps=2 cannot cut a PackedSequence"):
        make(gradient_accumulation_steps=2).run(1, [(packed, torch.zeros(2))])


def test_a_run_after_a_rollback_validates_and_gets_a_row():
    trainer = make(MLPTrainer)
    trainer.run(1, loader(), loader(20))
    state = trainer.state_dict()
    trainer.run(1, loader(), loader(20))
    trainer.load_state_dict(state)
    trainer.run(1, loader(), loader(20))
    assert trainer.history.column("step") == [6, 12, 12]
    assert all(row["test_loss"] is not None for row in trainer.history)


def test_what_a_broken_run_has_left_does_not_stop_the_next():
    class Breaking(PlainTrainer):
        broken = True

        def train_step(self, batch):
            return {"loss": super().train_step(batch)["loss"] * (torch.nan if self.broken else 1)}

        def logging(self, step_dict):
            super().logging(step_dict)
            if self.broken:
                raise RuntimeError("mine")

    trainer = make(Breaking, on_nan="stop")
    before = weights(trainer.model)
    with pytest.warns(UserWarning, match="is nan from step 1 on"), pytest.raises(RuntimeError, match="mine"):
        trainer.run(1, loader())
    trainer.broken = False
    trainer.model.load_state_dict(before)
    trainer.optimizer.state.clear()
    assert len(trainer.run(2, loader())) == 2
    assert trainer.stop_reason is None


def test_time_between_validations_is_that_of_training():
    class Slow(PlainTrainer):
        def train_step(self, batch):
            time.sleep(0.02)
            return super().train_step(batch)

        def test_step(self, batch):
            time.sleep(0.3)
            return super().test_step(batch)

    history = make(Slow).run(1, loader(samples=80, batch_size=4), loader(8), valid_every="0.2s")  # 20 steps
    assert 1 <= len(history) <= 6


def test_an_epoch_end_that_takes_the_time_is_validated():
    class Slow(PlainTrainer):
        def metric_on_epoch_end(self):
            time.sleep(0.4 if self.mode == "train" else 0)
            return {}

    trainer = make(Slow)
    history = trainer.run(max_time="0.35s", loader=loader(), valid_loader=loader(20), valid_every="50ep")
    assert "test_loss" in history[-1]


@pytest.mark.parametrize("exchanged", [False, True])
def test_parameters_added_to_a_group_are_cleared_too(exchanged):
    class Growing(PlainTrainer):
        def optimize(self, window):
            if self.progress_checker.get_step() == 2:
                group = self.optimizer.param_groups[0]
                if exchanged:
                    group["params"] = [*group["params"], self.model[3].weight]
                else:
                    group["params"].append(self.model[3].weight)
            super().optimize(window)
            self.in_list = self.model[3].weight in set(self._place.update.parameters)

    model = mlp()
    trainer = make(Growing, model=model, optimizer=sgd(model[0]))
    trainer.run(1, loader())
    assert trainer.in_list
    x, y = list(loader())[-1]
    again = copy.deepcopy(model)
    assert model[3].weight.grad.norm() < 1  # of one step, not of five
    assert torch.isfinite(nn.functional.cross_entropy(again(x), y))


def test_a_logging_override_may_change_what_it_was_given_afterwards():
    class Changing(PlainTrainer):
        def logging(self, step_dict):
            super().logging(step_dict)
            step_dict["loss"] = 0.0
            step_dict.pop("num_items")

    trainer, plain = make(Changing), make()
    assert trainer.run(1, loader())[-1]["train_loss"] == plain.run(1, loader())[-1]["train_loss"]
    assert len(trainer.log_train["num_items"]) == 6


def test_a_logging_override_that_keeps_the_loss_to_itself():
    class Deaf(PlainTrainer):
        def logging(self, step_dict):
            pass

    assert len(make(Deaf).run(2, loader(), loader(20))) == 2


def test_a_log_can_be_copied():
    trainer = make(MLPTrainer)
    trainer.run(1, loader())
    for other in (copy.copy(trainer.log_train), trainer.log_train.copy(), copy.deepcopy(trainer.log_train)):
        other["loss"].clear()
        assert other.means() == trainer.log_train.means()
        assert len(trainer.log_train["loss"]) == 6


def test_a_metric_named_as_a_value_of_the_step_stands_for_it():
    class Renamed(PlainTrainer):
        def test_step(self, batch):
            return super().test_step(batch) | {"acc": 0.0}

        def metric_on_epoch_end(self):
            return {"acc": 1.0} if self.mode == "test" else {}

    row = make(Renamed).run(1, loader(), {"a": loader(20), "b": loader(8)})[-1]
    assert (row["test_acc"], row["test_a_acc"], row["test_b_acc"]) == (1.0, 1.0, 1.0)


def test_an_evaluations_reused_buffer_is_logged_as_it_was():
    class Reusing(PlainTrainer):
        total = torch.zeros(())

        def test_step(self, batch):
            self.total.copy_(super().test_step(batch)["loss"])
            return {"loss": self.total}

    reusing, plain = make(Reusing, mode="test"), make(mode="test")
    assert reusing.run(1, loader())[-1]["test_loss"] == plain.run(1, loader())[-1]["test_loss"]


@pytest.mark.parametrize("missing", ["_extra_state", "bias"])
def test_a_file_that_lacks_a_key_of_a_model_with_extra_state(missing, tmp_path):
    state = Extra(8, 3).state_dict()
    del state[missing]
    torch.save(state, tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match=f"missing: {missing}"):
        make(model=Extra(8, 3)).apply_weights(tmp_path / "m.ckpt")


def test_a_file_with_numbers_for_keys_is_no_state_dict(tmp_path):
    torch.save({0: torch.ones(2)}, tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match="does not hold a state_dict"):
        make().apply_weights(tmp_path / "m.ckpt")


def test_lazy_modules_take_weights(tmp_path):
    trained = make(model=nn.Sequential(nn.LazyLinear(3)))
    trained.run(1, loader())
    trained.save_model(tmp_path / "m.ckpt")
    fresh = make(model=nn.Sequential(nn.LazyLinear(3)))
    fresh.apply_weights(tmp_path / "m.ckpt")
    assert_equal(weights(fresh.model), weights(trained.model))
