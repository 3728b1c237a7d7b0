"""A trainer's memory is free when nobody holds it any more, without the garbage collector."""

import gc
import weakref

import pytest

from tests.helpers import PlainTrainer, loader, make
from zae_engine.trainer.addons import StateManagerAddon


class Failing(PlainTrainer):
    def train_step(self, batch):
        raise ArithmeticError("on purpose")


def ran(folder):
    trainer = make()
    trainer.run(1, loader(), loader())
    return trainer


def failed(folder):
    trainer = make(Failing)
    with pytest.raises(ArithmeticError):
        trainer.run(1, loader())
    return trainer


def refused(folder):
    trainer = make()
    with pytest.raises(ValueError, match="can be walked once"):
        trainer.run(2, iter([]))
    return trainer


def walked(folder):
    trainer = make()
    trainer.run_epoch(loader())
    trainer.run_batch(next(iter(loader())))
    return trainer


def resumed(folder):
    kind = PlainTrainer.add_on(StateManagerAddon)
    make(kind, save_path=folder).run(2, loader(), max_steps=8)
    trainer = make(kind, save_path=folder)
    trainer.load_state("last")
    trainer.run(1, loader())
    trainer.save_state()
    return trainer


@pytest.mark.parametrize("use", [make, ran, failed, refused, walked, resumed], ids=lambda use: use.__name__)
def test_a_trainer_and_its_accelerator_are_gone_when_nobody_holds_them(tmp_path, use):
    gc.collect()
    gc.disable()
    try:
        trainer = use(tmp_path) if use is not make else make()
        held = [weakref.ref(trainer), weakref.ref(trainer.accelerator), weakref.ref(trainer._recorder)]
        del trainer
        assert [each() for each in held] == [None, None, None]
    finally:
        gc.enable()
