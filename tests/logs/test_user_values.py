"""`Trainer.log`: values of the user's own reach every logger once, at their step, from wherever they come."""

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import PlainTrainer, loader, make
from tests.logs.services import ReadBackLogger, Service, attach, end_all, feed_of
from zae_engine.logs.delivery import close
from zae_engine.logs.export import export
from zae_engine.logs.history_file import read_history
from zae_engine.logs.merging import picture_in, records_of
from zae_engine.trainer.addons import CSVLoggerAddon, StateManagerAddon
from zae_engine.trainer.compose import AddOnBase
from zae_engine.trainer.records.images import encoded
from zae_engine.trainer.records.user_values import OwnValues


@pytest.fixture(autouse=True)
def _ended():
    yield
    end_all()


class TakesAll(ReadBackLogger):
    takes = ("texts", "pictures")

    def last_part(self):
        kept = self.service.records[self.id]
        return kept[-1].part if kept else 0


class Telling(PlainTrainer):
    """Logs from every method that there is."""

    def train_step(self, batch):
        self.log({"in train_step": float(self.progress_checker.get_step())})
        return super().train_step(batch)

    def test_step(self, batch):
        self.log({"in test_step": float(len(batch[0]))})
        return super().test_step(batch)

    def optimize(self, window):
        super().optimize(window)
        self.log({"in optimize": torch.tensor(2.0)})

    def logging(self, step_dict):
        super().logging(step_dict)
        if self.mode == "train":
            self.log({"in logging": np.float32(3.0)})

    def run_batch(self, batch, **kwargs):
        super().run_batch(batch, **kwargs)
        if self.mode == "train":
            self.log({"after run_batch": float(self.progress_checker.get_step() - 1)})

    def run_epoch(self, loader, **kwargs):
        if self.mode == "train":
            self.log("before run_epoch", float(self.progress_checker.get_step() - 1))
        super().run_epoch(loader, **kwargs)

    def metric_on_epoch_end(self):
        self.log({f"at the end of {self.mode}": float(self.progress_checker.get_epoch())})
        return {}

    def check_better(self, cur_epoch, cur_loss):
        self.log({"in check_better": {"epoch": float(cur_epoch)}})
        return super().check_better(cur_epoch, cur_loss)


class TellingAddon(AddOnBase):
    def run_batch(self, batch, **kwargs):
        super().run_batch(batch, **kwargs)
        if self.mode == "train":
            self.log({"in an add-on": float(self.progress_checker.get_step() - 1)})


def trained(folder, service, *calls, kind=Telling, **options):
    trainer = attach(make(kind.add_on(StateManagerAddon), save_path=folder, **options), feed_of(service, TakesAll))
    for epochs in calls:
        trainer.run(epochs, loader(), loader(20))
    return trainer


def ended(trainer):
    close(trainer._journal.readers.feeds.values(), "done", 20.0)


def column(records, name):
    return [(record.step, record.values[name]) for record in records if name in record.values]


def every(steps):
    return [(step, float(step)) for step in steps]


# ---------------------------------------------------------------------- from anywhere, at its step


def test_values_come_from_every_method_at_their_step(tmp_path):
    service = Service()
    ended(trained(tmp_path, service, 2, kind=Telling.add_on(TellingAddon)))
    records = service.records["run-1"]
    for name in ("in train_step", "after run_batch", "in an add-on"):
        assert column(records, name) == every(range(1, 13)), name
    assert column(records, "before run_epoch") == every((0, 6))
    assert column(records, "in optimize") == [(step, 2.0) for step in range(1, 13)]
    assert column(records, "in logging") == [(step, 3.0) for step in range(1, 13)]
    for name in ("at the end of train", "at the end of test"):
        assert column(records, name) == [(6, 1.0), (12, 2.0)], name
    assert column(records, "in check_better/epoch") == [(6, 0.0), (12, 1.0)]
    assert column(records, "in test_step") == [(6, 20 / 3), (12, 20 / 3)]  # batches of 8, 8 and 4
    assert column(records, "epoch") == [(step, float(1 + (step > 6))) for step in range(1, 13)]
    assert records == records_of(tmp_path)


def test_values_between_runs_come_once_and_are_not_the_next_step_s(tmp_path):
    service = Service()
    trainer = trained(tmp_path, service, kind=PlainTrainer, log_every="1ep")
    trainer.log({"first": 0.0})
    for call in (1, 2):
        trainer.run(1, loader())
        trainer.log({"between": float(call)})
        trainer.log({"between": 10.0 * call})
    ended(trainer)
    places = [(r.step, r.part, r.values.get("between")) for r in service.records["run-1"]]
    assert places == [(0, 1, None), (6, 0, None), (6, 1, 1.0), (6, 2, 10.0), (12, 0, None), (12, 1, 2.0), (12, 2, 20.0)]
    assert service.records["run-1"][0].values == {"first": 0.0}


def test_an_evaluation_after_the_training_has_one_value(tmp_path):
    service = Service()
    trainer = trained(tmp_path, service, 1)
    trainer.toggle("test")
    trainer.run(1, loader(20))
    ended(trainer)
    assert column(service.records["run-1"], "in test_step") == [(6, 20 / 3), (6, 20 / 3)]


def test_micro_batches_are_averaged_and_elsewhere_the_last_one_holds(tmp_path):
    class Micro(PlainTrainer):
        def train_step(self, batch):
            self.log({"samples": float(len(batch[0]))})
            return super().train_step(batch)

        def metric_on_epoch_end(self):
            self.log({"last": 1.0, "samples twice": 1.0})
            self.log({"last": 2.0})
            return {}

    trainer = make(Micro.add_on(CSVLoggerAddon), save_path=tmp_path, gradient_accumulation_steps=2)
    trainer.run(1, loader(40))
    records = records_of(tmp_path)
    assert column(records, "samples") == [(step, 4.0) for step in range(1, 6)]
    assert column(records, "last") == [(5, 2.0)]


def test_training_and_evaluation_by_one_step_are_kept_apart(tmp_path):
    class Shared(PlainTrainer):
        def train_step(self, batch):
            self.log("seen", float(self.model.training))
            return PlainTrainer.train_step(self, batch)

        test_step = train_step

    make(Shared.add_on(CSVLoggerAddon), save_path=tmp_path).run(1, loader(), loader(20))
    assert column(records_of(tmp_path), "seen") == [(step, 1.0) for step in range(1, 7)]
    assert column(records_of(tmp_path), "own/test/seen") == [(6, 0.0)]


# ---------------------------------------------------------------------- exactly once


class Falls(Telling):
    falls_at = None

    def optimize(self, window):
        super().optimize(window)
        if self.progress_checker.get_step() == self.falls_at:
            raise RuntimeError("the machine is gone")


@pytest.mark.parametrize("falls_at", [3, 5, 7, 10])
def test_each_value_comes_once_after_a_crash_and_a_resume(tmp_path, falls_at):
    whole, service = Service(), Service()
    ended(trained(tmp_path / "whole", whole, 2, log_every="1st"))
    options = {"kind": Falls, "log_every": "1st", "save_every": "2st"}
    broken = trained(tmp_path / "run", service, **options)
    broken.falls_at = falls_at
    with pytest.raises(RuntimeError, match="the machine is gone"):
        broken.run(2, loader(), loader(20), resume="auto")
    ended(broken)
    again = trained(tmp_path / "run", service, **options)
    again.run(2, loader(), loader(20), resume="auto")
    ended(again)
    names = {name for record in whole.records["run-1"] for name in record.values if " " in name} - {
        "waiting for data",
        "before run_epoch",  # which a resumed run calls in mid-epoch
    }
    assert len(names) > 6
    for name in names:
        for records in (service.records["run-1"], records_of(tmp_path / "run")):
            assert column(records, name) == column(whole.records["run-1"], name), name


def test_a_value_of_after_the_run_is_not_sent_again_by_another_process(tmp_path):
    service = Service()
    trainer = trained(tmp_path, service, kind=PlainTrainer, log_every="1ep")
    trainer.run(1, loader(), resume="auto")
    trainer.log({"final": 1.0})
    ended(trainer)
    further = trained(tmp_path, service, kind=PlainTrainer, log_every="1ep")
    further.run(2, loader(), resume="auto")
    ended(further)
    assert column(service.records["run-1"], "final") == [(6, 1.0)]
    assert service.steps() == [6, 6, 12]


def test_what_an_inference_or_a_rehearsal_computes_is_no_value_of_the_run(tmp_path):
    class WithOutput(Telling):
        def test_step(self, batch):
            return super().test_step(batch) | {"output": batch[0]}

    trainer = make(WithOutput.add_on(CSVLoggerAddon), save_path=tmp_path)
    trainer.run(1, loader())
    before = len(read_history(tmp_path))
    trainer.inference(loader())
    assert trainer.verify(loader())
    assert len(read_history(tmp_path)) == before
    assert not trainer._recorder.own


# ---------------------------------------------------------------------- pictures and texts


def pictures():
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2, 3])
    return {
        "array": np.zeros((4, 6), np.uint8),
        "channels first": torch.rand(3, 5, 7),
        "channels last": np.random.default_rng(0).random((5, 7, 4)),
        "figure": figure,
        "axes": figure.axes[0],
        "pil": Image.new("RGB", (7, 5), "red"),
        "cmyk": Image.new("CMYK", (7, 5)),
    }


def test_pictures_and_texts_reach_a_logger_that_takes_them(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "mine.jpg")
    service = Service()
    trainer = trained(tmp_path / "run", service, 1, kind=PlainTrainer)
    trainer.log(
        pictures() | {"path": tmp_path / "mine.jpg", "text": "a = 1\nb = 2", "of a path": str(tmp_path / "mine.jpg")}
    )
    ended(trainer)
    record = service.records["run-1"][-1]
    assert record.texts == {"text": "a = 1\nb = 2"}
    sizes = {name: Image.open(io.BytesIO(path.read_bytes())).size for name, path in record.pictures.items()}
    of_arrays = {"array": (6, 4), "channels first": (7, 5), "channels last": (7, 5)}
    of_objects = {"figure": (640, 480), "axes": (640, 480), "pil": (7, 5), "cmyk": (7, 5)}
    assert sizes == of_arrays | of_objects | {"path": (3, 2), "of a path": (3, 2)}
    assert all(path.parent.parent == tmp_path / "run" / "pictures" for path in record.pictures.values())


def test_a_logger_without_a_place_for_them_says_so_once(tmp_path, capsys):
    trainer = make(PlainTrainer.add_on(CSVLoggerAddon), save_path=tmp_path)
    for _ in range(3):
        trainer.run(1, loader())
        trainer.log({"picture": np.zeros((2, 2)), "number": 1.0})
    trainer.close_loggers()
    trainer._journal.report()
    assert (
        capsys.readouterr().err.count("csv: it keeps no pictures; those that the run logs are in the run's folder") == 1
    )
    assert "number" in (tmp_path / "metrics.csv").read_text().splitlines()[0]


def test_pixels_are_as_they_were():
    def pixels(value):
        return np.asarray(Image.open(io.BytesIO(encoded(value)[1])))

    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (pixels(grey) == grey).all()
    assert (pixels(torch.from_numpy(grey)[None]) == grey).all()
    assert pixels(np.array([[0.0, 0.5, 1.0]])).tolist() == [[0, 128, 255]]
    assert pixels(torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.bfloat16)).tolist() == [[0, 128, 255]]
    assert pixels(np.array([[True, False]])).tolist() == [[255, 0]]
    assert pixels(np.array([[0, 1000]])).tolist() == [[0, 255]]
    assert pixels(np.array([[np.nan, 1.0]])).tolist() == [[0, 255]]
    colours = np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8)
    assert (pixels(colours) == colours).all()
    assert (pixels(torch.from_numpy(colours).permute(2, 0, 1)) == colours).all()


def test_names_of_pictures_stay_in_their_folder(tmp_path):
    trainer = make(PlainTrainer.add_on(CSVLoggerAddon), save_path=tmp_path / "run")
    trainer.run(1, loader())
    names = ("../../outside", "a/b", "a_b", "/etc/passwd", "그림")
    trainer.log({name: np.zeros((2, 2)) for name in names})
    record = records_of(tmp_path / "run")[-1]
    assert sorted(record.pictures) == sorted(names)
    assert len({path.resolve() for path in record.pictures.values()}) == len(names)
    assert all(tmp_path / "run" / "pictures" in path.resolve().parents for path in record.pictures.values())


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "pictures/../../secret.png",
        "/etc/secret.png",
        "pictures/a/../b.png",
        "pictures/a",
        "run.json",
        "pictures/link/x.png",
        "pictures/a/link.png",
        "pictures/a/b.txt",
        3,
        None,
        {},
    ],
)
def test_a_stranger_s_history_names_no_file_outside_of_its_pictures(tmp_path, name):
    (tmp_path / "secret.png").write_text("secret")
    (tmp_path / "run" / "pictures" / "a").mkdir(parents=True)
    os.symlink(tmp_path, tmp_path / "run" / "pictures" / "link")
    os.symlink(tmp_path / "secret.png", tmp_path / "run" / "pictures" / "a" / "link.png")
    assert picture_in(tmp_path / "run", name) is None
    line = {"kind": "logged", "step": 3, "epoch": 1, "time": 1.0, "values": {"x": 1.0}, "pictures": {"x": name}}
    (tmp_path / "run" / "history.jsonl").write_text(json.dumps(line) + "\n")
    assert [record.pictures for record in records_of(tmp_path / "run")] == [{}]


def test_a_stranger_s_values_are_passed_over(tmp_path):
    odd = [
        {"kind": "logged", "step": "3"},
        {"kind": "logged", "step": 1, "epoch": 10**400, "values": {"a": 10**400, "b": [1], "c": "nan", "d": True}},
        {"kind": "logged", "step": 2, "epoch": None, "values": [1], "texts": {"t": 3}, "pictures": 4},
    ]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in odd))
    records = records_of(tmp_path)
    assert [(record.step, sorted(record.values), record.texts) for record in records] == [
        (1, ["a", "c", "d"], {}),
        (2, [], {}),
    ]


# ---------------------------------------------------------------------- what is wrong ends nothing


class Metric:
    def update(self, *_): ...

    def compute(self): ...

    def reset(self): ...


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"lr": 1.0}, "the name 'lr' is one of the trainer's own, so the value is kept as 'own/lr'"),
        ({"train/loss": 1.0}, "kept as 'own/train/loss'"),
        ({"_step": 1.0}, "kept as 'own/_step'"),
        ({3: 1.0}, "got the name 3, which is left out; names are texts"),
        ({"x": object()}, "leaves 'x' out, a object; give numbers, texts, and pictures"),
        ({"x": None}, "leaves 'x' out, a NoneType"),
        ({"x": torch.zeros(5)}, r"leaves 'x' out: of shape \(5,\), it is neither one number nor a picture"),
        ({"x": torch.zeros(8, 3, 4, 4)}, r"of shape \(8, 3, 4, 4\)"),
        ({"x": torch.tensor(1j)}, "leaves 'x' out"),
        ({"x": 10**400}, "leaves 'x' out: int"),
        ({"x": Path("missing.png")}, "leaves 'x' out: .*No such file"),
        ({"x": Path("data.npy")}, "is no picture's file; those end with .gif"),
        ({"x": Metric()}, r"give metric objects to the trainer: metrics=\{'acc': metric\}"),
        (3.0, r"got a float, which is left out; write trainer.log\(\{'name': value\}\)"),
    ],
)
def test_what_cannot_be_kept_is_left_out_with_a_sentence(given, sentence):
    own = OwnValues(kept=True)
    with pytest.warns(UserWarning, match=sentence):
        own.take(own.named(given, None, {}), 1, 1, "", False)
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        own.take(own.named(given, None, {}), 2, 1, "", False)


def test_a_name_stays_of_one_kind():
    own = OwnValues(kept=True)
    own.take({"x": 1.0}, 1, 1, "", False)
    with pytest.warns(UserWarning, match="leaves 'x' out, a text: before, it was a number"):
        own.take({"x": "one"}, 2, 1, "", False)
    assert [line["step"] for line in own.lines(9)[0]] == [1]


def test_lightning_s_options_are_answered(tmp_path):
    trainer = make(PlainTrainer.add_on(CSVLoggerAddon), save_path=tmp_path)
    trainer.run(1, loader())
    with pytest.warns(UserWarning, match="prog_bar= is an option of Lightning's log"):
        trainer.log("mine", torch.tensor([4.0]), prog_bar=True)
    assert column(records_of(tmp_path), "mine") == [(6, 4.0)]
    with pytest.raises(TypeError, match=r"unexpected option 'stepp'; write log\(\{'name': value\}\)"):
        trainer.log("mine", 1.0, stepp=3)


def test_odd_texts_and_numbers_are_written(tmp_path):
    trainer = make(PlainTrainer.add_on(StateManagerAddon), save_path=tmp_path)
    trainer.run(1, loader())
    trainer.log({"half \ud800": "a\ud800b", "nan": float("nan"), "inf": torch.tensor(float("inf")), "bool": True})
    record = records_of(tmp_path)[-1]
    assert record.texts == {"half ?": "a?b"}
    assert record.values["inf"] == float("inf")
    assert np.isnan(record.values["nan"])


def test_without_a_folder_nothing_is_kept():
    trainer = make(Telling)
    trainer.run(2, loader(), loader(20))
    trainer.log({"x": 1.0, "picture": np.zeros((2, 2))})
    assert not trainer._recorder.own


# ---------------------------------------------------------------------- rows that loggers have missed


def test_validations_within_an_epoch_reach_the_loggers_at_their_steps(tmp_path):
    service = Service()
    trainer = trained(tmp_path, service, kind=PlainTrainer)
    trainer.run(2, loader(), loader(20), valid_every="4st")
    ended(trainer)
    rows = [(row["step"], row["test_loss"]) for row in trainer.history if "test_loss" in row]
    assert column(service.records["run-1"], "test/loss") == rows
    assert [step for step, _ in rows] == [4, 8, 12]


def test_an_evaluation_between_two_runs_takes_nothing_from_the_next_one(tmp_path):
    service = Service()
    trainer = trained(tmp_path, service, 1, kind=PlainTrainer)
    trainer.toggle("test")
    trainer.run(1, loader(20))
    trainer.toggle("train")
    trainer.run(1, loader(), loader(20))
    ended(trainer)
    assert [step for step, _ in column(service.records["run-1"], "test/loss")] == [6, 12]


def test_an_export_of_every_step_has_them_at_theirs(tmp_path):
    trainer = trained(tmp_path, Service(), 2, kind=Telling)
    trainer.log({"final": 5.0})
    records = records_of(tmp_path, every_step=True)
    assert column(records, "in train_step") == every(range(1, 13))
    assert [record.place for record in records] == sorted({record.place for record in records})
    export(tmp_path, "csv", {}, every_step=True)
    assert (tmp_path / "export" / "metrics.csv").read_text().count("\n") == 1 + len(records)
