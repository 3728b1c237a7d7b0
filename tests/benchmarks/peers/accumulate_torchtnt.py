"""TorchTNT: its `AutoUnit` with ``gradient_accumulation_steps``."""

from __future__ import annotations

from torchtnt.framework.train import train as train_unit

from ..digits import DigitsTask
from .torchtnt_rows import Unit


def train(task: DigitsTask) -> None:
    """Train on micro-batches that the unit accumulates."""
    unit = Unit(task, gradient_accumulation_steps=task.parts)
    train_unit(unit, task.loader(), max_epochs=task.epochs)
