"""transformers: its `Trainer` on a plain module, nothing written to disk, its bar on."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from ..task import Row, Task


class StampedTrainer(Trainer):
    """The user's part: the loss, and a loader of ready batches."""

    def __init__(self, task: Task, args: TrainingArguments) -> None:
        # Its batches are dictionaries.
        named_batches = [{"x": x, "y": y} for x, y in task.batches]
        self.loader: DataLoader[Any] = DataLoader(named_batches, batch_size=None)  # type: ignore[arg-type]
        super().__init__(
            model=task.model,
            args=args,
            train_dataset=self.loader.dataset,
            optimizers=(task.optimizer(), None),
        )
        self.task = task

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the ready batches, prepared as its own loader would be."""
        return cast("DataLoader[Any]", self.accelerator.prepare(self.loader))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of one batch."""
        self.task.stamp()
        return cross_entropy(model(inputs["x"]), inputs["y"])


def train(task: Task) -> None:
    """Train for one epoch with a constant learning rate and no clipping, as the other rows do."""
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        StampedTrainer(task, arguments).train()


ROWS = (Row("transformers", train),)
