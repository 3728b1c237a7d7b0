"""pytorch-accelerated with ``gradient_accumulation_steps``."""

from __future__ import annotations

from ..digits import DigitsTask
from .pytorch_accelerated_rows import StampedTrainer


def train(task: DigitsTask) -> None:
    """Train on micro-batches that pytorch-accelerated accumulates."""
    StampedTrainer(task).train(
        task.data,
        num_epochs=task.epochs,
        per_device_batch_size=task.micro_size,
        gradient_accumulation_steps=task.parts,
        train_dataloader_kwargs={"shuffle": False, "num_workers": 0},
    )
