"""What loggers have missed is delivered later, each record once; and a whole run can be given to another one."""

import csv
import math
import signal

import pytest

from tests.helpers import PlainTrainer, loader, make
from tests.logs.killed_run import Killed, train
from tests.logs.making import STARTED, attempt, checkpoint, note, point, row, steps, write
from tests.logs.services import BufferingLogger, ReadBackLogger, Service, ServiceLogger, attach, end_all, feed_of
from zae_engine.logs.cursor import Cursor, cursors_in
from zae_engine.logs.delivery import close
from zae_engine.logs.export import SyncError, export, sync
from zae_engine.logs.merging import records_of
from zae_engine.logs.reading import RunFolderError
from zae_engine.trainer.addons import StateManagerAddon

CLOCKS = ("time", "samples/s", "waiting for data")


@pytest.fixture(autouse=True)
def _ended():
    yield
    end_all()


def table(path):
    """The lines of ``metrics.csv``, without what a clock has measured, as numbers."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {name: float(text) for name, text in line.items() if text and name not in CLOCKS}
            for line in csv.DictReader(file)
        ]


def events(run):
    """The values in TensorBoard's files, by step, in the order in which they are there."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    kept, folder = [], run / (Cursor.load(run, "tensorboard").id or "tensorboard")
    for path in sorted(folder.glob("*.tfevents.*"), key=lambda path: path.stat().st_mtime):
        for event in LegacyEventFileLoader(str(path)).Load():
            values = {v.tag: v.simple_value for v in event.summary.value if v.WhichOneof("value") == "simple_value"}
            if values:
                kept.append((event.step, {name: value for name, value in values.items() if name not in CLOCKS}))
    return kept


def run_with(service, folder, kind=ServiceLogger, epochs=2):
    feed = feed_of(service, kind)
    trainer = attach(make(PlainTrainer.add_on(StateManagerAddon), save_path=folder, log_every="1st"), feed)
    trainer.run(epochs, loader(), loader(11))
    close([feed], "done", 20.0)
    return trainer


# ---------------------------------------------------------------------- sync


@pytest.mark.parametrize("kind", [ServiceLogger, BufferingLogger, ReadBackLogger])
@pytest.mark.parametrize("method", ["start", "log", "flush", "finish"])
def test_a_logger_that_failed_gets_everything_later(tmp_path, method, kind):
    service = Service({method: OSError("no network")}, at=5 if method == "log" else 1)
    run_with(service, tmp_path, kind)
    assert Cursor.load(tmp_path, "service").status == "open"
    service.left = 0
    (said,) = sync(tmp_path, make=lambda cursor: kind(service, cursor.settings))
    assert service.records == {"run-1": records_of(tmp_path)}
    assert said.startswith("service got ")
    assert (service.statuses[-1], service.summaries[-1]["status"]) == ("done", "done")


def test_the_second_sync_changes_nothing(tmp_path):
    service = Service({"start": OSError("no network")})
    run_with(service, tmp_path)
    service.left = 0
    sync(tmp_path, make=lambda cursor: ServiceLogger(service))
    calls = list(service.calls)
    said = sync(tmp_path, make=lambda cursor: ServiceLogger(service))
    assert said == ["service has everything up to step 12 (run-1)"]
    assert service.calls == calls


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(2)], ids=repr)
def test_what_fails_again_does_not_keep_the_others_from_it(tmp_path, error):
    service, good = Service({"log": error}, at=5), Service()
    run_with(service, tmp_path)
    Cursor("alright").save(tmp_path)
    Cursor("zebra").save(tmp_path)
    with pytest.raises(SyncError, match=f"service could not take it: {type(error).__name__}") as raised:
        sync(tmp_path, make=lambda cursor: ServiceLogger(service if cursor.logger == "service" else good))
    assert "alright got 12 records" in str(raised.value)
    assert "zebra got 12 records" in str(raised.value)
    service.left = 0
    sync(tmp_path, ["service"], make=lambda cursor: ServiceLogger(service))
    assert service.records["run-1"] == records_of(tmp_path)


def test_a_start_that_succeeds_is_no_second_run_later(tmp_path):
    """Whatever comes after it."""
    service = Service({"start": OSError("no network")})
    run_with(service, tmp_path)
    service.fails, service.left = {"log": OSError("again")}, 1
    with pytest.raises(SyncError):
        sync(tmp_path, make=lambda cursor: ServiceLogger(service))
    sync(tmp_path, make=lambda cursor: ServiceLogger(service))
    assert service.records == {"run-1": records_of(tmp_path)}


class Syncing(PlainTrainer):
    """Tries to synchronise its own run, in the middle of it."""

    def train_step(self, batch):
        with pytest.raises(RunFolderError, match="is of a run that goes on"):
            sync(self.save_path)
        return super().train_step(batch)


def test_a_run_that_goes_on_is_refused(tmp_path):
    trainer = attach(make(Syncing.add_on(StateManagerAddon), save_path=tmp_path), feed_of(Service()))
    trainer._journal.folder.joinpath("loggers").mkdir(parents=True)
    Cursor("service").save(tmp_path)
    trainer.run(1, loader())


def test_what_is_no_run_and_what_had_no_logger(tmp_path):
    with pytest.raises(RunFolderError, match="is no run folder"):
        sync(tmp_path)
    write(tmp_path, [attempt(), point(1)], [note()])
    with pytest.raises(RunFolderError, match="had no logger; `zae logs export"):
        sync(tmp_path)
    Cursor("csv").save(tmp_path)
    with pytest.raises(RunFolderError, match="had no logger 'wandb'; it had csv"):
        sync(tmp_path, ["wandb"])


def test_a_killed_run_is_told_as_failed_with_a_summary_of_its_own(tmp_path):
    write(tmp_path, [attempt(), point(1), row(0, 1, test_loss=0.5)], [note()])
    (tmp_path / "summary.json").write_text('{"status": "done", "steps": 0}')  # of before it was gone on with
    Cursor("service", "run-1").save(tmp_path)
    service = Service()
    sync(tmp_path, make=lambda cursor: ServiceLogger(service))
    assert service.statuses == ["failed"]
    assert (service.summaries[0]["status"], service.summaries[0]["steps"]) == ("broken off", 1)


def killed(nursery, folder, *kills):
    for step in kills:
        done = nursery.run("-m", "tests.logs.killed_run", folder, step)
        assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
def test_a_run_that_is_killed_and_synchronised_is_that_of_an_unbroken_one(nursery, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    train(whole)
    killed(nursery, folder, 8, 16)
    assert {cursor.logger: cursor.status for cursor in cursors_in(folder)} == {"csv": "open", "tensorboard": "open"}
    count = len(records_of(folder))
    assert 13 <= count <= 15
    for _ in range(2):
        sync(folder)
        assert table(folder / "metrics.csv") == table(whole / "metrics.csv")[:count]
        assert events(folder) == events(whole)[:count]
    train(folder)
    for _ in range(2):
        assert table(folder / "metrics.csv") == table(whole / "metrics.csv")
        assert events(folder) == events(whole)
        assert [step for step, _ in events(whole)] == list(range(1, 19))
        assert all("has everything" in said for said in sync(folder))


def test_a_run_that_was_resumed_without_sync_is_that_of_an_unbroken_one(nursery, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    train(whole)
    killed(nursery, folder, 4, 9, 17)
    train(folder)
    assert table(folder / "metrics.csv") == table(whole / "metrics.csv")
    assert events(folder) == events(whole)
    assert [int(line["step"]) for line in table(whole / "metrics.csv")] == list(range(1, 19))
    assert any("test/acc" in line for line in table(whole / "metrics.csv"))


# ---------------------------------------------------------------------- export


def test_a_run_goes_to_csv_and_tensorboard(tmp_path):
    trainer = train(tmp_path / "run")
    said = export(tmp_path / "run", "csv", {})
    assert said == f"18 records of run are in csv (metrics.csv), in {tmp_path / 'run' / 'export'}."
    export(tmp_path / "run", "tensorboard", {}, out=tmp_path / "out")
    assert table(tmp_path / "run" / "export" / "metrics.csv") == table(tmp_path / "run" / "metrics.csv")
    assert events(tmp_path / "out") == events(tmp_path / "run")
    assert len(cursors_in(tmp_path / "run")) == 2  # it is no logger of the run
    assert trainer.progress_checker.get_step() == 19


def test_every_step_is_exported(tmp_path):
    trainer = make(Killed.add_on(StateManagerAddon), save_path=tmp_path, log_every="1ep")
    trainer.run(2, loader(), loader(11))
    assert len(records_of(tmp_path)) < 12
    export(tmp_path, "csv", {}, every_step=True)
    lines = table(tmp_path / "export" / "metrics.csv")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["train/loss"] for line in lines] == trainer.get_loss_history()
    assert lines[-1]["test/loss"] == trainer.history[-1]["test_loss"]
    with open(tmp_path / "export" / "metrics.csv") as file:
        times = [float(line["time"]) for line in csv.DictReader(file)]
    assert times == sorted(times)
    assert times[0] > STARTED


@pytest.mark.parametrize(("every_step", "wanted"), [(False, [2.0]), (True, [1.0, 2.0])])
def test_a_run_of_the_format_before(tmp_path, every_step, wanted):
    lines = [attempt(), *({"kind": "step", "step": s, "epoch": 1, "loss": 1 / s} for s in (1, 2))]
    write(tmp_path, [*lines, row(0, 2, test_loss="nan"), checkpoint(2)], [note()])
    export(tmp_path, "csv", {}, every_step=every_step)
    kept = table(tmp_path / "export" / "metrics.csv")
    assert [line["step"] for line in kept] == wanted
    assert kept[-1]["train/loss"] == 0.5
    assert math.isnan(kept[-1]["test/loss"])


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'tensorboard'"):
        export(tmp_path, "tensorbord", {})
    with pytest.raises(RunFolderError, match="is no run folder"):
        export(tmp_path, "csv", {})
    write(tmp_path, [attempt(), steps(1, loss=[0.5])], [note()])
    with pytest.raises(RunFolderError, match="has no record of any step yet"):
        export(tmp_path, "csv", {})
    with pytest.raises(TypeError, match="no setting 'pth'"):
        export(tmp_path, "csv", {"pth": "x"})
    assert not (tmp_path / "export").exists()


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the clients' own packages
@pytest.mark.parametrize("name", ["mlflow", "neptune", "trackio", "wandb"])
def test_a_run_goes_to_any_logger(tmp_path, monkeypatch, name):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip(name)
    train(tmp_path / "run")
    said = export(tmp_path / "run", name, {}, out=tmp_path / "out")
    assert said.startswith("18 records of run are in")
    assert any((tmp_path / "out").iterdir()) or name == "trackio"
