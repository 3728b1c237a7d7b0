"""Loggers as add-ons: options, neutrality, the order of the stack, what a checkpoint keeps, several processes."""

import copy
import csv
import json
import os
import pickle
import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed.conftest import start as start_group
from tests.helpers import MLPTrainer, PlainTrainer, assert_equal, loader, make, weights
from tests.launch.processes import finish
from tests.nurse import environment
from tests.trainer.addons.resumed import Drawing, build, first_difference, outcome
from tests.trainer.addons.test_multi_gpu import session
from zae_engine.logs.cursor import Cursor
from zae_engine.logs.merging import records_of
from zae_engine.trainer.addons import (
    CSVLoggerAddon,
    NeptuneLoggerAddon,
    StateManagerAddon,
    TensorBoardLoggerAddon,
)

ROOT = Path(__file__).parents[3]
TWO = (CSVLoggerAddon, TensorBoardLoggerAddon)


def table(folder):
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def steps(folder):
    return [int(line["step"]) for line in table(folder)]


def logged(*add_ons, kind=PlainTrainer, **options):
    return make(kind.add_on(*(add_ons or (CSVLoggerAddon,))), **options)


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (
            {"web_logger": "csv"},
            TypeError,
            "web_logger='csv' is not accepted; give settings by logger: {\"csv\": {...}}",
        ),
        ({"web_logger": {"csb": {}}}, ValueError, "settings for 'csb', which no add-on takes; did you mean 'csv'?"),
        ({"web_logger": {"wandb": {}}}, ValueError, "'wandb' needs its add-on in add_on(...); in this stack are csv"),
        ({"web_logger": {"csv": 3}}, TypeError, "web_logger['csv']=3 is not accepted; give a dict of settings"),
        ({"web_logger": {"csv": {"pth": "x"}}}, TypeError, "csv logger has no setting 'pth'; did you mean 'path'?"),
        ({"web_loger": {}}, TypeError, "has no option 'web_loger'; did you mean 'web_logger'"),
        ({"log_evry": 1}, TypeError, "has no option 'log_evry'; did you mean 'log_every'"),
        ({"log_every": "5 stepps"}, ValueError, "log_every='5 stepps' is not a duration"),
        ({"log_every": 0}, ValueError, "log_every=0 is not a duration"),
        ({"log_every": "0%"}, ValueError, "log_every='0%' is not a duration; write '3ep'"),
        ({"log_every": "101%"}, ValueError, "or a whole number of steps, or a share of the time, '1%' say"),
        ({"save_path": ""}, TypeError, "save_path='' is not accepted; give the folder"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_trained(tmp_path, monkeypatch, options, kind, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=re.escape(words)):
        logged(**options)
    assert list(tmp_path.iterdir()) == []


def test_none_and_empty_settings_are_fine(tmp_path):
    for settings in (None, {}, {"csv": None}, {"csv": {}}):
        logged(save_path=tmp_path, web_logger=settings)


WITHOUT = """
import sys
for name in ("wandb", "neptune", "mlflow", "trackio", "tensorboard"):
    sys.modules[name] = None  # as if it were not installed
from tests.helpers import PlainTrainer, loader, make
from zae_engine.trainer import addons
for name in ("WandB", "Neptune", "MLflow", "Trackio", "TensorBoard"):
    try:
        make(PlainTrainer.add_on(getattr(addons, f"{name}LoggerAddon")), save_path="run")
    except ModuleNotFoundError as error:
        print(error)
make(PlainTrainer.add_on(addons.CSVLoggerAddon), save_path="run").run(1, loader())
"""


def python(nursery, folder, *words, **more):
    """In a process of its own."""
    environ = environment() | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **more}
    return nursery.run("-c", *words, cwd=folder, env=environ, timeout=90)


def test_a_client_that_is_not_installed_is_named_with_its_command(nursery, tmp_path):
    done = python(nursery, tmp_path, WITHOUT)
    assert done.returncode == 0, done.stderr
    names = ("wandb", "neptune", "mlflow", "trackio", "tensorboard")
    for line, name in zip(done.stdout.splitlines(), names, strict=True):
        assert line == (f"the {name} logger needs {name}, which is not installed: pip install 'zae-engine[{name}]'")
    assert (tmp_path / "run" / "metrics.csv").is_file()


# ---------------------------------------------------------------------- neutral


@pytest.mark.parametrize("add_ons", [(StateManagerAddon, *TWO), (CSVLoggerAddon, StateManagerAddon)], ids=len)
def test_the_model_is_the_one_without_them(tmp_path, add_ons):
    """Weights, history, logs, and every random stream, to the bit."""
    outcomes = []
    for number, stack in enumerate(((StateManagerAddon,), add_ons)):
        trainer = build(tmp_path / str(number), kind=Drawing, add_ons=stack, seeded_samples=False)
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        trainer.run(2, loader(21, 5, shuffle=True), loader(11, 5), valid_every="3st")
        found = outcome(trainer)
        found["stack"].pop("LoggerAddon", None)
        outcomes.append(found | {"after": [torch.rand(()).item(), random.random(), np.random.rand()]})
    assert first_difference(*outcomes) is None
    trainer.close_loggers()
    assert steps(tmp_path / "1")[-1] == 10


def test_loggers_alone_change_nothing(tmp_path):
    wanted = make(dropout=0.3)
    wanted.run(2, loader(shuffle=True), loader(11))
    for stack in (TWO, TWO[::-1]):
        got = logged(*stack, dropout=0.3, save_path=tmp_path / stack[0].__name__, log_every="1st", seeded_samples=None)
        got.run(2, loader(shuffle=True), loader(11))
        assert_equal(weights(got.model), weights(wanted.model))
        assert got.get_loss_history() == wanted.get_loss_history()


@pytest.mark.parametrize("order", [(StateManagerAddon, CSVLoggerAddon), (CSVLoggerAddon, StateManagerAddon)])
def test_both_orders_keep_one_run_in_one_folder(tmp_path, order):
    trainer = logged(*order, save_path=tmp_path, log_every="1st")
    trainer.run(2, loader(), loader(11))
    trainer.close_loggers()
    assert steps(tmp_path) == list(range(1, 13))
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"history.jsonl", "run.json", "summary.json", "checkpoints", "loggers", "metrics.csv"}
    assert json.loads((tmp_path / "loggers" / "csv.json").read_text())["status"] == "done"


def test_without_a_path_the_run_is_below_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(2):
        trainer = logged(*TWO)
        trainer.run(1, loader())
        folders.append(trainer.save_path)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert sorted(path.name for path in Path("runs").iterdir()) == sorted(path.name for path in folders)
    assert all(re.fullmatch(r"\d{8}-\d{6}-PlainTrainer(-2)?", path.name) for path in folders)


def test_the_stack_pickles_and_is_the_same_class():
    stack = PlainTrainer.add_on(StateManagerAddon, *TWO)
    assert pickle.loads(pickle.dumps(stack)) is stack
    assert stack is PlainTrainer.add_on(StateManagerAddon, *TWO)


# ---------------------------------------------------------------------- what is logged


@pytest.mark.parametrize(
    ("every", "wanted"), [("1st", list(range(1, 13))), ("5st", [5, 6, 10, 12]), (4, [4, 6, 8, 12])]
)
def test_a_record_at_so_many_steps_and_at_each_epochs_end(tmp_path, every, wanted):
    trainer = logged(save_path=tmp_path, log_every=every)
    trainer.run(2, loader())
    trainer.close_loggers()
    assert steps(tmp_path) == wanted
    losses, begin = trainer.get_loss_history(), 0
    sizes = [8, 8, 8, 8, 8, 5] * 2
    for line, step in zip(table(tmp_path), wanted, strict=True):
        mean = np.average(losses[begin:step], weights=sizes[begin:step])  # of all steps since the last record
        assert float(line["train/loss"]) == pytest.approx(mean, rel=1e-12)
        begin = step


class Unhurried(PlainTrainer):
    def train_step(self, batch):
        time.sleep(0.02)
        return super().train_step(batch)

    test_step = PlainTrainer.train_step


def test_a_record_at_so_many_seconds(tmp_path):
    trainer = logged(kind=Unhurried, save_path=tmp_path, log_every="0.2s")
    start = time.perf_counter()
    trainer.run(1, loader(45 * 8))
    took = time.perf_counter() - start
    trainer.close_loggers()
    assert 2 <= len(table(tmp_path)) <= took / 0.2 + 2
    assert steps(tmp_path)[-1] == 45


class Odd(PlainTrainer):
    """Returns what no logger takes, and numbers that are none."""

    def train_step(self, batch):
        values = {"name": "a string", "image": torch.zeros(3, 4, 4), "none": None, "nan": float("nan")}
        return super().train_step(batch) | values | {"inf": torch.tensor(float("inf")), "count": 3, "flag": True}

    test_step = train_step


@pytest.mark.filterwarnings("ignore:'(nan|inf)'")
def test_what_is_no_number_is_left_out_and_told_once(tmp_path, capfd):
    trainer = logged(*TWO, kind=Odd, save_path=tmp_path, log_every="1st")
    trainer.run(2, loader())
    trainer.close_loggers()
    line = table(tmp_path)[-1]
    assert (line["train/nan"], line["train/inf"], line["train/count"], line["train/flag"]) == (
        "nan",
        "inf",
        "3.0",
        "1.0",
    )
    assert not {"train/name", "train/image", "train/none"} & line.keys()
    said = capfd.readouterr().err
    for name in ("name", "image", "none"):
        assert said.count(f"'{name}' of train_step is no number") == 1, said
    assert "set aside" not in said


def test_an_evaluation_alone_starts_no_run(tmp_path):
    trainer = logged(save_path=tmp_path / "run", mode="test")
    trainer.run(None, loader())
    assert not (tmp_path / "run").exists()


class Overriding(PlainTrainer):
    def logging(self, step_dict):
        self.seen = [*getattr(self, "seen", []), float(step_dict["loss"])]
        super().logging({**step_dict, "own": 2.5})


def test_an_override_of_logging_is_called(tmp_path):
    trainer = logged(kind=Overriding, save_path=tmp_path, log_every="1st")
    trainer.run(1, loader())
    trainer.close_loggers()
    assert trainer.seen == trainer.get_loss_history()
    assert [line["train/own"] for line in table(tmp_path)] == ["2.5"] * 6


def test_the_clients_are_there_while_it_runs(tmp_path):
    trainer = logged(*TWO, save_path=tmp_path)
    assert trainer.loggers == {"csv": None, "tensorboard": None}
    trainer.run(1, loader())
    assert trainer.loggers["csv"] == tmp_path / "metrics.csv"
    assert type(trainer.web_logger).__name__ == "EventFileWriter"
    trainer.close_loggers()


# ---------------------------------------------------------------------- going on


def test_a_resumed_run_goes_on_in_the_same_place(tmp_path):
    stack = (StateManagerAddon, *TWO)
    first = logged(*stack, save_path=tmp_path, log_every="1st")
    first.run(1, loader())
    first.close_loggers()
    again = logged(*stack, save_path=tmp_path, log_every="1st")
    again.run(2, loader(), resume="auto")
    again.close_loggers()
    assert steps(tmp_path) == list(range(1, 13))
    assert again.state_dict()["LoggerAddon"] == {"csv": "metrics.csv", "tensorboard": "tensorboard"}
    assert [path.name for path in tmp_path.glob("metrics*")] == ["metrics.csv"]


def test_the_ids_come_out_of_the_checkpoint(tmp_path):
    """Where the notes beside it are gone."""
    stack = (StateManagerAddon, CSVLoggerAddon)
    first = logged(*stack, save_path=tmp_path, log_every="1st")
    first.run(1, loader())
    state = copy.deepcopy(first.state_dict())
    first.save_state()
    first.close_loggers()
    (tmp_path / "loggers" / "csv.json").unlink()
    again = logged(*stack, save_path=tmp_path, log_every="1st")
    again.run(2, loader(), resume="auto")
    again.close_loggers()
    assert state["LoggerAddon"] == {"csv": "metrics.csv"}
    assert steps(tmp_path) == list(range(1, 13))


def test_a_new_run_in_a_folder_of_before_is_a_new_one(tmp_path):
    for _ in range(2):
        trainer = logged(*TWO, save_path=tmp_path, log_every="1st")
        trainer.run(1, loader())
        trainer.close_loggers()
    assert steps(tmp_path) == list(range(1, 7))
    assert {path.name for path in tmp_path.glob("metrics*")} == {"metrics.csv", "metrics-1.csv"}
    assert Cursor.load(tmp_path, "tensorboard").id == "tensorboard-2"


@pytest.mark.usefixtures("starts_processes")
def test_verify_resume_starts_no_logger(tmp_path):
    trainer = logged(StateManagerAddon, *TWO, save_path=tmp_path / "run")
    found = trainer.verify_resume(loader())
    assert found, found.cause
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- the settings of 0.7.6

OLD = """
from tests.helpers import PlainTrainer, loader, make
from zae_engine.trainer.addons import NeptuneLoggerAddon, WandBLoggerAddon

class Own(PlainTrainer.add_on(WandBLoggerAddon, NeptuneLoggerAddon)):
    def init_wandb(self, params):
        print("opens", params["project"], flush=True)
        return super().init_wandb(params)

settings = {"wandb": {"project": "digits", "mode": "offline"},
            "neptune": {"project_name": "me/digits", "api_tkn": "ANOTHER-1234", "mode": "offline"}}
trainer = make(Own, save_path="run", log_every="1st", web_logger=settings)
trainer.run(1, loader())
print({name: type(client).__module__.partition(".")[0] for name, client in trainer.loggers.items()}, flush=True)
"""


@pytest.mark.slow
def test_the_settings_of_0_7_6_start_both_loggers(nursery, tmp_path):
    pytest.importorskip("wandb")
    pytest.importorskip("neptune")
    done = python(nursery, tmp_path, OLD, PYTHONWARNINGS="default", WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    assert "opens digits" in done.stdout
    assert "{'wandb': 'wandb', 'neptune': 'neptune'}" in done.stdout
    for name in ("wandb", "neptune"):
        cursor = Cursor.load(tmp_path / "run", name)
        assert (cursor.step, cursor.status) == (6, "done"), done.stderr
    assert "set aside" not in done.stderr


# ---------------------------------------------------------------------- several processes

GROUP = """
import os, sys, torch
from tests.helpers import MLPTrainer, loader, make
from zae_engine.trainer.addons import CSVLoggerAddon, StateManagerAddon, TensorBoardLoggerAddon

trainer = make(MLPTrainer.add_on(StateManagerAddon, CSVLoggerAddon, TensorBoardLoggerAddon), device=None,
               save_path=sys.argv[1], log_every="4st")
trainer.run(2, loader(shuffle=True), loader(11))
trainer.close_loggers()
"""


@pytest.mark.usefixtures("starts_processes")
def test_of_two_processes_one_logs_the_means_of_both(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(GROUP)
    alone = logged(StateManagerAddon, *TWO, kind=MLPTrainer, save_path=tmp_path / "alone", log_every="4st")
    alone.run(2, loader(shuffle=True), loader(11))
    alone.close_loggers()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = start_group(2, str(script), str(tmp_path / "two"), env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    got, wanted = table(tmp_path / "two"), table(tmp_path / "alone")
    assert [line["step"] for line in got] == [line["step"] for line in wanted] == ["4", "6", "8", "12"]
    for one, other in zip(got, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"time", "samples/s", "waiting for data"}:
            assert (one[name] == "") == (other[name] == "")
            if one[name]:
                assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-5), name
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
    assert not list(tmp_path.glob("two/metrics-*"))


SESSION = """
from tests.helpers import *
from zae_engine.trainer.addons import CSVLoggerAddon, MultiGPUAddon, StateManagerAddon
trainer = make(PlainTrainer.add_on(StateManagerAddon, CSVLoggerAddon, MultiGPUAddon), device=["cpu", "cpu"],
               save_path="kept", log_every="1st")

_ = trainer.run(1, loader())
_ = trainer.run(1, loader())
print(trainer.state_dict()["LoggerAddon"])
"""


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_in_a_session_the_workers_log_one_run(tmp_path):
    ((_, out, err),) = finish(session(tmp_path, SESSION, cwd=tmp_path))
    assert "{'csv': 'metrics.csv'}" in out, err
    assert steps(tmp_path / "kept") == list(range(1, 13))
    assert [path.name for path in (tmp_path / "kept").glob("metrics*")] == ["metrics.csv"]
    assert Cursor.load(tmp_path / "kept", "csv").status == "done"
    assert [record.step for record in records_of(tmp_path / "kept")] == list(range(1, 13))


# ---------------------------------------------------------------------- all of them


def test_tokens_are_in_no_cursor(tmp_path):
    pytest.importorskip("neptune")
    settings = {"neptune": {"api_tkn": "ANOTHER-1234", "mode": "offline", "proxies": {"http": "http://me:pw@host"}}}
    trainer = logged(NeptuneLoggerAddon, save_path=tmp_path, web_logger=settings)
    (feed,) = trainer._journal.readers.feeds.values()
    assert feed._settings == {"mode": "offline"}


NEUTRAL = """
import random, sys, torch
import numpy as np
from tests.helpers import *
from tests.nurse import environment
from tests.trainer.addons.resumed import Drawing, build, first_difference, outcome
from pathlib import Path
from zae_engine.trainer import addons

outcomes = []
for number, names in enumerate(([], sys.argv[1:])):
    stack = [addons.StateManagerAddon, *(getattr(addons, f"{name}LoggerAddon") for name in names)]
    trainer = build(Path(f"{number}").absolute(), kind=Drawing, add_ons=stack, seeded_samples=False)
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    trainer.run(4, loader(45, 5, shuffle=True), loader(11, 5))
    found = outcome(trainer)
    found["stack"].pop("LoggerAddon", None)
    if names:
        trainer.close_loggers()
    outcomes.append(found | {"after": [torch.rand(()).item(), random.random(), np.random.rand()]})
print("difference:", first_difference(*outcomes))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ["MLflow"],
        ["Trackio"],
        ["WandB"],
        ["Neptune"],
        ["TensorBoard", "Trackio", "CSV", "WandB"],
    ],
    ids="+".join,
)
def test_no_client_draws_from_the_trainings_streams(nursery, tmp_path, names):
    """In a new process, which imports the clients, too."""
    more = {"WANDB_MODE": "offline", "TRACKIO_DIR": tmp_path / "trackio", "WANDB_SILENT": "true"}
    done = python(nursery, tmp_path, NEUTRAL, *names, PYTHONWARNINGS="default", **more)
    assert "difference: None" in done.stdout, done.stdout + done.stderr
    for path in (tmp_path / "1" / "loggers").iterdir():
        cursor = Cursor.load(tmp_path / "1", path.stem)
        assert (cursor.step, cursor.status) == (36, "done"), done.stderr
    assert "set aside" not in done.stderr
