"""The add-on that stops a run, and through it the seams."""

import pytest

from tests.helpers import MLPTrainer, PlainTrainer, assert_equal, loader, make, weights
from zae_engine.trainer.addons import EarlyStoppingAddon


class Scripted(PlainTrainer):
    script = (5.0, 4.0, 4.5, 4.1, 3.95, 6.0, 7.0, 8.0)

    def metric_on_epoch_end(self):
        return {"score": self.script[self.progress_checker.get_epoch() - 1]} if self.mode == "test" else {}


Stopping = Scripted.add_on(EarlyStoppingAddon)


def run(epochs=8, **options):
    trainer = make(Stopping, monitor="score", monitor_mode="min", **options)
    trainer.run(epochs, loader(), loader(20))
    return trainer


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 8)])
def test_it_stops_when_patience_is_over(patience, epochs):
    trainer = run(patience=patience)
    assert len(trainer.history) == epochs
    assert trainer.stop_reason == f"score has not got better in {patience} evaluation{'s' * (patience > 1)}"


def test_min_delta_asks_for_more():
    assert len(run(patience=3, min_delta=0.1).history) == 5


def test_the_best_weights_are_there_after_it():
    trainer = run(patience=2)
    assert trainer.weight_buffer["epoch"] == [1]


def test_it_changes_no_weights():
    trainer, plain = run(epochs=3, patience=9, dropout=0.5), make(Scripted, dropout=0.5)
    plain.run(3, loader(), loader(20))
    assert_equal(weights(trainer.model), weights(plain.model))


def test_its_state_goes_on_in_another_trainer():
    first = run(epochs=3, patience=2)
    second = make(Stopping, monitor="score", monitor_mode="min", patience=2)
    second.load_state_dict(first.state_dict())
    second.run(5, loader(), loader(20))
    assert second.history.column("epoch") == [4]


@pytest.mark.parametrize("option", [{"patience": 0}, {"patience": 1.5}, {"min_delta": -1}])
def test_bad_options_are_refused(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.* is not accepted"):
        make(Stopping, **option)


def test_a_class_statement_is_as_good_as_add_on():
    class Written(EarlyStoppingAddon, MLPTrainer):
        pass

    trainer = make(Written, patience=1, min_delta=10.0)
    trainer.run(9, loader(), loader(20))
    assert len(trainer.history) == 2
