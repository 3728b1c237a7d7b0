"""At the default ``log_every``, every step is a record, or in a mean of some, as often as that costs nothing."""

import csv
import json
import os
import random
import signal
import time
from importlib.util import find_spec

import numpy as np
import pytest

from tests.helpers import PlainTrainer, loader, make
from tests.logs.killed_run import train
from tests.logs.making import attempt, end, point, row, steps, write
from tests.logs.services import SecondLogger, Service, ServiceLogger, attach, end_all, feed_of
from tests.logs.test_merging import write_more
from zae_engine.logs import pacing
from zae_engine.logs.cursor import Cursor
from zae_engine.logs.delivery import close
from zae_engine.logs.export import sync
from zae_engine.logs.history_file import read_lines
from zae_engine.logs.merging import Tail, records_of
from zae_engine.logs.reading import read_run
from zae_engine.logs.step_means import LENGTH
from zae_engine.trainer.addons import StateManagerAddon

SIZES = [8, 8, 8, 8, 8, 5]  # of an epoch's batches


@pytest.fixture(autouse=True)
def _ended():
    """No thread goes on into the next test."""
    yield
    end_all()


class Burning(ServiceLogger):
    """A logger that computes for twenty milliseconds a record."""

    def log(self, record):
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        super().log(record)


class Sleeping(ServiceLogger):
    """A logger that waits for its service for twenty milliseconds a record."""

    def log(self, record):
        time.sleep(0.02)
        super().log(record)


def trained(folder, *feeds, epochs=2, samples=45, **options):
    trainer = attach(make(PlainTrainer.add_on(StateManagerAddon), save_path=folder, **options), *feeds)
    trainer.run(epochs, loader(samples), loader(11))
    close(trainer._journal.readers.feeds.values(), "done", 30.0)
    return trainer


def losses(records):
    return [(r.step, r.values["train/loss"]) for r in records if "train/loss" in r.values]


def with_items(first, items, epoch=1, time=1764000001.0, **values):
    line = steps(first, epoch, **values)
    return {"kind": "steps", "epoch": epoch, "first": first, "items": items, "time": time, "values": line["values"]}


# ---------------------------------------------------------------------- a training


@pytest.mark.skipif(not all(map(find_spec, ("wandb", "mlflow", "tensorboard"))), reason="a client is not installed")
def test_300_steps_of_ten_milliseconds_are_300_points_in_every_logger(nursery, tmp_path):
    more = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = nursery.run("-m", "tests.logs.each_step_run", tmp_path / "run", env={**os.environ, **more}, timeout=180)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    wanted = found.pop("losses")
    assert len(wanted) == 300
    for name, kept in found.items():
        assert [step for step, _ in kept] == list(range(1, 301)), name
        assert [value for _, value in kept] == wanted, name


def test_every_step_is_a_record_with_its_own_value(tmp_path):
    service = Service()
    trainer = trained(tmp_path, feed_of(service))
    records = service.records["run-1"]
    assert losses(records) == list(enumerate(trainer.get_loss_history(), 1))
    assert records == records_of(tmp_path)
    assert [r.values["epoch"] for r in records] == [1.0] * 6 + [2.0] * 6
    assert [r.step for r in records if "test/loss" in r.values] == [6, 12]
    assert {12} <= {r.step for r in records if {"lr", "samples/s", "waiting for data"} <= r.values.keys()}
    times = [r.time for r in records]
    assert times == sorted(times)
    assert len(set(times)) > 2


@pytest.mark.parametrize("every", ["1st", "1ep", "5s", 3])
def test_what_says_exactly_how_often_has_one_record_each_time(tmp_path, every):
    service = Service()
    trained(tmp_path, feed_of(service), log_every=every)
    wanted = {"1st": range(1, 13), "1ep": (6, 12), "5s": (6, 12), 3: (3, 6, 9, 12)}[every]
    assert [step for step, _ in losses(service.records["run-1"])] == list(wanted)
    assert not any("items" in line for line in read_run(tmp_path).points)
    assert b'"items"' not in (tmp_path / "history.jsonl").read_bytes()


def test_the_file_has_each_step_once_whatever_the_loggers_get(tmp_path):
    trainer = trained(tmp_path, feed_of(Service()))
    series = read_run(tmp_path).steps["loss"]
    assert (series.step.tolist(), series.value.tolist()) == (list(range(1, 13)), trainer.get_loss_history())
    assert [line["step"] for line in read_lines(tmp_path) if line["kind"] == "step"] == list(range(1, 13))


def test_a_run_that_goes_on_has_no_point_twice(tmp_path):
    service = Service()
    trained(tmp_path, feed_of(service), epochs="8st", save_every="5st")
    for whole in ("11st", "18st"):
        trainer = attach(make(PlainTrainer.add_on(StateManagerAddon), save_path=tmp_path), feed_of(service))
        trainer.run(whole, loader(), loader(11), resume="auto")
        close(trainer._journal.readers.feeds.values(), "done", 30.0)
    assert [step for step, _ in losses(service.records["run-1"])] == list(range(1, 19))
    assert losses(service.records["run-1"]) == list(enumerate(trainer.get_loss_history(), 1))


def test_points_of_after_a_checkpoint_are_not_there_twice(nursery, tmp_path):
    """The run is killed with the checkpoint of step 5 and the points of steps 6 and 7, which are done again."""
    done = nursery.run("-m", "tests.logs.killed_run", tmp_path / "run", 9, "1%")
    assert done.returncode == -signal.SIGKILL
    file = tmp_path / "run" / "metrics.csv"
    assert [int(line["step"]) for line in csv.DictReader(file.read_text().splitlines())][-1] > 5
    train(tmp_path / "run", log_every="1%")
    steps = [int(line["step"]) for line in csv.DictReader(file.read_text().splitlines())]
    assert steps == list(range(1, 19))
    assert [record.step for record in records_of(tmp_path / "run")] == steps


# ---------------------------------------------------------------------- a slow logger


@pytest.fixture
def hasty(monkeypatch):
    """Who is behind for a moment is slow."""
    for name in ("_AHEAD", "_AT_END", "_CREDIT", "_LONG"):
        monkeypatch.setattr(pacing, name, 0.2)


@pytest.mark.parametrize("kind", [Burning, Sleeping])
def test_a_slow_logger_gets_fewer_points_whose_mean_is_the_epoch_s(tmp_path, hasty, kind):
    service = Service()
    trainer = trained(tmp_path, feed_of(service, kind), samples=8 * 120 - 3)
    records = service.records["run-1"]
    assert len(records) < 200
    history = trainer.get_loss_history()
    sizes = ([8] * 119 + [5]) * 2
    ends = [step for step, _ in losses(records)]
    assert {120, 240} <= set(ends)
    for begin, (last, mean) in zip([0, *ends], losses(records), strict=False):
        assert mean == pytest.approx(np.average(history[begin:last], weights=sizes[begin:last]), rel=1e-12)
    for last, name in ((120, 1), (240, 2)):
        spans = [(b, e, v) for b, (e, v) in zip([0, *ends], losses(records), strict=False) if last - 120 < e <= last]
        whole = sum(value * sum(sizes[begin:end]) for begin, end, value in spans) / sum(sizes[last - 120 : last])
        assert whole == pytest.approx(trainer.history[name - 1]["train_loss"], rel=1e-12)


def test_a_slow_logger_is_told_once(tmp_path, hasty, capfd):
    class Slowly(PlainTrainer):
        def train_step(self, batch):
            time.sleep(0.005)
            return super().train_step(batch)

        test_step = PlainTrainer.train_step

    service = Service()
    trainer = attach(make(Slowly.add_on(StateManagerAddon), save_path=tmp_path), feed_of(service, Sleeping))
    trainer.run(3, loader(8 * 100))
    close(trainer._journal.readers.feeds.values(), "done", 30.0)
    said = capfd.readouterr().err
    assert said.count("so it gets means of several steps where need be; history.jsonl has each step") == 1, said
    assert len(service.records["run-1"]) < 290


def test_what_a_slow_logger_has_not_got_is_delivered_later(tmp_path):
    """Each step in the file, after those that it has."""
    trained(tmp_path, feed_of(Service()))
    cursor = Cursor.load(tmp_path, "service")
    cursor.step, cursor.status = 3, "open"
    cursor.save(tmp_path)
    service = Service()
    sync(tmp_path, make=lambda cursor: ServiceLogger(service))
    assert [step for step, _ in losses(service.records["run-1"])] == list(range(4, 13))


def test_loggers_share_what_they_may_take(tmp_path):
    for count, kinds in enumerate([(ServiceLogger,), (ServiceLogger, SecondLogger)], 1):
        feeds = [feed_of(Service(), kind) for kind in kinds]
        trained(tmp_path / str(count), *feeds, log_every="2%")
        assert [feed._delivery._share for feed in feeds] == pytest.approx([0.016 / count] * count)


# ---------------------------------------------------------------------- means of several steps


def told(tail, stride):
    tail.stride = stride
    return losses([*tail.read(), *tail.rest()])


def test_a_mean_is_weighted_by_the_items_of_its_steps(tmp_path):
    line = with_items(
        1, [1, 3, 4, 0, 0, 2], loss=[4.0, 8.0, 2.0, 1.0, 3.0, "nan"], third=[None, 2.0, None, 1.0, 1.0, 0.0]
    )
    folder = write(tmp_path, [attempt(), line, point(6), row(0, 6), end(step=6)])
    assert told(Tail(folder / "history.jsonl"), 2) == [
        (2, 7.0),
        (4, 2.0),
        (6, pytest.approx(float("nan"), nan_ok=True)),
    ]
    tail = Tail(folder / "history.jsonl")
    tail.stride = 2
    assert [r.values.get("train/third") for r in [*tail.read(), *tail.rest()]] == [2.0, 1.0, 0.0]


@pytest.mark.parametrize("stride", [1, 2, 3, 7, 1000])
def test_however_steps_are_put_together_nothing_of_them_is_lost(tmp_path, stride):
    """Numbers that are exact, over lines of any length, in two epochs."""
    draw = random.Random(stride)
    values = [float(draw.randrange(1 << 20)) for _ in range(120)]
    items = [1 << draw.randrange(3) for _ in values]
    lines, place = [attempt()], 0
    for epoch in (1, 2):
        while place < 60 * epoch:
            stop = min(60 * epoch, place + draw.randrange(1, 9))
            lines += [with_items(place + 1, items[place:stop], epoch, loss=values[place:stop]), point(stop, epoch)]
            place = stop
        lines.append(row(epoch - 1, place))
    found = told(Tail(write(tmp_path, [*lines, end(step=120)]) / "history.jsonl"), stride)
    ends = [step for step, _ in found]
    assert ends == sorted(set(ends))
    assert {60, 120} <= set(ends)
    for begin, (last, mean) in zip([0, *ends], found, strict=False):
        assert mean == np.average(values[begin:last], weights=items[begin:last])
    assert len(found) == 2 * -(-60 // stride)


def test_a_mean_ends_after_ten_seconds(tmp_path):
    lines = [attempt(time=1000.0)]
    for number in range(1, 8):
        at = 1000.0 + 4 * number
        lines += [with_items(number, 8, time=at, loss=[float(number)]), point(number, time=at)]
    found = told(Tail(write(tmp_path, [*lines, end(step=7)]) / "history.jsonl"), 1000)
    assert found == [(3, 2.0), (6, 5.0), (7, 7.0)]


def test_a_long_run_has_fewer_points(tmp_path):
    lines = [attempt()]
    for first in range(1, 10 * LENGTH, 1000):
        lines += [with_items(first, 8, loss=[1.0] * 1000), point(first + 999)]
    found = told(Tail(write(tmp_path, [*lines, end(step=10 * LENGTH)]) / "history.jsonl"), 1)
    assert 3 * LENGTH < len(found) < 4 * LENGTH  # about 1 + 1 + 1/2 + 1/3 + ... of them
    assert {value for _, value in found} == {1.0}
    assert [step for step, _ in found[:LENGTH]] == list(range(1, LENGTH + 1))


def test_what_was_told_is_a_mean_s_end(tmp_path):
    line = with_items(1, 8, loss=[float(number) for number in range(1, 9)])
    tail = Tail(write(tmp_path, [attempt(), line, point(8), end(step=8)]) / "history.jsonl", after=3)
    assert told(tail, 2) == [(3, 2.0), (5, 4.5), (7, 6.5), (8, 8.0)]


def test_a_tail_goes_on_where_its_reader_has_left_it(tmp_path):
    folder = write(tmp_path, [attempt(), with_items(1, 8, loss=[1.0, 2.0, 3.0, 4.0]), point(4)])
    tail = Tail(folder / "history.jsonl")
    reading = tail.read()
    assert next(reading).step == 1
    write_more(folder, with_items(5, 8, loss=[5.0, 6.0]), point(6), end(step=6))
    tail.stride = 2
    assert losses([*reading, *tail.read(), *tail.rest()]) == [(2, 2.0), (4, 3.5), (6, 5.5)]


@pytest.mark.parametrize(
    "damage",
    [
        {"items": "many"},
        {"items": [1, 2]},
        {"items": [-1, 1, 1]},
        {"items": None},
        {"first": -3},
        {"values": {"loss": 3}},
        {"values": {"loss": [1.0, 2.0, 3.0], "acc": [1.0]}},
        {"values": {}},
    ],
    ids=str,
)
def test_of_lines_that_are_not_sound_the_point_tells_the_mean(tmp_path, damage):
    line = with_items(1, 8, loss=[1.0, 2.0, 3.0]) | damage
    assert told(Tail(write(tmp_path, [attempt(), line, point(3), end(step=3)]) / "history.jsonl"), 1) == [(3, 1 / 3)]
