"""Composer with ``device_train_microbatch_size``: it gets whole batches and cuts them itself."""

from __future__ import annotations

from ..digits import DigitsTask
from .composer_rows import make_trainer


def train(task: DigitsTask) -> None:
    """Train on micro-batches that Composer cuts."""
    make_trainer(
        task,
        train_dataloader=task.whole_loader(),
        optimizers=task.optimizer(),
        max_duration=f"{task.epochs}ep",
        device_train_microbatch_size=task.micro_size,
    ).fit()
