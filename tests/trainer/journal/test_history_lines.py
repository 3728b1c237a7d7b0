"""Values of the steps become lines once, whenever they are asked for."""

import pytest

from tests.helpers import PlainTrainer, loader, make
from zae_engine.logs.history_file import one_each
from zae_engine.trainer.journal.history_lines import StepLines, _columns
from zae_engine.trainer.loop.companion import Companion
from zae_engine.trainer.records.history import Series


class Taker(Companion):
    """Takes lines at rest, as a journal does."""

    def __init__(self, trainer):
        super().__init__()
        self.trainer, self.lines, self.taken = trainer, StepLines(trainer._recorder, True), []

    def take(self, opened):
        self.taken += self.lines.take(self.trainer.optimizer, self.trainer._place.processes, opened)

    def at_rest(self, session):
        if session.opened is None or session.step in self.trainer.after:
            self.take(session.opened is not None)


class Lined(PlainTrainer):
    """Takes lines after some of its steps; a value is there at every third only."""

    after: tuple[int, ...] = ()
    _keeps_lines = True

    def run(self, *args, **options):
        taker = Taker(self)
        self._companions.append(taker)
        history = super().run(*args, **options)
        taker.take(False)
        self.taken = taker.taken
        return history

    def train_step(self, batch):
        step = self.progress_checker.get_step()
        return super().train_step(batch) | ({"third": float(step)} if step % 3 == 0 else {})


def lines(after, **options):
    trainer = make(Lined)
    trainer.after = after
    trainer.run(3, loader(), loader(20), **options)
    return trainer, trainer.taken


@pytest.mark.parametrize("after", [(), (1,), (6,), (3, 4, 12), tuple(range(1, 19))])
def test_every_step_has_one_line(after):
    trainer, taken = lines(after)
    steps = [each for line in taken if line["kind"] == "steps" for each in one_each(line)]
    assert [line["step"] for line in steps] == list(range(1, 19))
    assert [line["epoch"] for line in steps] == [1] * 6 + [2] * 6 + [3] * 6
    assert [line["values"]["loss"] for line in steps] == trainer.get_loss_history()
    third = {line["step"]: line["values"]["third"] for line in steps if "third" in line["values"]}
    assert third == {n: float(n) for n in range(3, 19, 3)}


@pytest.mark.parametrize("after", [(), (3, 4, 12), tuple(range(1, 19))])
def test_the_last_line_of_a_row_is_the_row(after):
    trainer, taken = lines(after, valid_every="4st")
    rows = {line["number"]: line for line in taken if line["kind"] == "row"}
    assert [rows[n] for n in sorted(rows)] == [
        {"kind": "row", "number": n, **row} for n, row in enumerate(trainer.history)
    ]


def test_nothing_is_taken_twice():
    trainer = make(Lined)
    trainer.run(1, loader())
    again = Taker(trainer)
    again.take(False)
    assert [line["kind"] for line in again.taken] == ["row"]
    again.take(False)
    assert len(again.taken) == 1


@pytest.mark.parametrize("after", [(), (2,), (3, 4, 12)])
def test_a_point_has_the_mean_of_the_steps_since_the_last_one(after):
    trainer, taken = lines(after)
    losses, points = trainer.get_loss_history(), [line for line in taken if line["kind"] == "point"]
    ends = sorted({*after, 6, 12, 18})
    assert [point["step"] for point in points] == ends
    for begin, point in zip([0, *ends], points, strict=False):
        here = losses[begin : point["step"]]
        sizes = [8 if step % 6 else 5 for step in range(begin + 1, point["step"] + 1)]
        expected = sum(loss * size for loss, size in zip(here, sizes, strict=True)) / sum(sizes)
        assert point["train"]["loss"] == pytest.approx(expected)
        assert point["samples"] == sum(sizes)
        assert 0 <= point["seconds"]["data"] < point["seconds"]["all"]


def test_a_long_epoch_has_several_lines_of_steps():
    trainer = make(Lined)
    trainer.run(1, loader(1500, batch_size=1))
    columns = [line for line in trainer.taken if line["kind"] == "steps"]
    assert [(line["first"], len(line["values"]["loss"])) for line in columns] == [(1, 1000), (1001, 500)]


def test_a_line_has_no_more_numbers_than_a_reader_can_hold():
    series = {f"k{i}": Series(range(1500), [1.0] * 1500, [1.0] * 1500) for i in range(2000)}
    lines = _columns(series, 1, 1, 1500, 1)
    assert [line["first"] for line in lines] == list(range(1, 1501, 250))
    assert all(len(column) == 250 for line in lines for column in line["values"].values())


class Noting(list):
    """Rows that note how many of them are looked at."""

    looked_at = 0

    def __iter__(self):
        Noting.looked_at += len(self)
        return super().__iter__()

    def __getitem__(self, index):
        found = super().__getitem__(index)
        Noting.looked_at += len(found) if isinstance(index, slice) else 1
        return found


def test_of_rows_that_are_taken_only_the_last_one_is_looked_at():
    trainer = make(Lined)
    trainer.run(3, loader())
    taker, rows = Taker(trainer), trainer.history.rows
    taker.take(False)
    rows += [{**rows[-1], "epoch": epoch} for epoch in range(4, 400)]
    taker.take(False)
    trainer.history.rows = Noting(rows)
    trainer.history.rows.append({**rows[-1], "epoch": 400})
    rows[-1]["test_loss"] = 1.0
    taker.take(False)
    assert [line["number"] for line in taker.taken[-2:]] == [398, 399]
    assert len(taker.taken) == 399 + 2
    assert Noting.looked_at == 2
