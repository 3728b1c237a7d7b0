"""Values of the steps become lines once, whenever they are asked for."""

import pytest

from tests.helpers import PlainTrainer, loader, make
from zae_engine.trainer.step_lines import StepLines


class Lined(PlainTrainer):
    """Takes lines after some of its steps; a value is there at every third only."""

    after: tuple[int, ...] = ()
    _resumable = True

    def run(self, *args, **options):
        self.lines, self.taken = StepLines(self, True), []
        history = super().run(*args, **options)
        self._take(False)
        return history

    def _take(self, opened):
        self.taken += self.lines.take(self, opened)
        self.lines.written()

    def _at_rest(self):
        opened = self._open is not None
        if not opened or self.progress_checker.get_step() - 1 in self.after:
            self._take(opened)

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
    steps = [line for line in taken if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 19))
    assert [line["epoch"] for line in steps] == [1] * 6 + [2] * 6 + [3] * 6
    assert [line["loss"] for line in steps] == trainer.get_loss_history()
    assert {line["step"]: line["third"] for line in steps if "third" in line} == {n: float(n) for n in range(3, 19, 3)}


@pytest.mark.parametrize("after", [(), (3, 4, 12), tuple(range(1, 19))])
def test_the_last_line_of_a_row_is_the_row(after):
    trainer, taken = lines(after, valid_every="4st")
    rows = {line["number"]: line for line in taken if line["kind"] == "row"}
    assert [rows[n] for n in sorted(rows)] == [
        {"kind": "row", "number": n, **row} for n, row in enumerate(trainer.history)
    ]


def test_lines_that_were_not_handed_over_come_again():
    trainer = make(Lined)
    trainer.run(1, loader())
    again = StepLines(trainer, True)
    assert len(again.take(trainer, False)) == len(again.take(trainer, False)) == 1
    again.written()
    assert again.take(trainer, False) == []
