"""Lightning with ``accumulate_grad_batches``."""

from __future__ import annotations

from ..digits import DigitsTask
from .lightning_rows import Module, make_trainer


def train(task: DigitsTask) -> None:
    """Train on micro-batches that Lightning accumulates."""
    trainer = make_trainer(max_epochs=task.epochs, accumulate_grad_batches=task.parts)
    trainer.fit(Module(task), task.loader())
