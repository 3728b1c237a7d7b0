"""pytorch-accelerated: its `Trainer` with the default callbacks, a bar among them. It clips values, not their norm."""

from __future__ import annotations

from typing import Any

from pytorch_accelerated import Trainer
from torch import nn

from ..task import Batch, Row, Task


class StampedTrainer(Trainer):
    """The default step, noting when it begins."""

    def __init__(self, task: Task) -> None:
        super().__init__(task.model, loss_func=nn.CrossEntropyLoss(), optimizer=task.optimizer())
        self.task = task

    def calculate_train_batch_loss(self, batch: Batch) -> dict[str, Any]:
        """Return the loss, the output and the batch size."""
        self.task.stamp()
        return super().calculate_train_batch_loss(batch)

    def calculate_eval_batch_loss(self, batch: Batch) -> dict[str, Any]:
        """Return the loss, the output and the batch size."""
        self.task.stamp()
        return super().calculate_eval_batch_loss(batch)


def take_only(batches: list[Batch]) -> Batch:
    """Unwrap the single ready batch."""
    return batches[0]


def train(task: Task) -> None:
    """Train for one epoch."""
    # It insists on a batch sampler, so that a "batch" here is one ready batch.
    StampedTrainer(task).train(
        task.batches,
        num_epochs=1,
        per_device_batch_size=1,
        collate_fn=take_only,
        train_dataloader_kwargs={"shuffle": False, "num_workers": 0},
    )


def evaluate(task: Task) -> None:
    """Evaluate once."""
    StampedTrainer(task).evaluate(
        task.batches, per_device_batch_size=1, collate_fn=take_only, dataloader_kwargs={"num_workers": 0}
    )


ROWS = (Row("pytorch-accelerated", train),)
EVALUATION = (Row("pytorch-accelerated", evaluate),)
