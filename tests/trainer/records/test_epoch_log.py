"""What is logged, when it is read, and what stays in memory."""

import gc
import math
import re
import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn

from tests.helpers import MLPTrainer, PlainTrainer, data, loader, make, weights
from tests.trainer.records.far import Far
from zae_engine.logs.history_file import read_history
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.journal import journal
from zae_engine.trainer.records import epoch_log, losses
from zae_engine.trainer.records.gather import log_state, mean_series, restore_log


def test_means_are_weighted_by_samples():
    trainer = make(MLPTrainer, mode="train")
    history = trainer.run(1, loader(), loader())
    x, y = data().tensors
    trainer.model.eval()
    true = nn.functional.cross_entropy(trainer.model(x), y).item()
    assert history[-1]["test_loss"] == pytest.approx(true, rel=1e-6)
    losses, items = torch.stack(trainer.log_train["loss"]).double(), torch.tensor(trainer.log_train["num_items"])
    assert history[-1]["train_loss"] == pytest.approx(((losses * items).sum() / 45).item(), rel=1e-12)


def test_every_scalar_is_averaged_and_other_values_are_kept():
    class Many(PlainTrainer):
        def train_step(self, batch):
            loss = super().train_step(batch)["loss"]
            return {"loss": loss, "half": loss / 2, "number": 2, "flag": True, "text": "a", "vector": batch[0][0]}

        test_step = train_step

    trainer = make(Many)
    trainer.run(1, loader())
    assert set(trainer.train_metrics) == {"loss", "half", "number", "flag"}
    assert trainer.train_metrics["number"] == 2
    assert len(trainer.log_train["vector"]) == 6
    assert trainer.log_train["text"] == ["a"] * 6


def test_log_train_survives_validation_and_starts_anew_each_epoch():
    trainer = make(MLPTrainer)
    trainer.run(3, loader(), loader(20))
    assert len(trainer.log_train["loss"]) == 6
    assert len(trainer.log_test["loss"]) == 3
    assert not trainer.log_train["loss"][0].requires_grad


def test_the_loss_history_has_one_number_a_step():
    trainer = make(MLPTrainer)
    trainer.run(3, loader(), loader(20))
    assert len(trainer.get_loss_history()) == 18
    assert len(trainer.get_loss_history("test")) == 9
    assert trainer.get_loss_history()[-1] == trainer.log_train["loss"][-1].item()
    with pytest.raises(ValueError, match=r"mode='tset' is not known; .* did you mean 'test'\?"):
        trainer.get_loss_history("tset")


def test_log_reset_forgets():
    trainer = make(MLPTrainer)
    trainer.run(1, loader())
    trainer.log_reset(epoch_end=True)
    assert trainer.log_train["loss"] == []
    assert trainer.train_metrics == {}
    assert len(trainer.get_loss_history()) == 6


def test_grad_norm_is_the_norm_before_clipping():
    clipped, free = make(gradient_clip=1e-3), make(gradient_clip=1e9)
    clipped.run(1, loader())
    free.run(1, loader())
    assert clipped.log_train["grad_norm"][0] == free.log_train["grad_norm"][0] > 1e-3
    assert "train_grad_norm" in clipped.history[-1]
    trainer = make()
    trainer.run(1, loader())
    assert trainer.log_train["grad_norm"] == []


class FarAway(PlainTrainer):
    """Returns values that lie on an accelerator."""

    def train_step(self, batch):
        loss = super().train_step(batch)["loss"]
        return {"loss": loss, "far": Far(loss.detach())}

    def test_step(self, batch):
        loss = super().test_step(batch)["loss"]
        return {"loss": Far(loss), "far": Far(loss), "num_items": Far(torch.tensor(len(batch[0])))}

    def run_batch(self, batch, **kwargs):
        before = len(Far.reads)
        super().run_batch(batch, **kwargs)
        self.in_steps += Far.reads[before:]


def test_a_step_reads_nothing_from_a_device():
    Far.reads.clear()
    trainer = make(FarAway)
    trainer.in_steps = []
    history = trainer.run(2, loader(), loader(20))
    assert trainer.in_steps == []
    assert len(Far.reads) <= 6  # one for each walk, not for each batch
    assert history[-1]["train_far"] == history[-1]["train_loss"]
    assert history[-1]["test_far"] == history[-1]["test_loss"]
    assert all(type(value) is torch.Tensor and value.dtype == torch.float32 for value in trainer.log_train["far"])
    losses = torch.stack(trainer.log_train["loss"])
    assert torch.equal(torch.stack(trainer.log_train["far"]), losses)


def test_means_do_not_depend_on_when_they_are_read():
    class Curious(MLPTrainer):
        def logging(self, step_dict):
            super().logging(step_dict)
            self.print_log(1, 1)

    quiet, curious = make(MLPTrainer), make(Curious)
    assert quiet.run(1, loader())[-1]["train_loss"] == curious.run(1, loader())[-1]["train_loss"]


class Poisoned(PlainTrainer):
    def train_step(self, batch):
        values = super().train_step(batch)
        bad = self.progress_checker.get_step() >= 4
        return {
            "loss": values["loss"] * (math.nan if bad and self.poison == "loss" else 1),
            "extra": math.inf if bad and self.poison == "extra" else 0,
        }

    test_step = train_step


@pytest.mark.parametrize("key", ["loss", "extra"])
def test_a_value_that_is_not_finite_is_named_with_its_step(key):
    trainer = make(Poisoned)
    trainer.poison = key
    with pytest.warns(UserWarning, match=f"'{key}' is (nan|inf) from step 4 on"):
        trainer.run(1, loader())
    assert not math.isfinite(trainer.history[-1][f"train_{key}"])  # not averaged away


@pytest.mark.filterwarnings("ignore:.*from step")
def test_on_nan_stop_ends_the_run_with_the_best_weights_kept():
    trainer = make(Poisoned, on_nan="stop")
    trainer.poison = "loss"
    trainer.run(9, loader())
    assert trainer.stop_reason == "the loss is nan from step 4 on"
    assert len(trainer.history) == 1
    assert trainer.weight_buffer["weight"] == []  # NaN is never the best


@pytest.mark.filterwarnings("ignore:.*from step")
def test_on_nan_warn_goes_on():
    trainer = make(Poisoned, on_nan="warn")
    trainer.poison = "loss"
    assert len(trainer.run(2, loader())) == 2


def test_logging_is_a_seam_that_gets_detached_values():
    class Listener(PlainTrainer):
        def logging(self, step_dict):
            heard.append({key: float(value) for key, value in step_dict.items()})
            assert not step_dict["loss"].requires_grad
            super().logging(step_dict)

    heard: list[dict[str, float]] = []
    make(Listener, gradient_clip=1.0).run(1, loader())
    assert [entry["num_items"] for entry in heard] == [8, 8, 8, 8, 8, 5]
    assert set(heard[0]) == {"loss", "num_items", "grad_norm"}


def test_a_metric_that_is_no_number_is_left_out_with_a_warning():
    class Odd(PlainTrainer):
        def metric_on_epoch_end(self):
            return {"good": torch.tensor(0.5), "confusion": torch.eye(3)}

    trainer = make(Odd)
    with pytest.warns(UserWarning, match="'confusion' of type Tensor, which is left out"):
        trainer.run(1, loader())
    assert trainer.train_metrics["good"] == 0.5
    assert "confusion" not in trainer.train_metrics


def test_print_log_has_position_rate_and_means():
    trainer = make(MLPTrainer)
    trainer.run(1, loader())
    shown = trainer.print_log(3, 6)
    assert shown["Batch"] == "3/6"
    assert shown["LR"] == "1.000e-01"
    assert float(shown["loss"]) == pytest.approx(trainer.train_metrics["loss"], abs=1e-6)


def test_banner_and_epoch_lines_on_standard_error(capsys):
    trainer = make(MLPTrainer, log_bar=True, gradient_accumulation_steps=2)
    trainer.run(2, loader(), loader(20))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert "MLPTrainer · train on cpu · fp32 · 195 parameters" in lines[0]
    assert lines[1].startswith("batch 8 = 1 process × 2 micro-batches × 4 samples · 6 batches an epoch · seed 0")
    assert lines[2].startswith("Epoch 1/2 | train_loss")
    assert "test_acc" in lines[2]
    assert "samples/s" in lines[2]
    assert "Best: loss" in lines[-3]
    assert re.match(r"[\d,]+ samples/s; time: computing \d+%, waiting for data \d+%, evaluation \d+%\.", lines[-2])
    assert re.fullmatch(r"Peak memory: [\d.]+ [MG]B of this process\.", lines[-1])


def test_log_bar_false_is_silent(capsys):
    make(MLPTrainer).run(2, loader(), loader(20))
    assert capsys.readouterr() == ("", "")


def test_a_trainer_is_freed_without_the_garbage_collector():
    trainer = make(MLPTrainer, gradient_clip=1.0)
    trainer.run(2, loader(), loader(20))
    trainer.inference(loader())
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()


def test_a_parameter_that_is_returned_is_logged_as_it_was():
    class Watcher(PlainTrainer):
        def train_step(self, batch):
            bias = self.model[0].bias
            live.append(bias[0].item())
            return super().train_step(batch) | {"bias": bias[0], "plain": bias[0].detach()}

    live: list[float] = []
    trainer = make(Watcher)
    trainer.run(1, loader())
    assert [v.item() for v in trainer.log_train["bias"]] == live
    assert [v.item() for v in trainer.log_train["plain"]] == live
    assert len(set(live)) == 6


def test_a_logged_graph_is_not_kept():
    trainer = make(MLPTrainer)
    trainer.run(1, loader())
    assert all(not v.requires_grad for v in trainer.log_train["output"])
    assert weights(trainer.model)


def test_a_key_that_is_deleted_leaves_no_mean():
    class Deleting(MLPTrainer):
        def logging(self, step_dict):
            super().logging({**step_dict, "gone": 1.0, "put": 2.0})
            if self.mode == "train":
                del self.log_train["gone"]
                self.log_train["put"] = [0.5]

    trainer = make(Deleting)
    history = trainer.run(2, loader(), loader(20))
    assert "train_gone" not in history.columns
    assert "train_put" not in history.columns
    assert history.column("test_gone") == [1.0, 1.0]
    assert (trainer.log_train["gone"], trainer.log_train["put"]) == ([], [0.5])
    losses = len(trainer.get_loss_history())
    del trainer.log_train["loss"]
    assert "loss" not in trainer.log_train.means()
    assert len(trainer.get_loss_history()) == losses  # of all epochs


def test_of_a_set_without_losses_metrics_count_by_samples():
    class Lossless(MLPTrainer):
        def metric_on_epoch_end(self):
            if self.mode == "test":
                del self.log_test["loss"]
                return {"size": float(sum(map(len, self.log_test["target"])))}
            return {}

    class Counted(Lossless):
        def test_step(self, batch):
            return {**super().test_step(batch), "one": 1.0}

    row = make(Counted).run(1, loader(), {"a": loader(10), "b": loader(30)})[-1]
    assert row["test_size"] == pytest.approx((10 * 10 + 30 * 30) / 40)


class Ambiguous(MLPTrainer):
    """Has a metric whose name begins with a set's, and a set whose name begins with another's."""

    def metric_on_epoch_end(self):
        return {"b_loss": 7.0} if self.mode == "test" else {}


@pytest.mark.parametrize("monitor", ["loss", "a:b_loss", "a_b:loss"])
def test_names_that_would_mean_two_things_are_kept_apart(monitor):
    sets = {"a": loader(10), "a_b": loader(20), "b": loader(30)}
    trainer = make(Ambiguous, monitor=monitor)
    with pytest.warns(UserWarning, match="would mean two things") as told:
        row = trainer.run(1, loader(), sets)[-1]
    assert [str(w.message) for w in told] == [
        "test_a_b_loss would mean two things, so it is test_a:b_loss and test_a_b:loss that is of a set",
        "test_b_loss would mean two things, so it is test_b:loss that is of a set",
    ]
    assert (row["test_a:b_loss"], row["test_a_b_b_loss"], row["test_b_b_loss"], row["test_b_loss"]) == (7.0,) * 4
    assert "test_a_b_loss" not in row
    for name in sets:
        alone = make(Ambiguous)
        alone.run(1, loader(), sets[name])
        key = f"test_{name}:loss" if name != "a" else "test_a_loss"
        assert row[key] == alone.history[-1]["test_loss"]
    assert trainer.loss_buffer == row[f"test_{monitor}"]


# ---------------------------------------------------------------------- long epochs


class Alone:
    first = True


@pytest.fixture
def short(monkeypatch):
    """Keeps little, as if an epoch of some hundred steps were a long one."""
    monkeypatch.setattr(epoch_log, "KEPT", 64)
    monkeypatch.setattr(epoch_log, "_ROWS", 16)
    monkeypatch.setattr(losses, "MOST", 100)


def steps(count, log=None, every=1):
    log = epoch_log.EpochLog() if log is None else log
    for step in range(1, count + 1):
        values = {"loss": torch.tensor(step / 7), "num_items": step % 5 + 1}
        if step % every == 0:
            values["some"] = step
        log.add(values, values["num_items"], step)
    return log


@pytest.mark.parametrize("every", [1, 3])
def test_a_long_epoch_keeps_its_last_values_and_the_means_of_all(short, every):
    log = steps(1000, every=every)
    wanted = [(torch.tensor(step / 7).item(), step % 5 + 1) for step in range(1, 1001)]
    total = weights = 0.0
    for value, weight in wanted:
        total += value * weight
        weights += weight
    assert log.sums()["loss"] == (total, weights)
    kept = [value.item() for value in log["loss"]]
    assert 64 <= len(kept) <= 2 * 64 + 16
    assert kept == [value for value, _ in wanted][-len(kept) :]
    assert log["num_items"] == [weight for _, weight in wanted][-len(log["num_items"]) :]
    some = [step for step in range(1, 1001) if step % every == 0]
    assert log["some"] == some[-len(log["some"]) :]
    assert log.means()["some"] == pytest.approx(
        sum(s * (s % 5 + 1) for s in some) / sum(s % 5 + 1 for s in some), rel=1e-13
    )
    assert 100 <= len(log.losses.values) < 200
    assert log.losses.count == 1000
    assert log.losses.values.tolist() == [value for value, _ in wanted][-len(log.losses.values) :]


def test_a_long_epoch_goes_on_from_a_checkpoint(short):
    whole, first = steps(1000), steps(600)
    state = log_state(first, Alone(), everything=True)
    again = epoch_log.EpochLog()
    again.losses = losses.Losses(first.losses.until(first.epoch_begins), first.losses.before)
    again.clear()
    restore_log(again, [state], 600)
    assert again.losses.count == 600
    for step in range(601, 1001):
        values = {"loss": torch.tensor(step / 7), "num_items": step % 5 + 1, "some": step}
        again.add(values, values["num_items"], step)
    assert again.sums() == whole.sums()
    assert again["loss"][-64:] == whole["loss"][-64:]
    assert again.losses.count == 1000
    again.put_together(again.parts(False)["scalars"], {})
    assert again.losses.count == 1000
    assert again.losses.values[-64:] == whole.losses.values[-64:]


def test_long_epochs_of_two_processes_have_the_mean_of_both(short):
    parts = [steps(500).parts(False)["scalars"]["loss"] for _ in range(2)]
    both = mean_series(parts)
    assert both.before[1] == 2 * parts[0].before[1] > 0
    assert both.values == parts[0].values


def test_an_evaluation_that_broke_off_leaves_no_losses(short):
    log = steps(150)
    count = log.losses.count
    log.clear()
    steps(30, log)
    log.clear()
    log.losses.take_back(count)
    assert log.losses.count == 150
    assert len(log.losses.until(100)) == 100


def test_a_long_epoch_of_a_run_is_in_its_file_whole(short, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_ROOM", 32)
    trainer = make(PlainTrainer.add_on(StateManagerAddon), save_path=tmp_path, log_every="1ep")
    trainer.run(1, loader(400, batch_size=1))
    lines = [line for line in read_history(tmp_path) if line["kind"] == "step"]
    assert [line["step"] for line in lines] == list(range(1, 401))
    assert [line["loss"] for line in lines][-50:] == [value.item() for value in trainer.log_train["loss"]][-50:]


# ---------------------------------------------------------------------- what comes back


def again(log):
    """The log as a checkpoint brings it back."""
    found = epoch_log.EpochLog()
    restore_log(found, [log_state(log, Alone(), everything=True)], log.parts(False)["batches"])
    return found


def test_values_that_the_user_has_put_into_a_log_come_back():
    log = steps(3)
    log["mine"].append(0.5)
    log["put"] = [1, 2, 3, 4, 5]
    found = again(log)
    assert (found["mine"], found["put"], len(found["loss"])) == ([0.5], [1, 2, 3, 4, 5], 3)


def test_numbers_come_back_as_what_they_were():
    log = epoch_log.EpochLog()
    for _ in range(2):
        log.add({"loss": torch.tensor([2.0]), "long": torch.tensor(2**53 + 1), "flag": True, "half": 0.5}, 1, 1)
    assert log["long"] == [torch.tensor(2**53 + 1)] * 2
    found = again(log)
    assert found["loss"] == [torch.tensor(2.0)] * 2
    assert found["loss"][0].dtype == torch.float32
    assert (found["flag"], found["half"]) == ([True, True], [0.5, 0.5])


def test_a_value_that_is_not_finite_is_noticed_once_over_a_resume():
    class Listener:
        heard: ClassVar[list[str]] = []

        def note(self, key, step, value):
            self.heard.append(key)

    log, listener = epoch_log.EpochLog(), Listener()
    log.add({"loss": math.nan}, 1, 1)
    found = again(log)
    found.listen(listener.note)
    found.add({"loss": math.nan}, 1, 2)
    assert listener.heard == []
