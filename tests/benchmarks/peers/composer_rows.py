"""Composer: its `Trainer` without loggers and checkpoints, its bar on."""

from __future__ import annotations

from typing import Any

from composer import ComposerModel, Evaluator, Trainer
from composer.algorithms import GradientClipping
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, Metric

from ..task import BATCH_SIZE, MAX_NORM, Batch, Row, Task


class Model(ComposerModel):
    """The user's part: the forward, the loss, and the mean loss of an evaluation."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.module, self.task, self.mean = task.model, task, MeanMetric()

    def forward(self, batch: Batch) -> Tensor:
        """Return the output of one batch."""
        self.task.stamp()
        return self.module(batch[0])  # type: ignore[no-any-return]

    def loss(self, outputs: Tensor, batch: Batch, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of one batch."""
        return cross_entropy(outputs, batch[1])

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Return the metrics, of which training has none."""
        return {} if is_train else {"loss": self.mean}

    def update_metric(self, batch: Batch, outputs: Tensor, metric: Metric) -> None:
        """Add the loss of one batch."""
        metric.update(self.loss(outputs, batch))


def make_trainer(task: Any, **settings: Any) -> Trainer:
    """Return a trainer on the CPU."""
    return Trainer(model=Model(task), device="cpu", **settings)


def train(task: Task, **settings: Any) -> None:
    """Train for one epoch."""
    make_trainer(
        task,
        train_dataloader=task.loader(),
        optimizers=task.optimizer(),
        max_duration="1ep",
        device_train_microbatch_size=BATCH_SIZE,  # which a loader of ready batches does not tell
        **settings,
    ).fit()


def train_clipped(task: Task) -> None:
    """Train for one epoch, clipping the gradients' norm."""
    train(task, algorithms=[GradientClipping("norm", MAX_NORM)])


def evaluate(task: Task) -> None:
    """Evaluate once."""
    data = Evaluator(label="eval", dataloader=task.loader(), device_eval_microbatch_size=BATCH_SIZE)
    make_trainer(task, eval_dataloader=data).eval()


ROWS = (Row("composer", train),)
CLIPPED = (Row("composer+clip", train_clipped, against="pytorch+clip"),)
EVALUATION = (Row("composer", evaluate),)
