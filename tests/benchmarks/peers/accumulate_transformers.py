"""transformers with ``gradient_accumulation_steps``, its own loader, nothing written to disk.

The loss is a mean, as `compute_loss` usually returns. A ``compute_loss_func`` that sums and divides by the
``num_items_in_batch`` it is handed leaves rounding only.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from ..digits import DigitsTask


class MeanLossTrainer(Trainer):
    """The user's part: the mean loss of a micro-batch, which the trainer scales."""

    task: DigitsTask

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of one micro-batch."""
        self.task.stamp()
        return cross_entropy(model(inputs["x"]), inputs["y"])


def train(task: DigitsTask) -> None:
    """Train on micro-batches that transformers accumulates, in the dataset's order."""
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=task.epochs,
            per_device_train_batch_size=task.micro_size,
            gradient_accumulation_steps=task.parts,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        # Its batches are dictionaries.
        named = [{"x": x, "y": y} for x, y in zip(*task.data.tensors, strict=True)]
        trainer = MeanLossTrainer(task.model, arguments, train_dataset=named, optimizers=(task.optimizer(), None))
        trainer.task = task
        trainer.train()
