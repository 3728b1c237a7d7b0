"""A logger can fail, exit, hang or crawl: the training neither notices nor waits, and every record arrives once."""

import os
import time
import tracemalloc
import warnings

import pytest
import torch

from tests.helpers import PlainTrainer, assert_equal, loader, make, weights
from tests.logs.making import attempt, checkpoint, end, point, row, write
from tests.logs.services import (
    BufferingLogger,
    ReadBackLogger,
    SecondLogger,
    Service,
    ServiceLogger,
    attach,
    end_all,
    feed_of,
    threads,
    wait_for,
)
from tests.logs.test_merging import write_more
from tests.nurse import environment
from zae_engine.logs import delivery as feed_module
from zae_engine.logs.cursor import Cursor
from zae_engine.logs.delivery import close
from zae_engine.logs.loggers.logger import RunInfo
from zae_engine.logs.merging import records_of
from zae_engine.trainer.addons import CSVLoggerAddon, StateManagerAddon, TensorBoardLoggerAddon
from zae_engine.trainer.journal import history_readers

STEPS = list(range(1, 13))  # of two epochs
METHODS = ("start", "log", "flush", "summarize", "keep_file", "finish")


@pytest.fixture(autouse=True)
def _ended():
    """No thread goes on into the next test."""
    yield
    end_all()


@pytest.fixture
def impatient(monkeypatch):
    """Ends wait for a moment only."""
    monkeypatch.setattr(feed_module, "PATIENCE", 0.3)
    monkeypatch.setattr(history_readers, "_PATIENCE", 0.3)


class Clocked(PlainTrainer):
    """Notes when its last step was done."""

    def train_step(self, batch):
        self.last = time.perf_counter()
        return super().train_step(batch)

    test_step = PlainTrainer.train_step


def trainer_for(folder, *feeds, **options):
    options = {"save_path": folder, "log_every": "1st"} | options
    return attach(make(Clocked.add_on(StateManagerAddon), **options), *feeds)


class CountingLogger(ServiceLogger):
    """Keeps how many records there were, and no record."""

    def log(self, record):
        self.service.visit("log", record.step)
        kept = self.service.records[self.id]
        kept[:] = [kept[0] + 1 if kept else 1]


class ThirdLogger(ServiceLogger):
    name = "third"


class FourthLogger(ServiceLogger):
    name = "fourth"


class RefusingLogger(ServiceLogger):
    def check(self):
        raise TypeError("no such setting")


def train(folder, *feeds, epochs=2, **options):
    trainer = trainer_for(folder, *feeds, **options)
    start = time.perf_counter()
    trainer.run(epochs, loader(), loader(11))
    trainer.took, trainer.waited = trainer.last - start, time.perf_counter() - trainer.last
    return trainer


def ended(trainer, patience=20.0):
    close(trainer._journal.readers.feeds.values(), "done", patience)
    return trainer


def missing(folder, steps):
    """What is not kept once, of the records that hold."""
    return [record.step for record in records_of(folder) if steps.count(record.step) != 1]


# ---------------------------------------------------------------------- when nothing fails


def test_every_record_arrives_once_and_the_run_is_closed(tmp_path):
    service = Service()
    ended(train(tmp_path, feed_of(service)))
    assert service.steps() == STEPS
    assert service.records["run-1"] == records_of(tmp_path)
    assert (service.statuses, service.files) == (["done"], ["model.safetensors"])
    assert service.summaries[0]["status"] == "done"
    assert Cursor.load(tmp_path, "service") == Cursor("service", "run-1", 12, {}, "done")
    assert threads() == []


def test_after_run_everything_is_there_though_the_run_is_open(tmp_path):
    service = Service()
    trainer = train(tmp_path, feed_of(service))
    assert service.steps() == STEPS
    assert service.statuses == []
    trainer.run(1, loader(), loader(11))  # goes on in the same run
    assert service.steps() == list(range(1, 19))
    assert service.calls.count("start") == 1
    ended(trainer)
    assert service.statuses == ["done"]


def test_a_trainer_that_is_gone_closes_its_run(tmp_path):

    trainer = make(PlainTrainer.add_on(CSVLoggerAddon), save_path=tmp_path, log_every="1st")
    trainer.run(1, loader())
    assert threads() == ["logger csv"]
    del trainer
    wait_for(lambda: not threads())
    assert Cursor.load(tmp_path, "csv").status == "done"


def test_trainers_one_after_the_other_leave_no_threads(tmp_path):

    for number in range(4):
        trainer = make(PlainTrainer.add_on(CSVLoggerAddon, TensorBoardLoggerAddon), save_path=tmp_path / f"{number}")
        trainer.run(1, loader())
        wait_for(lambda: len(threads()) <= 2)  # those of this one
    del trainer
    wait_for(lambda: not threads())


def test_closing_twice_and_going_on_after_it(tmp_path):
    service = Service()
    trainer = ended(ended(train(tmp_path, feed_of(service))))
    trainer.run(1, loader(), loader(11))
    ended(trainer)
    assert service.steps() == list(range(1, 19))
    assert service.statuses == ["done", "done"]


def test_a_run_that_fails_is_closed_as_failed(tmp_path):
    service = Service()
    trainer = trainer_for(tmp_path, feed_of(service))
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.run(1, [*loader(), (torch.zeros(2, 3), torch.zeros(2).long())])
    assert (service.statuses, threads()) == (["failed"], [])
    assert service.steps() == [1, 2, 3, 4, 5, 6]
    assert service.summaries[0]["status"] == "failed"


def test_another_run_of_the_same_trainer_is_another_run_of_the_logger(tmp_path):
    """What was saved elsewhere begins a run here, while the one before is open."""
    service = Service()
    train(tmp_path / "a", epochs=1)
    trainer = train(tmp_path / "b", feed_of(service), epochs=1)
    trainer.load_state(tmp_path / "a" / "checkpoints")
    trainer.run(1, loader(), loader(11))
    ended(trainer)
    assert service.statuses == ["done", "done"]
    assert (service.steps("run-1"), service.steps("run-2")) == (list(range(1, 7)), list(range(7, 13)))


# ---------------------------------------------------------------------- what raises


@pytest.mark.parametrize("error", [RuntimeError("the server is gone"), SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("method", METHODS)
def test_what_raises_is_set_aside_with_one_message(tmp_path, capfd, method, error):
    service = Service({method: error}, at=3 if method == "log" else 1)
    trainer = train(tmp_path, feed_of(service))
    ended(trainer).run(1, loader(), loader(11))  # the second call tells what came after the first one
    ended(trainer)
    said = [line for line in capfd.readouterr().err.splitlines() if "service" in line]
    assert len(said) == (2 if method in ("start", "log", "flush", "summarize", "keep_file") else 1), said
    assert f"service is set aside: {type(error).__name__}" in said[0]
    assert f"`zae logs sync {tmp_path}` delivers later" in said[0]
    assert trainer.progress_checker.get_step() == 19
    assert threads() == []


def test_the_model_and_the_history_are_those_without_it(tmp_path):
    wanted = train(tmp_path / "without")
    for method in METHODS:
        got = train(tmp_path / method, feed_of(Service({method: ValueError("no")})))
        assert_equal(weights(got.model), weights(wanted.model))
        ended(got)
        assert [record.step for record in records_of(tmp_path / method)] == STEPS


@pytest.mark.parametrize("kind", [ServiceLogger, BufferingLogger, ReadBackLogger])
@pytest.mark.parametrize("method", METHODS[:-1])
def test_what_comes_back_gets_everything_once(tmp_path, monkeypatch, method, kind):
    monkeypatch.setattr(feed_module, "AGAIN", 0.05)
    service = Service({method: OSError("no network")}, at=3 if method == "log" else 1, times=2)
    if method == "flush" and kind is not ReadBackLogger:
        service.left = 1  # its records are kept when it is closed; who cannot even do that, may get them twice
    trainer = train(tmp_path, feed_of(service, kind))
    wait_for(lambda: not service.left)
    ended(trainer)
    assert missing(tmp_path, service.steps()) == []
    assert service.summaries[-1]["status"] == "done"
    assert service.files[-1:] == ["model.safetensors"]
    assert (service.statuses[-1], list(service.records)) == ("done", ["run-1"])


def test_the_end_tries_once_more(tmp_path):
    """It may be back, though it is not its time yet."""
    for times, wanted in ((1, STEPS), (9, [])):
        service = Service({"start": OSError("no network")}, times=times)
        ended(train(tmp_path / str(times), feed_of(service)))
        assert service.calls.count("start") == 2
        assert [step for id in service.records for step in service.steps(id)] == wanted


def test_it_is_tried_again_less_and_less_often(tmp_path, monkeypatch):
    monkeypatch.setattr(feed_module, "AGAIN", 0.1)
    service = Service({"start": OSError("no network")})
    trainer = train(tmp_path, feed_of(service), epochs=1)
    time.sleep(1.0)
    assert 2 <= service.calls.count("start") <= 4  # after 0.1, 0.3 and 0.7 seconds
    ended(trainer)


def test_an_error_at_the_end_is_told_when_the_process_ends(nursery, tmp_path):
    """The default, since the run is closed by then; nobody calls run() any more."""
    code = f"""
from tests.helpers import PlainTrainer, loader, make
from tests.logs.services import Service, attach, feed_of
from zae_engine.trainer.addons import CSVLoggerAddon, StateManagerAddon, TensorBoardLoggerAddon
from zae_engine.trainer.journal import history_readers
trainer = attach(make(PlainTrainer.add_on(StateManagerAddon), save_path={str(tmp_path / "run")!r}),
                 feed_of(Service({{"finish": RuntimeError("quota")}})))
trainer.run(1, loader())
"""
    done = nursery.run("-c", code, env=environment() | {"PYTHONWARNINGS": "error"})
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if line] == [
        f"service is set aside: RuntimeError: quota. The training goes on; `zae logs sync {tmp_path}/run` delivers"
        " later what is missing"
    ]


# ---------------------------------------------------------------------- what hangs


@pytest.mark.parametrize("method", ["start", "log", "flush", "summarize", "finish"])
def test_the_training_does_not_wait_for_what_hangs(tmp_path, impatient, method):
    service = Service(hangs=method, at=3 if method == "log" else 1)
    start = time.perf_counter()
    ended(train(tmp_path / "run", feed_of(service)), None)
    assert time.perf_counter() - start < 30  # it hangs for a minute
    assert service.waits.is_set()
    service.gate.set()
    wait_for(lambda: not threads())
    assert service.steps() == STEPS  # as soon as it is back
    assert service.statuses == ["done"]


def test_what_hangs_is_told_once(tmp_path, impatient, monkeypatch, capfd):
    monkeypatch.setattr(feed_module, "SLOW", 0.05)
    trainer = train(tmp_path, feed_of(Service(hangs="start")), epochs=1)
    trainer.run(2, loader())
    said = capfd.readouterr().err
    assert said.count("service has not answered for 0.05 s; the training goes on") == 1, said
    assert said.count("service has not taken everything yet") == 1, said
    assert said.count("service") == 2, said


def test_its_client_is_waited_for_once(tmp_path, impatient):
    """A step may ask for the client of a logger that hangs, each time."""
    feed = feed_of(Service(hangs="start"))
    train(tmp_path, feed, epochs=1)
    start = time.perf_counter()
    assert [feed.client(0.3) for _ in range(50)] == [None] * 50
    assert time.perf_counter() - start < 10  # and not for 15 seconds


def test_nobody_waits_for_the_client_of_a_logger_that_is_set_aside(tmp_path):
    feed = feed_of(Service({"start": OSError("no network")}))
    train(tmp_path, feed, epochs=1)
    start = time.perf_counter()
    assert feed.client(60.0) is None
    assert time.perf_counter() - start < 30


# ---------------------------------------------------------------------- what is slow


def test_a_slow_logger_loses_nothing(tmp_path):
    service = Service(slow=0.01)
    without = train(tmp_path / "without", epochs=10)
    trainer = train(tmp_path / "run", feed_of(service), epochs=10)
    assert trainer.took < without.took + 1.5
    ended(trainer)
    assert service.steps() == list(range(1, 61))


def test_what_waits_for_a_slow_logger_is_not_in_memory(tmp_path):
    """It is in the file only."""
    folder, last = write(tmp_path, [attempt()]), 4000
    service = Service(hangs="log", at=2)
    feed = feed_of(service, CountingLogger)
    feed.begin(RunInfo(folder, "run"), fresh=True)
    write_more(folder, point(1), point(2), point(3))
    feed.wake()
    assert service.waits.wait(10)
    write_more(folder, *map(point, range(4, last)))
    tracemalloc.start()
    feed.wake()
    service.gate.set()
    close([feed], "done", 20.0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert service.records["run-1"] == [last - 2]  # the last one may not be whole yet
    assert most < 300_000, f"{most:,} of a file of {(folder / 'history.jsonl').stat().st_size:,}"


# ---------------------------------------------------------------------- several


def test_the_others_complete_when_some_fail(tmp_path, capfd):
    good, failing, better = Service(), Service({"log": RuntimeError("no")}, at=4), Service()
    feeds = (
        feed_of(failing),
        feed_of(good, SecondLogger),
        feed_of(better, ThirdLogger),
        feed_of(Service(), FourthLogger),
    )
    ended(train(tmp_path, *feeds))
    for each in (good, better):
        assert (each.steps(), each.statuses) == (STEPS, ["done"])
    assert failing.steps() == [1, 2, 3]
    assert capfd.readouterr().err.count("is set aside") == 1


def test_one_that_hangs_does_not_hold_up_the_other(tmp_path, impatient):
    good, hanging = Service(), Service(hangs="log", at=4)
    ended(train(tmp_path, feed_of(hanging), feed_of(good, SecondLogger)), 1.0)
    assert (good.steps(), good.statuses) == (STEPS, ["done"])
    end_all()
    assert (hanging.steps(), hanging.statuses) == (STEPS, ["done"])


# ---------------------------------------------------------------------- after a stop


def test_a_resumed_run_goes_on_after_what_is_kept(tmp_path):
    service = Service()
    ended(train(tmp_path, feed_of(service), epochs=1))
    trainer = trainer_for(tmp_path, feed_of(service))
    trainer.run(2, loader(), loader(11), resume="auto")
    ended(trainer)
    assert service.steps() == STEPS
    assert list(service.records) == ["run-1"]


def test_a_cursor_behind_what_is_kept_doubles_nothing(tmp_path):
    """A kill between the service and our note."""
    service = Service()
    ended(train(tmp_path, feed_of(service, ReadBackLogger), epochs=1))
    cursor = Cursor.load(tmp_path, "service")
    cursor.step = 2
    cursor.save(tmp_path)
    trainer = trainer_for(tmp_path, feed_of(service, ReadBackLogger))
    trainer.run(2, loader(), loader(11), resume="auto")
    ended(trainer)
    assert service.steps() == STEPS


def test_what_was_left_at_a_checkpoint_is_told_with_its_validation(tmp_path):
    """Interrupted between the last step of an epoch and its row, which the resumed run makes."""
    folder = write(tmp_path, [attempt(), point(1), point(2), checkpoint(2), end("interrupted", step=2)])
    service = Service()
    feed = feed_of(service)
    feed.begin(RunInfo(folder, "run"), fresh=True)
    close([feed], "interrupted")
    assert service.steps() == [1]
    write_more(folder, attempt(2, after=4, step=2), row(0, 2, test_loss=0.5), point(3), end(step=3))
    feed.begin(RunInfo(folder, "run"), fresh=False)
    close([feed], "done")
    assert service.steps() == [1, 2, 3]
    assert service.records["run-1"][1].values["test/loss"] == 0.5


@pytest.mark.usefixtures("starts_processes")
def test_a_fork_has_no_logger(tmp_path):
    service = Service()
    feed = feed_of(service)
    feed.begin(RunInfo(write(tmp_path, [attempt()]), "run"), fresh=True)
    wait_for(lambda: "start" in service.calls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: a process with threads forks
        child = os.fork()
    if child == 0:
        code = 1
        try:
            feed.wake()
            close([feed], "failed")
            code = int(feed.alive or feed.problems() != [] or feed.client(5.0) is not None)
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert feed.alive
    close([feed], "done")
    assert service.statuses == ["done"]


def test_wrong_settings_are_refused_before_any_run():
    with pytest.raises(TypeError, match="no such setting"):
        feed_of(Service(), RefusingLogger)
