"""transformers: its `Trainer` on a plain module, nothing written to disk, its bar on."""

from __future__ import annotations

from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from ..task import MAX_NORM, Row, Task


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
            eval_dataset=self.loader.dataset,
            optimizers=(task.optimizer(), None),
        )
        self.task = task

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the ready batches, prepared as its own loader would be."""
        return cast("DataLoader[Any]", self.accelerator.prepare(self.loader))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the ready batches, prepared as its own loader would be."""
        return cast("DataLoader[Any]", self.accelerator.prepare(self.loader))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one batch, with the model's output when it evaluates."""
        self.task.stamp()
        output = model(inputs["x"])
        loss = cross_entropy(output, inputs["y"])
        return (loss, {"output": output}) if return_outputs else loss


def run(task: Task, method: str, max_norm: float = 0.0) -> None:
    """Call a method of a trainer with a constant learning rate and no clipping by default, as the other rows do."""
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            lr_scheduler_type="constant",
            max_grad_norm=max_norm,
            label_names=["y"],
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        getattr(StampedTrainer(task, arguments), method)()


def train(task: Task, max_norm: float = 0.0) -> None:
    """Train for one epoch."""
    run(task, "train", max_norm)


def evaluate(task: Task) -> None:
    """Evaluate once."""
    run(task, "evaluate")


ROWS = (Row("transformers", train),)
CLIPPED = (Row("transformers+clip", partial(train, max_norm=MAX_NORM), against="pytorch+clip"),)
EVALUATION = (Row("transformers", evaluate),)
