"""Lightning: its `Trainer` without checkpoints and loggers, its bar on."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..task import MAX_NORM, Batch, Row, Task

# Its notices go to a handler that keeps the original stderr.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(lightning.LightningModule):
    """The user's part: the step and the optimizer."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch, logged as its documentation does."""
        self.task.stamp()
        x, y = batch
        loss = cross_entropy(self.model(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of one batch, of which it takes the mean over the epoch."""
        self.task.stamp()
        x, y = batch
        self.log("val_loss", cross_entropy(self.model(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self.task.optimizer()


def make_trainer(**settings: Any) -> lightning.Trainer:
    """Return a trainer for one epoch on the CPU."""
    ours: dict[str, Any] = {"max_epochs": 1, "devices": 1, "logger": False, "enable_checkpointing": False}
    return lightning.Trainer(accelerator="cpu", **(ours | settings))


def train(task: Task, **settings: Any) -> None:
    """Train for one epoch; `settings` are the trainer's."""
    make_trainer(**settings).fit(Module(task), task.loader())


def evaluate(task: Task) -> None:
    """Evaluate once."""
    make_trainer().validate(Module(task), task.loader())


ROWS = (Row("lightning", train),)
CLIPPED = (Row("lightning+clip", partial(train, gradient_clip_val=MAX_NORM), against="pytorch+clip"),)
EVALUATION = (Row("lightning", evaluate),)
