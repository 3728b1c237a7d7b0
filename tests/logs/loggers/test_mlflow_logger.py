"""Runs of MLflow in a SQLite file, read back with its own client."""

import math
import shutil
import sys
from importlib.util import find_spec

import pytest

from tests.helpers import MLPTrainer, loader, make
from tests.logs.logging_helpers import CONFIG, START, info, odd_record, record, resume_after_kill, run_attempt, with_own
from zae_engine.logs.delivery import close
from zae_engine.logs.loggers.mlflow_logger import MLflowLogger
from zae_engine.trainer.addons import MLflowLoggerAddon

pytestmark = [
    pytest.mark.skipif(not (find_spec("mlflow") and find_spec("alembic")), reason="needs mlflow and alembic"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow's own code
]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A store with its tables, which take a second to be made."""
    folder = tmp_path_factory.mktemp("empty")
    store(folder).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def folder(tmp_path, empty):
    """A run folder that has one already."""
    (tmp_path / "a run").mkdir()
    shutil.copy(empty, tmp_path / "a run" / "mlflow.db")
    return tmp_path / "a run"


def store(folder):
    from urllib.parse import quote

    from mlflow.tracking import MlflowClient

    return MlflowClient("sqlite:///" + quote(str(folder / "mlflow.db")))


def history(folder, id, name="train/loss"):
    return sorted(store(folder).get_metric_history(id, name), key=lambda metric: metric.step)


def test_every_record_is_read_back(tmp_path):
    folder = tmp_path / "a run, 100%"
    records = [record(step, test__loss=2.0 - abs(step - 3)) for step in range(1, 6)]
    id, last = run_attempt(MLflowLogger({"tags": {"team": 1}}), info(folder), records)
    run = store(folder).get_run(id)
    assert last == 0
    assert (run.info.status, run.info.run_name) == ("FINISHED", "digits")
    assert store(folder).get_experiment(run.info.experiment_id).name == "digits"
    assert run.data.tags["team"] == "1"
    kept = history(folder, id)
    assert [(metric.step, metric.value) for metric in kept] == [(step, 1 / step) for step in range(1, 6)]
    assert [metric.timestamp for metric in kept] == [(START + step) * 1000 for step in range(1, 6)]
    assert [metric.value for metric in history(folder, id, "best/test/loss")] == [0.0]
    assert run.data.params["settings/the optimizer/name"] == "SGD"
    assert run.data.params["command"] == str(CONFIG["command"])


@pytest.mark.parametrize(
    ("monitor", "name"), [("acc", "train/acc"), ("train_loss", "train/loss_epoch"), ("loss", "train/loss_epoch")]
)
def test_the_best_of_a_training_is_of_the_column_that_tells_it(folder, monitor, name):
    trainer = make(MLPTrainer.add_on(MLflowLoggerAddon), monitor=monitor, save_path=folder, log_every="1st")
    trainer.run(3, loader())
    close(trainer._journal.readers.feeds.values(), "done")
    (run,) = store(folder).search_runs([e.experiment_id for e in store(folder).search_experiments()])
    assert {k: v for k, v in run.data.metrics.items() if k.startswith("best/")} == {f"best/{name}": trainer.loss_buffer}


def test_texts_and_pictures_are_artifacts(tmp_path, folder):
    id, _ = run_attempt(MLflowLogger(), info(folder), [with_own(tmp_path, step) for step in (1, 2)])
    client = store(folder)
    assert [file.path for file in client.list_artifacts(id, "pictures/weights")] == ["pictures/weights/weights.png"]
    assert [file.path for file in client.list_artifacts(id, "texts/note")] == [
        "texts/note/000000001.txt",
        "texts/note/000000002.txt",
    ]


def test_a_resumed_run_goes_on(folder):
    id, _ = run_attempt(MLflowLogger(), info(folder), [record(step, test__loss=1.0) for step in range(1, 6)], "failed")
    assert store(folder).get_run(id).info.status == "FAILED"
    changed = {**CONFIG, "seed": 8, "further": "x" * 7000}
    records = [record(step, test__loss=1.0) for step in range(4, 9)]
    again, last = run_attempt(MLflowLogger(), info(folder, id, 3, changed), records, "interrupted")
    assert (again, last) == (id, 5)
    run = store(folder).get_run(id)
    assert run.info.status == "KILLED"
    assert [metric.step for metric in history(folder, id)] == list(range(1, 9))
    assert [metric.step for metric in history(folder, id, "best/test/loss")] == [1]
    assert (run.data.params["seed"], run.data.tags["resumed/seed"]) == ("7", "8")
    assert len(run.data.params["further"]) == 6000


def test_what_is_no_number_and_names_that_mlflow_refuses(folder):
    logger = MLflowLogger()
    odd = odd_record(1)
    odd.values.update({"acc@5": 0.5, "/a//b": 0.25, "n" * 300: 1.0})
    id, _ = run_attempt(logger, info(folder), [odd, record(2)])
    values = store(folder).get_run(id).data.metrics
    assert math.isnan(values["grad_norm"])
    assert (values["test/loss"], values["test/gain"]) == (sys.float_info.max, -sys.float_info.max)  # as it keeps them
    assert "best/test/loss" not in values
    assert (values["acc_5"], values["a/b"], values["n" * 250]) == (0.5, 0.25, 1.0)
    assert "MLflow allows no value with the name 'acc@5'; it keeps it as 'acc_5'" in logger.notices
    assert len(logger.notices) == 3


def test_many_records_and_wide_ones(folder):
    wide = {f"layer/{number}": float(number) for number in range(1200)}
    records = [record(step) for step in range(1, 601)] + [record(601, **wide)]
    id, _ = run_attempt(MLflowLogger(), info(folder), records)
    assert len(history(folder, id)) == 601
    assert len(store(folder).get_run(id).data.metrics) == 1204


def test_the_best_weights_are_an_artifact_by_option(tmp_path, folder):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    for keep in (False, True):
        logger = MLflowLogger({"log_model": keep, "experiment": "mine", "run_name": "first"})
        id = logger.start(info(folder))
        logger.keep_file(weights)
        logger.summarize({"best": {"name": "test_loss", "value": 0.5}})
        logger.finish("done")
        run = store(folder).get_run(id)
        assert (run.info.run_name, run.data.tags["summary/best/value"]) == ("first", "0.5")
        kept = folder / "mlflow-artifacts" / id / "artifacts" / "model.safetensors"
        assert kept.is_file() == keep


def test_a_store_elsewhere_and_a_run_that_is_gone(tmp_path, empty, monkeypatch):
    shutil.copy(empty, tmp_path / "all.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/all.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    logger = MLflowLogger({"artifact_location": str(tmp_path / "files")})
    id, last = run_attempt(logger, info(tmp_path / "run", "0" * 32, 7), [record(1)])
    assert (last, id != "0" * 32) == (0, True)
    assert "has no run 000" in logger.notices[0]
    assert not (tmp_path / "run" / "mlflow.db").exists()
    assert logger.client.get_experiment_by_name("mine").artifact_location == str(tmp_path / "files")


def test_wrong_settings_are_refused():
    with pytest.raises(TypeError, match="no setting 'experiment_name'; did you mean 'experiment'"):
        MLflowLogger({"experiment_name": "x"}).check()
    with pytest.raises(TypeError, match="run_name=3 of the mlflow logger is no text"):
        MLflowLogger({"run_name": 3}).check()
    with pytest.raises(TypeError, match=r"tags=\['a'\] of the mlflow logger are no mapping"):
        MLflowLogger({"tags": ["a"]}).check()


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow  # the fluent API imports more
def test_a_users_own_run_stays_active(tmp_path, monkeypatch):
    import mlflow

    own, other = f"sqlite:///{tmp_path}/own.db", f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own)
    with mlflow.start_run() as run:
        run_attempt(MLflowLogger({"tracking_uri": other}), info(tmp_path), [record(1)])
        assert mlflow.active_run().info.run_id == run.info.run_id
        mlflow.log_metric("mine", 1.0)
    assert mlflow.get_run(run.info.run_id).data.metrics == {"mine": 1.0}


def test_a_killed_run_goes_on(nursery, folder):
    id, last = resume_after_kill(nursery, "mlflow", folder)
    assert last == 10  # what was flushed
    assert [metric.step for metric in history(folder, id)] == list(range(1, 61))
