"""Lightning: its `Trainer` without checkpoints and loggers, its bar on."""

from __future__ import annotations

import logging

import lightning
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..task import Batch, Row, Task

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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self.task.optimizer()


def train(task: Task) -> None:
    """Train for one epoch."""
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.fit(Module(task), task.loader())


ROWS = (Row("lightning", train),)
