"""Trackers of Accelerate's and of a user's own, used as they are; what they wrote is read back."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, on_main_process, register_tracker_class

from tests.logs.logging_helpers import info, odd_record, record, resume_after_kill, run_attempt
from zae_engine.logs.loggers.tracker_logger import TrackerLogger


class FileTracker(GeneralTracker):
    """Writes JSON lines, as Accelerate's documentation has a tracker written."""

    name = "file"
    requires_logging_directory = True

    def __init__(self, run_name, logging_dir, suffix=".jsonl"):
        super().__init__()
        self.path = Path(logging_dir) / f"{run_name}{suffix}"

    @on_main_process
    def start(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "a")  # noqa: SIM115 - a tracker holds it until its end

    @property
    def tracker(self):
        return self.file

    @on_main_process
    def store_init_configuration(self, values):
        self.file.write(json.dumps({"config": values}) + "\n")

    @on_main_process
    def log(self, values, step=None, **kwargs):
        self.file.write(json.dumps({"step": step, **values}) + "\n")

    @on_main_process
    def finish(self):
        self.file.close()


class AskedTracker(FileTracker):
    """One that can tell what it has."""

    name = "asked"

    def start(self):
        if self.path.is_file():  # a kill may have cut the last line
            whole, end, _ = self.path.read_bytes().rpartition(b"\n")
            self.path.write_bytes(whole + end)
        super().start()

    def flush(self):
        self.file.flush()

    def last_step(self):
        steps = [line["step"] for line in lines(self.path) if "step" in line]
        return max(steps, default=0)


class StubbornTracker(FileTracker):
    """Refuses to be configured twice."""

    name = "stubborn"

    def store_init_configuration(self, values):
        if self.path.stat().st_size:
            raise ValueError("lr was 0.1\nand must stay")
        super().store_init_configuration(values)
        self.file.flush()


@pytest.fixture
def registered():
    register_tracker_class(AskedTracker)
    yield
    del LOGGER_TYPE_TO_CLASS["asked"]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_users_own_class(tmp_path):
    folder = tmp_path / "a run"
    logger = TrackerLogger({"log_with": FileTracker, "suffix": ".json"})
    id, last = run_attempt(logger, info(folder), [record(1), odd_record(2)])
    assert (id, last) == ("file", None)
    config, first, second = lines(folder / "tracker" / "digits.json")
    assert config["config"]["settings/the optimizer/name"] == "SGD"
    assert config["config"]["command"] == "['train.py', '--lr', '0.1']"
    assert first == {"step": 1, **record(1).values}
    assert math.isnan(second["grad_norm"])
    assert second["test/loss"] == math.inf


def test_a_users_own_tracker_and_its_client(tmp_path):
    tracker = FileTracker("mine", tmp_path)
    logger = TrackerLogger({"log_with": tracker})
    run_attempt(logger, info(tmp_path), [record(1)])
    assert logger.client is tracker.file
    assert [line.get("step") for line in lines(tmp_path / "mine.jsonl")] == [None, 1]


def test_one_that_can_tell_what_it_has_gets_nothing_twice(tmp_path, registered):
    settings = {"log_with": "asked", "project": "p", "logging_dir": tmp_path / "there"}
    id, last = run_attempt(TrackerLogger(settings), info(tmp_path), [record(1), record(2)])
    assert last == 0
    assert run_attempt(TrackerLogger(settings), info(tmp_path, id, 1), [record(3)]) == ("asked", 2)
    assert [line["step"] for line in lines(tmp_path / "there" / "p.jsonl") if "step" in line] == [1, 2, 3]


def test_a_killed_run_goes_on(nursery, tmp_path, registered):
    setup = "import tests.logs.loggers.test_tracker_logger as own; own.register_tracker_class(own.AskedTracker)"
    id, last = resume_after_kill(nursery, "tracker", tmp_path / "a run", {"log_with": "asked"}, setup)
    kept = lines(tmp_path / "a run" / "tracker" / "digits.jsonl")
    assert (id, 10 <= last < 60) == ("asked", True)
    assert [line["step"] for line in kept if "step" in line] == list(range(1, 61))


def test_a_changed_configuration_ends_nothing(tmp_path):
    id, _ = run_attempt(TrackerLogger({"log_with": StubbornTracker}), info(tmp_path), [record(1)])
    logger = TrackerLogger({"log_with": StubbornTracker})
    run_attempt(logger, info(tmp_path, id, 1), [record(2)])
    assert logger.notices == ["stubborn keeps the configuration of before: lr was 0.1"]
    assert lines(tmp_path / "tracker" / "digits.jsonl")[-1]["step"] == 2


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({}, TypeError, "log_with=None is no tracker; there are 'aim', 'clearml'"),
        ({"log_with": "dvc_live"}, ValueError, "no tracker 'dvc_live'; did you mean 'dvclive'"),
        ({"log_with": "neptune"}, ValueError, "no tracker 'neptune'; there are"),
        ({"log_with": "all"}, ValueError, "no tracker 'all'"),
        ({"log_with": dict}, TypeError, "is no tracker"),
        ({"log_with": FileTracker, "sufix": ".x"}, TypeError, "no setting 'sufix'; did you mean 'suffix'"),
        ({"log_with": FileTracker("a", "b"), "suffix": ".x"}, TypeError, "tracker logger has no setting 'suffix'"),
    ],
)
def test_wrong_settings_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        TrackerLogger(settings).check()


@pytest.mark.skipif(importlib.util.find_spec("comet_ml") is not None, reason="it is installed")
def test_a_missing_client_is_told():
    with pytest.raises(ModuleNotFoundError, match="pip install comet_ml"):
        TrackerLogger({"log_with": "comet_ml"}).check()


def test_tensorboard_through_accelerate(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"log_with": "tensorboard", "flush_secs": 3}
    id, _ = run_attempt(TrackerLogger(settings), info(tmp_path), [record(step) for step in (1, 2, 3)])
    kept = EventAccumulator(str(tmp_path / "tracker" / "digits")).Reload()
    assert id == "tensorboard"
    assert [event.step for event in kept.Scalars("train/loss")] == [1, 2, 3]


def test_dvclive_goes_on(tmp_path):
    pytest.importorskip("dvclive")
    settings = {"log_with": "dvclive", "save_dvc_exp": False, "dvcyaml": None, "monitor_system": False}
    id, _ = run_attempt(TrackerLogger(settings), info(tmp_path), [record(step) for step in (1, 2, 3)])
    run_attempt(TrackerLogger(settings), info(tmp_path, id, 3), [record(step) for step in (4, 5)])
    table = (tmp_path / "dvclive" / "plots" / "metrics" / "train" / "loss.tsv").read_text().split()
    assert table[2::2] == ["1", "2", "3", "4", "5"]


def test_swanlab_offline(tmp_path):
    pytest.importorskip("swanlab")
    settings = {"log_with": "swanlab", "mode": "offline"}
    id, _ = run_attempt(TrackerLogger(settings), info(tmp_path), [record(step) for step in (1, 2, 3)])
    again, _ = run_attempt(TrackerLogger(settings), info(tmp_path, id, 3), [record(4)])
    assert again == id
    assert list((tmp_path / "swanlab").glob(f"run-*/run-{id}.swanlab"))
