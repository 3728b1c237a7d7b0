"""What the lines of a run show, and what its time is put down to."""

import re
import time
from types import MappingProxyType

import pytest
import torch

from tests.helpers import MLPTrainer, PlainTrainer, loader, make
from tests.logs.services import Service, ServiceLogger, attach, end_all, feed_of
from zae_engine.trainer.addons import CSVLoggerAddon
from zae_engine.trainer.console.values import epoch_line


class Many(PlainTrainer):
    def train_step(self, batch):
        loss = super().train_step(batch)["loss"]
        return {"loss": loss, **{f"v{i}": loss * i for i in range(5)}}

    test_step = train_step


def shown(capsys, kind=MLPTrainer, valid=None, **options):
    run = {"valid_every": options.pop("valid_every", "1ep")}
    make(kind, log_bar=True, **options).run(2, loader(48), valid or loader(20), **run)
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(("Epoch", "  "))]


def test_a_validation_at_the_last_step_is_shown_once(capsys):
    lines = shown(capsys, valid_every="3st")
    validated = [line for line in lines if "test_loss" in line]
    assert [line.partition(" |")[0] for line in validated] == [
        f"Epoch {1 + (s > 6)}/2, step {s}" for s in (3, 6, 9, 12)
    ]
    ends = [line for line in lines if re.match(r"Epoch ./2 \|", line)]
    assert [re.findall(r"t\w+_\w+", line) for line in ends] == [["train_acc"]] * 2  # which only an epoch's end has


def test_many_values_get_a_line_for_each_set(capsys):
    lines = shown(capsys, Many, {"clean": loader(20), "noisy": loader(20)})
    assert len(lines) == 2 * 5
    assert re.match(r"Epoch 1/2 \| lr 1\.00e-01  .* samples/s", lines[0])
    assert [line.partition(" | ")[0].strip() for line in lines[1:5]] == ["train", "test", "test clean", "test noisy"]
    assert all(re.findall(r"(\w+) [\d.e-]+", line.partition(" | ")[2]) == ["loss", "v0", "v1", "v2", "v3", "v4"]
               for line in lines[1:5])  # fmt: skip
    assert len({line.index("|") for line in lines[1:5]}) == 1


def test_a_set_of_very_many_values_goes_on_in_a_further_line():
    row = {"epoch": 1, "step": 3, "lr": 0.1, **{f"train_v{i}": i for i in range(23)}, "seconds": 1.0}
    lines = epoch_line("Epoch 1/1", row, 10.0).splitlines()
    assert [line.count("v") for line in lines[1:]] == [10, 10, 3]
    assert lines[2].startswith("        | v10 10")


@pytest.mark.parametrize(
    ("show", "names"),
    [
        (["loss"], ["train_loss", "test_loss"]),
        ("test_v3", ["test_v3"]),
        (["train_loss", "v1"], ["train_loss", "train_v1", "test_v1"]),
    ],
)
def test_show_names_what_is_shown(capsys, show, names):
    lines = shown(capsys, Many, show=show)
    assert [re.findall(r"(t\w+_\w+) ", line) for line in lines] == [names] * 2


def test_show_reaches_the_bar_and_may_be_assigned():
    trainer = make(Many, show=["v1", "train_v2", "test_v3"])
    trainer.run(1, loader())
    assert list(trainer.print_log(1, 6)) == ["Batch", "LR", "v1", "v2"]
    trainer.show = "loss"
    assert list(trainer.print_log(1, 6)) == ["Batch", "LR", "loss"]


def test_a_name_that_nothing_has_is_told_once():
    with pytest.warns(
        UserWarning, match=r"show= names 'los', but no value has that name; did you mean 'loss'\?"
    ) as told:
        make(show=["los", "test_loss"]).run(3, loader())
    assert len(told) == 1
    for wrong in (3, ["loss", 3], {"loss"}):
        with pytest.raises(TypeError, match=r"show=.* is not accepted; write the names of values"):
            make(show=wrong)


# ---------------------------------------------------------------------- metrics that are none


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            torch.tensor(0.5),
            "metric_on_epoch_end returned a Tensor, which is left out; return a dict of numbers by name",
        ),
        (torch.zeros(3), "returned a Tensor, which is left out"),
        ([], "returned a list, which is left out"),
        (0.0, "returned a float, which is left out"),
        (False, "returned a bool"),
        ("", "returned a str"),
        (
            {"a": torch.zeros(2)},
            "returned 'a' of type Tensor, which is left out; return numbers, one under each",
        ),
    ],
)
def test_metrics_that_are_no_dict_of_numbers_are_told(value, sentence):
    class Odd(PlainTrainer):
        def metric_on_epoch_end(self):
            return value

    with pytest.warns(UserWarning, match=sentence) as told:
        make(Odd).run(2, loader(), loader(20))
    assert len(told) == 1


def test_nothing_and_any_mapping_are_accepted():
    class Silent(PlainTrainer):
        def metric_on_epoch_end(self):
            return None if self.mode == "train" else MappingProxyType({"a": 1.0})

    assert make(Silent).run(1, loader(), loader(20)).column("test_a") == [1.0]


def test_a_metric_that_gives_no_number_is_told_as_such():
    class Matrix:
        def update(self, output, target): ...

        def compute(self):
            return torch.zeros(2, 2)

        def reset(self): ...

    class Plain(MLPTrainer):
        metric_on_epoch_end = PlainTrainer.metric_on_epoch_end

    with pytest.warns(UserWarning, match="metrics= gave 'matrix' of type Tensor, which is left out"):
        make(Plain, metrics={"matrix": Matrix()}).run(1, loader())


# ---------------------------------------------------------------------- what the time went to


def test_waiting_for_a_client_is_no_evaluation(tmp_path):
    class Slow(ServiceLogger):
        def start(self, info):
            time.sleep(1.0)
            return super().start(info)

    class Asking(PlainTrainer):
        def metric_on_epoch_end(self):
            if self.mode == "test":
                assert self.loggers["service"] is not None
            return {}

    trainer = attach(make(Asking.add_on(CSVLoggerAddon), save_path=tmp_path), feed_of(Service(), Slow))
    trainer.run(1, loader(), loader(20))
    spent = trainer._recorder.usage.now()
    assert spent["logging"] > 0.8
    assert spent["evaluation"] < 0.5
    assert sum(spent.values()) <= 2 * spent["all"]
    trainer.close_loggers()
    end_all()
