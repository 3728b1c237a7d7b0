"""Which value tells the best: the same answer in every place, a direction that is known, and nothing in silence."""

import json
import math

import pytest
from safetensors.torch import load_file

from tests.helpers import MLPTrainer, PlainTrainer, assert_equal, loader, make, weights
from zae_engine.logs.reading import read_run
from zae_engine.logs.report import write_report
from zae_engine.logs.runs import list_runs, table_of
from zae_engine.trainer import CheckpointError, WeightsError
from zae_engine.trainer.addons import EarlyStoppingAddon, StateManagerAddon


class Scripted(PlainTrainer):
    """Its validation's psnr follows a script; it remembers the weights of each epoch."""

    script = (20.0, math.inf, 25.0, 22.0)

    def metric_on_epoch_end(self):
        return {"psnr": self.script[self.progress_checker.get_epoch() - 1]} if self.mode == "test" else {}

    def check_better(self, cur_epoch, cur_loss):
        self.__dict__.setdefault("seen", []).append(weights(self.model))
        return super().check_better(cur_epoch, cur_loss)


class NeverFinite(Scripted):
    script = (math.nan, math.inf, math.nan, -math.inf)


class Downwards(Scripted):
    script = (9.0, -math.inf, 5.0, 5.0)


RULE = "a value that is not finite is never the best"


@pytest.mark.parametrize(
    ("kind", "mode", "epoch", "value"), [(Scripted, "max", 3, 25.0), (Downwards, "min", 3, 5.0)], ids=["inf", "-inf"]
)
def test_every_place_has_the_same_best(tmp_path, kind, mode, epoch, value):
    options = {"monitor": "psnr", "monitor_mode": mode, "save_path": tmp_path, "keep_last": 1}
    trainer = make(kind.add_on(StateManagerAddon), **options)
    with pytest.warns(UserWarning, match="test_psnr is .*inf in epoch 2; " + RULE):
        trainer.run(4, loader(), loader(20))
    summary = json.loads((tmp_path / "summary.json").read_text())["best"]
    (row,) = list_runs(tmp_path)
    page = write_report([tmp_path]).read_text(encoding="utf-8")
    assert (trainer.loss_buffer, trainer.weight_buffer["epoch"]) == (value, [epoch - 1])
    assert trainer.history.best("test_psnr", mode)["epoch"] == epoch
    assert (summary["value"], summary["epoch"], summary["saved"]) == (value, epoch, "model.safetensors")
    assert (row["best"], row["best_name"]) == (value, "test_psnr")
    assert f"epoch {epoch}, step {row['steps'] * epoch // 4}" in page
    assert_equal(load_file(tmp_path / "model.safetensors"), trainer.seen[epoch - 1])
    trainer.apply_weights()
    assert_equal(weights(trainer.model), trainer.seen[epoch - 1])
    assert trainer.load_state("best").name == f"{epoch:06d}-step-{6 * epoch}"  # retention has kept it
    assert_equal(weights(trainer.model), trainer.seen[epoch - 1])


def test_a_metric_that_was_never_finite_is_named_in_its_own_spelling(tmp_path, capsys):
    kind = NeverFinite.add_on(StateManagerAddon, EarlyStoppingAddon)
    trainer = make(kind, monitor="psnr", patience=3, save_path=tmp_path, log_bar=True)
    with pytest.warns(UserWarning, match="test_psnr is nan in epoch 1; " + RULE):
        trainer.run(4, loader(), loader(20))
    never = "psnr was never finite"
    assert trainer.stop_reason == "psnr has never been finite in 3 evaluations (the last value: nan)"
    assert f"Stopped: {trainer.stop_reason}. No best weights: {never} (nan or inf in each of 3 rows)." in (
        capsys.readouterr().err
    )
    with pytest.raises(WeightsError, match=f"there are no best weights, since {never}"):
        trainer.apply_weights()
    with pytest.raises(CheckpointError, match=f"no checkpoint is the best: {never} \\(inf, nan\\)"):
        trainer.load_state("best")
    with pytest.raises(KeyError, match="no finite value in a column 'test_psnr'"):
        trainer.history.best("test_psnr")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["best"], summary["never_finite"]) == (None, "test_psnr")
    assert "test_psnr never finite" in table_of(list_runs(tmp_path))[1]
    assert "test_psnr was never finite" in write_report([tmp_path]).read_text(encoding="utf-8")


def test_early_stopping_looks_at_finite_values_only():
    trainer = make(Scripted.add_on(EarlyStoppingAddon), monitor="psnr", patience=2)
    with pytest.warns(UserWarning, match="test_psnr is inf in epoch 2; " + RULE):
        trainer.run(4, loader(), loader(20))
    assert (trainer.stop_reason, len(trainer.history)) == (None, 4)  # 25 is better than 20, whatever was between
    worse = make(type("Worse", (Scripted,), {"script": (20.0, 19.0, math.inf)}).add_on(EarlyStoppingAddon),
                 monitor="psnr", patience=2)  # fmt: skip
    with pytest.warns(UserWarning, match="test_psnr is inf in epoch 3"):
        worse.run(4, loader(), loader(20))
    assert worse.stop_reason == "psnr has not got better in 2 evaluations (the last value: inf)"


def test_a_reason_keeps_the_metrics_spelling(capsys):
    trainer = make(Scripted.add_on(EarlyStoppingAddon), monitor="loss", patience=1, min_delta=9.0, log_bar=True)
    trainer.run(4, loader(), loader(20))
    assert "Stopped: loss has not got better in 1 evaluation. Best: loss " in capsys.readouterr().err


def test_without_a_value_of_the_monitor_that_is_said():
    trainer = make(monitor="acc")
    with pytest.warns(UserWarning, match="monitor='acc' is not among the metrics"):
        trainer.run(1, loader(), loader(20))
    with pytest.raises(WeightsError, match=r"since no epoch has had a value 'acc' \(monitor=\)"):
        trainer.apply_weights()


# ---------------------------------------------------------------------- the direction


@pytest.mark.parametrize("split", [None, 20], ids=["training", "validation"])
def test_a_direction_is_inferred_from_the_name(split):
    trainer = make(MLPTrainer.add_on(EarlyStoppingAddon), monitor="acc", patience=9)
    history = trainer.run(4, loader(), split and loader(split))
    values = history.column("train_acc" if split is None else "test_acc")
    assert trainer.monitor_mode == "max"
    assert trainer.loss_buffer == max(values) > min(values)
    assert history.best("train_acc")["train_acc"] == max(history.column("train_acc"))


def odd():
    """A metric whose name tells nothing, while it does."""
    from torchmetrics import MeanMetric

    class Odd(MeanMetric):
        higher_is_better = True

        def update(self, output, target):
            super().update(output.mean())

    return Odd()


@pytest.mark.parametrize(("name", "monitor"), [("q", "q"), ("q", "test_q"), ("loss", "night_loss")])
def test_a_metric_object_tells_its_direction(name, monitor):
    assert make(MLPTrainer, metrics={name: odd()}, monitor=monitor).monitor_mode == "max"


def test_a_metric_in_a_collection_tells_its_direction():
    from torchmetrics import MetricCollection

    assert make(MLPTrainer, metrics={"m": MetricCollection({"q": odd()})}, monitor="m_q").monitor_mode == "max"


def test_a_loss_named_after_a_metric_is_not_taken_for_it():
    with pytest.raises(ValueError, match="'loss_q' is better cannot be told from its name"):
        make(MLPTrainer, metrics={"q": odd()}, monitor="loss_q")
    assert make(MLPTrainer, metrics={"acc": odd()}, monitor="error_acc", monitor_mode="min").monitor_mode == "min"


@pytest.mark.filterwarnings("ignore:valid_loader of this run gave no batch")
def test_a_run_whose_validations_gave_nothing_says_so():
    trainer = make()
    trainer.run(2, loader(), [])
    with pytest.raises(WeightsError, match="no best weights, since no validation has given all that 'loss' is decided"):
        trainer.apply_weights()


def test_a_direction_that_nobody_knows_is_asked_for():
    with pytest.raises(ValueError, match="'score' is better cannot be told from its name; write monitor_mode='min' or"):
        make(monitor="score")
    assert make(monitor="score", monitor_mode="min").monitor_mode == "min"
    assert make(monitor="acc", monitor_mode="min").monitor_mode == "min"  # what is said holds
    with pytest.raises(ValueError, match=r"'seconds' is better cannot be told from its name; write mode='min' or"):
        make().run(1, loader()).best("seconds")


# ---------------------------------------------------------------------- assigned afterwards


def test_an_assigned_monitor_is_looked_for_anew():
    trainer = make(MLPTrainer.add_on(EarlyStoppingAddon), patience=2, min_delta=0.001)
    trainer.run(3, loader(), loader(20))
    trainer.monitor = "acc"
    assert (trainer.monitor_mode, trainer.loss_buffer, trainer.weight_buffer["epoch"]) == ("max", -math.inf, [])
    history = trainer.run(2, loader(), loader(20))
    assert trainer.loss_buffer == max(history.column("test_acc")[3:])
    assert trainer._reference == pytest.approx(trainer.loss_buffer, abs=0.001)


def test_a_direction_is_refused_when_it_is_assigned_and_a_name_without_one_at_the_start():
    trainer = make()
    with pytest.raises(ValueError, match="monitor_mode='mx' is not known; write one of 'min', 'max'"):
        trainer.monitor_mode = "mx"
    with pytest.raises(TypeError, match="monitor=3 is not a metric's name"):
        trainer.monitor = 3
    assert (trainer.monitor, trainer.monitor_mode) == ("loss", "min")
    trainer.monitor = "score"
    with pytest.raises(ValueError, match="'score' is better cannot be told"):
        trainer.run(1, loader())
    assert len(trainer.history) == 0
    trainer.monitor_mode = "max"
    trainer.monitor = "points"
    trainer.monitor = "score"  # the direction was given once, for 'points'
    assert trainer.monitor_mode is None


class Counting(PlainTrainer):
    def metric_on_epoch_end(self):
        return {"score": float(self.progress_checker.get_epoch())}


def test_both_orders_of_assignment_work():
    for names in (("monitor", "monitor_mode"), ("monitor_mode", "monitor")):
        trainer = make(Counting)
        for name in names:
            setattr(trainer, name, {"monitor": "score", "monitor_mode": "max"}[name])
        trainer.run(2, loader(), loader(20))
        assert trainer.loss_buffer == 2.0


def test_a_validation_is_not_compared_with_a_training(capsys):
    trainer = make(PlainTrainer.add_on(EarlyStoppingAddon), patience=9, log_bar=True)
    trainer.run(3, loader())
    trained = trainer.loss_buffer
    history = trainer.run(2, loader(), loader(20))
    assert trainer.loss_buffer == min(history.column("test_loss")[3:]) != trained
    assert "The best was told by train_loss; from here on test_loss tells it" in capsys.readouterr().err


def test_a_resume_by_another_monitor_begins_anew(tmp_path):
    kind = MLPTrainer.add_on(StateManagerAddon, EarlyStoppingAddon)
    options = {"patience": 9, "save_path": tmp_path}
    make(kind, **options).run(2, loader(), loader(20), resume="auto")
    other = make(kind, monitor="acc", **options)
    with pytest.warns(UserWarning, match=r"are the best by loss \(min\); by acc \(max\) they are looked for anew"):
        other.run(4, loader(), loader(20), resume="auto")
    wanted = max(other.history.column("test_acc")[2:])
    assert other.loss_buffer == wanted == other._reference
    assert_equal(load_file(tmp_path / "model.safetensors"), other.weight_buffer["weight"][0])
    run = read_run(tmp_path)
    assert (run.best.name, run.best.value, run.best.epoch) == ("test_acc", wanted, other.weight_buffer["epoch"][0] + 1)
    again = make(kind, monitor="acc", **options)
    again.run(4, loader(), loader(20), resume="auto")
    assert again.loss_buffer == wanted


def test_early_stopping_takes_a_state_without_its_own():
    trainer = make(Scripted.add_on(EarlyStoppingAddon), monitor="psnr", patience=2)
    trainer._reference, trainer._waited = 5.0, 1
    trainer.load_state_dict(make(monitor="psnr").state_dict())
    assert (trainer._reference, trainer._waited) == (None, 0)


def test_an_own_rule_is_what_the_summary_tells(tmp_path):
    class Latest(StateManagerAddon, PlainTrainer):
        def check_better(self, cur_epoch, cur_loss):
            return super().check_better(cur_epoch, -float(cur_epoch))

    trainer = make(Latest, save_path=tmp_path)
    trainer.run(3, loader(), loader(20))
    best = json.loads((tmp_path / "summary.json").read_text())["best"]
    assert (best["epoch"], best["saved"]) == (3, "model.safetensors")
    assert_equal(load_file(tmp_path / "model.safetensors"), weights(trainer.model))
