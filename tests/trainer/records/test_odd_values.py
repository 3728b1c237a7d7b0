"""Names and values that a line of the history, a file or a spreadsheet could take for something else."""

import csv
import json
import math
import warnings
from typing import ClassVar

import numpy as np
import pytest

from tests.helpers import PlainTrainer, loader, make
from zae_engine.checkpoint.folder import choose
from zae_engine.logs.curves import draw_curves
from zae_engine.logs.export import export
from zae_engine.logs.merging import records_of
from zae_engine.logs.reading import read_run
from zae_engine.logs.report import write_report
from zae_engine.logs.runs import list_runs
from zae_engine.trainer import read_history
from zae_engine.trainer.addons import CSVLoggerAddon, StateManagerAddon
from zae_engine.trainer.records.history import EpochLog, Series

OWN = ("kind", "step", "epoch", "time", "number", "seconds", "saving", "lr")  # what a line says itself
LONE = "caf\udce9"  # of a file name that is no UTF-8


class Odd(PlainTrainer):
    values: ClassVar[dict] = {}
    metrics: ClassVar[dict] = {}

    def train_step(self, batch):
        return super().train_step(batch) | self.values

    def test_step(self, batch):
        return super().train_step(batch) | self.values

    def metric_on_epoch_end(self):
        return self.metrics


def train(folder, kind=Odd, values=(), metrics=(), valid=None, addons=(), **options):
    trainer = make(kind.add_on(StateManagerAddon, *addons), save_path=folder, log_every="2st", **options)
    trainer.values, trainer.metrics = dict(values), dict(metrics)
    trainer.run(1, loader(), loader() if valid is None else valid)
    return trainer


def test_values_that_are_called_as_a_line_calls_its_own(tmp_path):
    values = {name: 100.0 + i for i, name in enumerate(OWN)}
    train(tmp_path / "run", values=values, metrics={f"{name}2": 1.0 for name in OWN} | {"kind": 3.0, "step": 4.0})
    lines = read_history(tmp_path / "run")
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert {line["epoch"] for line in steps} == {1}
    assert [steps[0][f"train_{name}"] for name in ("kind", "step", "epoch", "time")] == [100.0, 101.0, 102.0, 103.0]
    (row,) = [line for line in lines if line["kind"] == "row"]
    assert (row["step"], row["epoch"], row["train_step"], row["test_kind"]) == (6, 1, 4.0, 3.0)
    assert [line["step"] for line in lines if line["kind"] in ("point", "end", "checkpoint")][-1] == 6


def test_every_reader_finds_the_steps_of_such_values(tmp_path):
    values = {name: 100.0 + i for i, name in enumerate(OWN)}
    train(tmp_path / "run", values=values)
    run = read_run(tmp_path / "run")
    assert run.step == 6
    assert list(run.steps["step"].value) == [101.0] * 6
    assert list(run.steps["step"].step) == [1, 2, 3, 4, 5, 6]
    for every in (False, True):
        records = records_of(tmp_path / "run", every)
        assert [record.step for record in records] == ([1, 2, 3, 4, 5, 6] if every else [2, 4, 6])
        assert all(1.6e9 < record.time < 1e10 for record in records)
        assert {f"train/{name}" for name in OWN} <= records[0].values.keys()
        assert records[-1].values["lr"] == 0.1
        assert records[-1].values["train/lr"] == 107.0
    export(tmp_path / "run", "csv", {}, every_step=True)
    with open(tmp_path / "run" / "export" / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert rows[0]["train/step"] == "101.0"
    write_report([tmp_path / "run"])
    draw_curves(tmp_path / "run")
    assert list_runs(tmp_path)[0]["steps"] == 6


def test_validation_sets_of_such_names(tmp_path):
    sets = {name: loader() for name in ("kind", "step", "train", "test", "loss", "time")}
    trainer = train(tmp_path / "run", valid=sets)
    row = trainer.history[-1]
    assert (row["step"], row["epoch"]) == (6, 1)
    assert all(row[f"test_{name}_loss"] == row["test_loss"] for name in sets)
    (record,) = records_of(tmp_path / "run")[-1:]
    assert record.values["test/step_loss"] == row["test_loss"]
    assert record.values["train/loss_epoch"] == row["train_loss"]


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 10**5000, np.float64("inf")], ids=["large", "small", "long", "inf"]
)
def test_a_number_that_is_too_large_counts_as_infinite_and_is_named(tmp_path, value):
    infinite = math.inf if value > 0 else -math.inf
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = train(tmp_path / "run", values={"a": value}, metrics={"b": value})
    assert f"'a' is {infinite} from step 1 on" in [str(warning.message) for warning in said]
    row = trainer.history[-1]
    assert [row[name] for name in ("train_a", "test_a", "train_b", "test_b")] == [infinite] * 4
    (row,) = read_run(tmp_path / "run").rows
    assert row["train_a"] == infinite
    assert records_of(tmp_path / "run")[-1].values["train/a"] == infinite
    assert choose(tmp_path / "run" / "checkpoints")[0].metrics["train_a"] == infinite
    again = make(Odd.add_on(StateManagerAddon), save_path=tmp_path / "run")
    again.values, again.metrics = {"a": value}, {"b": value}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as before
        again.run(2, loader(), loader(), resume="auto")
    assert len(again.history) == 2


def test_whole_numbers_of_which_one_is_none_come_back():
    log = EpochLog()
    log.restore(2, {"a": (Series([0, 1, 2], [3.0, math.inf, math.nan], [1.0, 1.0, 1.0]), "int")}, {})
    assert log["a"][0] == 3
    assert math.isinf(log["a"][1])
    assert math.isnan(log["a"][2])


def test_names_that_utf_8_cannot_hold(tmp_path):
    trainer = train(
        tmp_path / "run",
        values={LONE: 1.0},
        metrics={f"{LONE}2": 2.0},
        valid={f"{LONE}3": loader(), "b": loader()},
        addons=[CSVLoggerAddon],
        monitor=f"test_{LONE}2",
        monitor_mode="min",
    )
    trainer.close_loggers()
    trainer.history.to_csv(tmp_path / "rows.csv")
    assert "test_caf\\udce92" in (tmp_path / "rows.csv").read_text(encoding="utf-8")
    assert trainer.history[-1][f"train_{LONE}"] == 1.0
    steps = [line for line in read_history(tmp_path / "run") if line["kind"] == "step"]
    assert [line["caf\\udce9"] for line in steps] == [1.0] * 6
    chosen, skipped = choose(tmp_path / "run" / "checkpoints")
    assert skipped == []
    assert chosen.metrics["train_caf\\udce9"] == 1.0
    assert json.loads((tmp_path / "run" / "summary.json").read_bytes())["status"] == "done"
    assert "train/caf\\udce9" in (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8")
    write_report([tmp_path / "run"])
    draw_curves(tmp_path / "run")
    export(tmp_path / "run", "tensorboard", {})
    resumed = make(
        Odd.add_on(StateManagerAddon, CSVLoggerAddon),
        save_path=tmp_path / "run",
        monitor=f"test_{LONE}2",
        monitor_mode="min",
    )
    resumed.values, resumed.metrics = {LONE: 1.0}, {f"{LONE}2": 2.0}
    resumed.run(2, loader(), loader(), resume="auto")
    resumed.close_loggers()
    assert resumed.history[-1][f"train_{LONE}"] == 1.0


class Failing(PlainTrainer):
    def train_step(self, batch):
        raise FileNotFoundError(f"no file {LONE}.png")


def test_the_users_own_error_is_raised_whatever_its_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        train(tmp_path / "run", Failing)
    *_, last = read_history(tmp_path / "run")
    assert (last["kind"], last["status"]) == ("end", "failed")
    assert last["reason"] == "FileNotFoundError: no file caf\\udce9.png"
    assert read_run(tmp_path / "run").status == "failed"
    write_report([tmp_path / "run"])


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", " =1", "＝1"])
def test_no_name_is_a_formula(tmp_path, name):
    trainer = train(tmp_path / "run", values={name: 1.0})
    trainer.history.rows[-1][name] = 1.0
    trainer.history.to_csv(tmp_path / "rows.csv")
    lines = (tmp_path / "run" / "history.jsonl").read_text(encoding="utf-8")
    (tmp_path / "run" / "history.jsonl").write_text(lines.replace('"test_loss"', json.dumps(name)), encoding="utf-8")
    export(tmp_path / "run", "csv", {})
    for path in (tmp_path / "rows.csv", tmp_path / "run" / "export" / "metrics.csv"):
        with open(path, newline="", encoding="utf-8") as file:
            head = next(csv.reader(file))
        assert len([cell for cell in head if cell.startswith("'") and name.strip() in cell]) == 1, head
        assert not [cell for cell in head if cell.lstrip()[:1] in tuple("=+-@＝")], head


def test_a_name_with_a_line_end_stays_in_its_line(tmp_path):
    trainer = train(tmp_path / "run", values={"a\nb": 1.0}, addons=[CSVLoggerAddon])
    trainer.close_loggers()
    assert "train/a\\nb" in (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    trainer.run(2, loader(), loader())
    trainer.close_loggers()
    lines = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "2", "4", "6", "8", "10", "12", "14", "16", "18"]
