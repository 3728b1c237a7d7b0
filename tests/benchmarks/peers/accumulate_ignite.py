"""PyTorch-Ignite: its supervised trainer with ``gradient_accumulation_steps``."""

from __future__ import annotations

from functools import partial
from typing import Any

from ignite.engine import create_supervised_trainer
from torch.nn.functional import cross_entropy

from ..digits import DigitsTask
from ..task import Batch


def prepare(task: DigitsTask, batch: Batch, *_: Any, **__: Any) -> Batch:
    """Hand out the micro-batch, noting when its step begins."""
    task.stamp()
    return batch


def train(task: DigitsTask) -> None:
    """Train on micro-batches that ignite accumulates."""
    trainer = create_supervised_trainer(
        task.model,
        task.optimizer(),
        cross_entropy,
        prepare_batch=partial(prepare, task),
        gradient_accumulation_steps=task.parts,
    )
    trainer.run(task.loader(), max_epochs=task.epochs)
