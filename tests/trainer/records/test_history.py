"""From the values of the steps to weighted means, rows, files and plots."""

import copy
import csv
import math
import pickle
import random
import time
import weakref

import numpy as np
import pytest
import torch

from tests.trainer.records.far import Far
from zae_engine.trainer.records.history import EpochLog, History, pooled


class Listener:
    """Who is told about values that are not finite."""

    def __init__(self):
        self.heard = []

    def note(self, key, step, value):
        self.heard.append((key, step, str(value)))


def filled(*batches, noticed=None):
    """A log with (values, weight) batches, steps from 1."""
    log = EpochLog(noticed)
    for step, (values, weight) in enumerate(batches, start=1):
        log.add(values, weight, step)
    return log


# ---------------------------------------------------------------------- EpochLog: means


def test_means_over_ragged_batches_are_exact():
    rng = random.Random(0)
    values = [np.float32(rng.uniform(-9, 9)) for _ in range(997)]
    weights = [rng.randint(1, 64) for _ in values]
    log = filled(*(({"loss": torch.tensor(v)}, w) for v, w in zip(values, weights, strict=True)))
    exact = sum(float(v) * w for v, w in zip(values, weights, strict=True)) / sum(weights)
    assert log.means() == {"loss": pytest.approx(exact, rel=1e-13)}


def test_a_large_epoch_is_summed_in_float64():
    log = filled(*(({"loss": torch.tensor(1.0)}, 1) for _ in range(3)), ({"loss": torch.tensor(2.0**25)}, 1))
    assert log.means()["loss"] == (3 + 2**25) / 4  # float32 would lose the 3


def test_means_do_not_depend_on_when_they_are_read():
    batches = [({"loss": torch.rand(()), "acc": n / 7}, n + 1) for n in range(20)]
    once, often = EpochLog(), EpochLog()
    for step, (values, weight) in enumerate(batches):
        once.add(values, weight, step)
        often.add(values, weight, step)
        if step % 3 == 0:
            often.drain()
            assert len(often["acc"]) == step + 1
    assert once.means() == often.means()
    assert once.losses.values == often.losses.values


@pytest.mark.parametrize(
    "value",
    [
        *(2, 2.0, True, np.float32(2), np.float64(2), np.float16(2), np.int64(2), np.bool_(True)),
        *(torch.tensor(2), torch.tensor(2.0), torch.tensor(True), torch.tensor(2.0, dtype=torch.bfloat16)),
    ],
    ids=lambda v: f"{type(v).__name__}-{getattr(v, 'dtype', '')}",
)
def test_every_kind_of_number_is_averaged(value):
    log = filled(({"metric": value}, 1), ({"metric": value}, 2))
    assert log.means() == {"metric": float(value)}


def test_numbers_of_several_kinds_are_averaged_together():
    values = [1, torch.tensor(2.0), np.float32(3), torch.tensor(4), torch.tensor(5.0, dtype=torch.float64), 6.5]
    log = filled(*(({"m": v}, 1) for v in values))
    assert log.means()["m"] == pytest.approx(21.5 / 6, rel=1e-13)


def test_a_loss_of_one_element_is_averaged():
    log = filled(({"loss": torch.tensor([1.0])}, 1), ({"loss": torch.tensor([4.0])}, 2))
    assert log.means() == {"loss": 3.0}
    assert log.losses.values.tolist() == [1.0, 4.0]


def test_other_values_are_kept_and_not_averaged():
    out, name = torch.ones(2, 3), "image.png"
    log = filled(({"loss": 1.0, "output": out, "name": name, "complex": torch.tensor(1j), "num_items": 4}, 4))
    assert log.means() == {"loss": 1.0}
    assert log["output"][0] is out
    assert log["name"] == [name]
    assert log["num_items"] == [4]


def test_a_value_that_is_a_number_only_at_times_is_averaged_where_it_is_one():
    log = filled(({"m": 1.0}, 1), ({"m": None}, 1), ({"m": torch.ones(3)}, 1), ({"m": 2.0}, 3))
    assert log.means()["m"] == 7 / 4
    assert log["m"][:2] == [1.0, None]


def test_weights_may_be_tensors():
    log = filled(({"loss": 1.0}, torch.tensor(1)), ({"loss": torch.tensor(5.0)}, torch.tensor([3])), ({"loss": 2.0}, 4))
    assert log.means() == {"loss": 3.0}


def test_a_key_that_comes_late_is_weighted_by_its_own_batches():
    log = filled(({"loss": 1.0}, 10), ({"loss": 1.0, "late": 3.0}, 2), ({"late": 6.0}, 4))
    assert log.means() == {"loss": 1.0, "late": 5.0}


def test_weights_that_sum_to_nothing_give_no_number():
    assert math.isnan(filled(({"loss": 1.0}, 0)).means()["loss"])


# ---------------------------------------------------------------------- EpochLog: a mapping


def test_a_missing_key_is_an_empty_list():
    log = EpochLog()
    assert log["nothing"] == []
    log["nothing"].append(1)
    assert log["nothing"] == [1]


def test_get_does_not_make_a_key():
    log = filled(({"loss": 1.0}, 1))
    assert log.get("loss") == [1.0]
    assert log.get("nothing") is None
    assert log.get("nothing", 7) == 7
    assert "nothing" not in log


def test_a_log_is_walked_like_a_dict():
    log = filled(({"loss": 1.0, "out": "a"}, 1), ({"loss": 2.0, "out": "b"}, 1))
    assert list(log) == ["loss", "out"]
    assert len(log) == 2
    assert dict(log.items()) == {"loss": [1.0, 2.0], "out": ["a", "b"]}
    assert list(log.values()) == [[1.0, 2.0], ["a", "b"]]


def test_values_come_over_when_they_are_read():
    log = filled(({"loss": torch.tensor(1.0), "out": torch.ones(1, 2)}, 1), ({"loss": 2.0, "out": torch.ones(3, 2)}, 3))
    assert torch.cat(log["out"]).shape == (4, 2)
    log.add({"out": torch.zeros(2, 2)}, 2, 3)
    assert torch.cat(log["out"]).shape == (6, 2)


def test_clear_forgets_values_but_not_losses():
    log = filled(({"loss": 1.0, "acc": 0.5}, 1))
    log.means()
    log.clear()
    assert (dict(log), log.means()) == ({}, {})
    log.add({"loss": 3.0}, 1, 2)
    assert log.means() == {"loss": 3.0}
    assert log.losses.values.tolist() == [1.0, 3.0]


def test_losses_that_nobody_read_survive_clear():
    log = filled(({"loss": 1.0}, 1), ({"loss": 2.0}, 1))
    log.clear()
    log.drain()
    assert log.losses.values.tolist() == [1.0, 2.0]
    assert log.means() == {}


# ---------------------------------------------------------------------- EpochLog: what is not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_value_that_is_not_finite_is_reported_once(bad):
    listener = Listener()
    batches = [({"loss": torch.tensor(v), "acc": 1.0}, 2) for v in (1.0, bad, 2.0, bad)]
    log = filled(*batches, noticed=listener.note)
    assert not math.isfinite(log.means()["loss"])
    log.add({"loss": bad}, 1, 5)
    log.drain()
    assert listener.heard == [("loss", 2, str(bad))]
    assert log.means()["acc"] == 1.0


def test_each_key_is_reported_for_itself():
    listener = Listener()
    batches = [({"loss": 1.0, "a": math.nan}, 1), ({"loss": math.inf, "a": math.nan}, 1)]
    filled(*batches, noticed=listener.note).drain()
    assert sorted(listener.heard) == [("a", 1, "nan"), ("loss", 2, "inf")]


def test_a_new_epoch_reports_anew():
    listener = Listener()
    log = filled(({"loss": math.nan}, 1), noticed=listener.note)
    log.means()
    log.clear()
    log.add({"loss": math.nan}, 1, 9)
    log.means()
    assert [step for _, step, _ in listener.heard] == [1, 9]


def test_a_log_that_watches_reports_without_being_asked():
    watching, waiting = Listener(), Listener()
    logs = EpochLog(watching.note, watch=True), EpochLog(waiting.note)
    for log in logs:
        log.add({"loss": Far(torch.tensor(math.nan))}, 1, 1)
        assert not watching.heard + waiting.heard
    time.sleep(1.05)
    for log in logs:
        log.add({"loss": 1.0}, 1, 2)
    assert watching.heard == [("loss", 1, "nan")]
    assert waiting.heard == []
    assert math.isnan(logs[1].means()["loss"])
    assert waiting.heard == [("loss", 1, "nan")]
    assert len(logs[1]["loss"]) == 2


def test_a_log_does_not_keep_its_listener():
    listener = Listener()
    kept = weakref.ref(listener)
    log = filled(({"loss": math.nan}, 1), noticed=listener.note)
    del listener
    assert kept() is None
    assert math.isnan(log.means()["loss"])


def test_a_log_is_copied_and_pickled_without_its_listener():
    listener = Listener()
    log = filled(({"loss": 1.0}, 1), ({"loss": 2.0}, 1), noticed=listener.note)
    for twin in (copy.deepcopy(log), pickle.loads(pickle.dumps(log))):
        twin.add({"loss": math.nan}, 1, 3)
        assert math.isnan(twin.means()["loss"])
        assert twin["loss"][:2] == [1.0, 2.0]
    assert listener.heard == []
    assert log.means() == {"loss": 1.5}


# ---------------------------------------------------------------------- pooled


def test_several_sets_are_pooled_as_if_they_were_one():
    one = filled(({"loss": 1.0, "acc": 0.0}, 3), ({"loss": 2.0, "acc": 1.0}, 1))
    other = filled(({"loss": 8.0}, 2))
    assert pooled([one.sums(), other.sums()]) == {"loss": (3 + 2 + 16) / 6, "acc": 1 / 4}
    assert pooled([]) == {}


# ---------------------------------------------------------------------- History


def row(epoch, step, **values):
    return {"epoch": epoch, "step": step, "lr": 0.1, **values, "seconds": 1.0 * step}


def history(*rows):
    made = History()
    for one in rows:
        made.put(one)
    return made


def test_rows_are_indexed_counted_and_walked():
    made = history(row(1, 5, train_loss=2.0), row(2, 10, train_loss=1.0))
    assert len(made) == 2
    assert made[-1]["train_loss"] == 1.0
    assert [r["epoch"] for r in made] == [1, 2]
    assert [r["step"] for r in made[:1]] == [5]


def test_a_row_of_the_same_epoch_and_step_is_completed():
    made = history(row(1, 5, train_loss=2.0))
    stands = made.put({"epoch": 1, "step": 5, "train_loss": 2.0, "test_loss": 3.0})
    assert len(made) == 1
    assert stands is made[0]
    assert made[0] == row(1, 5, train_loss=2.0) | {"test_loss": 3.0}
    made.put(row(1, 6, train_loss=1.0))
    made.put({"epoch": 1, "step": 6, "test_loss": 4.0})  # an evaluation by itself, not one of the training
    made.put({"epoch": 1, "step": 6, "test_loss": 5.0})
    assert made.column("test_loss") == [3.0, None, 4.0, 5.0]


def test_a_row_of_an_earlier_run_is_left_alone():
    made = history(row(1, 5, train_loss=2.0))
    made.put(row(1, 5, train_loss=1.0), complete=False)
    assert made.column("train_loss") == [2.0, 1.0]


def test_columns_are_told_with_the_seconds_last():
    made = history(row(1, 5, train_loss=2.0), row(2, 10, train_loss=1.0, test_loss=4.0))
    assert made.columns == ["epoch", "step", "lr", "train_loss", "test_loss", "seconds"]
    assert made.column("test_loss") == [None, 4.0]
    assert (History().columns, History().column("loss")) == ([], [])


def test_an_unknown_column_is_refused_by_naming_those_there_are():
    with pytest.raises(KeyError, match="no column 'loss'; there are epoch, step, lr, train_loss, seconds"):
        history(row(1, 5, train_loss=2.0)).column("loss")


def test_rows_are_written_as_csv(tmp_path):
    made = history(row(1, 5, train_loss=0.1), row(2, 10, train_loss=1 / 3, test_loss=4.0))
    made.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == made.columns
    assert [float(r["train_loss"]) for r in read] == [0.1, 1 / 3]
    assert [r["test_loss"] for r in read] == ["", "4.0"]
    assert [int(r["step"]) for r in read] == [5, 10]


def test_the_history_is_shown_as_a_table():
    shown = repr(history(row(1, 5, train_loss=2.0), row(2, 10, train_loss=1 / 3, test_loss=4.0))).splitlines()
    assert [line.split() for line in shown] == [
        ["epoch", "step", "lr", "train_loss", "test_loss", "seconds"],
        ["1", "5", "0.1", "2", "-", "5"],
        ["2", "10", "0.1", "0.333333", "4", "10"],
    ]
    assert len({len(line) for line in shown}) == 1
    assert repr(History()) == "History of no epoch"


# ---------------------------------------------------------------------- plots


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes]


def test_a_plot_is_written_and_returned(tmp_path):
    made = history(row(1, 5, train_loss=2.0, test_loss=3.0), row(2, 10, train_loss=1.0, test_loss=2.5))
    figure = made.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert titles(figure) == ["loss", "learning rate"]
    curves = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert curves == {"train": [2.0, 1.0], "test": [3.0, 2.5]}


def test_metrics_get_panels_of_their_own_after_the_loss():
    values = {"train_acc": 0.5, "train_loss": 2.0, "train_grad_norm": 1.0, "test_acc": 0.4}
    figure = history(row(1, 5, **values)).plot()
    assert titles(figure) == ["loss", "acc", "gradient norm", "learning rate"]
    assert len(figure.axes[1].lines) == 2


def test_there_are_as_many_panels_as_quantities():
    figure = history(row(1, 5, train_loss=2.0, train_acc=0.5)).plot()
    assert titles(figure) == ["loss", "acc", "learning rate"]


def test_rows_stand_at_their_steps():
    made = history(row(1, 2, test_loss=3.0), row(1, 8, test_loss=2.0, train_loss=1.0), row(2, 12, test_loss=1.0))
    made.put(row(2, 16, test_loss=0.5, train_loss=0.5))
    curves = {line.get_label(): line.get_xdata() for line in made.plot().axes[0].lines}
    assert curves["test"].tolist() == [2, 8, 12, 16]
    assert curves["train"].tolist() == [8, 16]


def test_a_plot_marks_where_the_run_went_on():
    made = history(row(1, 5, train_loss=2.0), row(2, 10, train_loss=1.0))
    made.resumes = [7]
    marks = [line.get_xdata() for line in made.plot().axes[0].lines if line.get_label() == "resumed"]
    assert marks == [[7, 7]]


def test_a_history_without_rows_can_be_drawn(tmp_path):
    assert titles(History().plot(tmp_path / "empty.svg")) == ["loss"]
    assert "<svg" in (tmp_path / "empty.svg").read_text()


def test_without_matplotlib_the_error_says_how_to_install_it(nursery, tmp_path):
    code = "from zae_engine.trainer import History\nHistory().plot('never.png')"
    done = nursery.run("-c", code, cwd=tmp_path, without=["matplotlib"])
    said = "ModuleNotFoundError: history.plot() needs matplotlib; install it: pip install 'zae-engine[plot]'"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, said)
    assert list(tmp_path.iterdir()) == []
