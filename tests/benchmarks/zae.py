"""The rows of zae-engine itself, with its bar and its logs on."""

from __future__ import annotations

import tempfile
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR

from zae_engine.trainer import Trainer
from zae_engine.trainer.addons import EarlyStoppingAddon, StateManagerAddon

from .task import MAX_NORM, Batch, Row, Task

ALL = "zae-engine+clip+schedule+state+stopping"


class StampedTrainer(Trainer):
    """Classify, noting when each step begins."""

    def __init__(self, task: Task, **options: Any) -> None:
        super().__init__(task.model, device="cpu", **options)
        self.task = task

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        self.task.stamp()
        x, y = batch
        return {"loss": cross_entropy(self.model(x), y)}

    test_step = train_step


def train(task: Task) -> None:
    """Train for one epoch."""
    trainer = StampedTrainer(task, mode="train", optimizer=task.optimizer(), log_bar=True, seed=0)
    trainer.run(n_epoch=1, loader=task.loader())


def train_kept(task: Task) -> None:
    """Train for one epoch with a StateManagerAddon, which has nothing to save within it."""
    kind = StampedTrainer.add_on(StateManagerAddon)
    with tempfile.TemporaryDirectory() as folder:
        options = {"mode": "train", "log_bar": True, "seed": 0, "save_path": folder}
        kind(task, optimizer=task.optimizer(), **options).run(n_epoch=1, loader=task.loader())


def train_clipped(task: Task) -> None:
    """Train for one epoch, clipping the gradients' norm."""
    trainer = StampedTrainer(
        task, mode="train", optimizer=task.optimizer(), log_bar=True, gradient_clip=MAX_NORM, seed=0
    )
    trainer.run(n_epoch=1, loader=task.loader())


def train_with_all(task: Task) -> None:
    """Train for one epoch with clipping, a schedule that steps with the batches, and two add-ons."""
    kind, optimizer = StampedTrainer.add_on(StateManagerAddon, EarlyStoppingAddon), task.optimizer()
    schedule = {"scheduler": StepLR(optimizer, 10**6), "scheduler_step_on_batch": True}
    with tempfile.TemporaryDirectory() as folder:
        options = {"mode": "train", "log_bar": True, "seed": 0, "gradient_clip": MAX_NORM, "save_path": folder}
        kind(task, optimizer=optimizer, **schedule, **options).run(n_epoch=1, loader=task.loader())


def evaluate(task: Task) -> None:
    """Evaluate once."""
    StampedTrainer(task, mode="test", log_bar=True).run(1, task.loader())


TRAINING = (
    Row("zae-engine", train),
    Row("zae-engine+state", train_kept, against="zae-engine"),
    Row("zae-engine+clip", train_clipped, against="pytorch+clip"),
    Row(ALL, train_with_all, against="pytorch+clip+schedule"),
)
EVALUATION = (Row("zae-engine", evaluate),)
