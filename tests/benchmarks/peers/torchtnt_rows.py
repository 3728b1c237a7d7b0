"""TorchTNT: an `AutoUnit`. A bar is a callback that its user passes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchtnt.framework.auto_unit import AutoUnit
from torchtnt.framework.callback import Callback
from torchtnt.framework.callbacks import TQDMProgressBar
from torchtnt.framework.state import State
from torchtnt.framework.train import train as train_unit

from ..task import Batch, Row, Task


class Unit(AutoUnit[Batch]):
    """The user's part: the loss and the optimizer."""

    def __init__(self, task: Task) -> None:
        super().__init__(module=task.model, device=torch.device("cpu"))
        self.task = task

    def compute_loss(self, state: State, data: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and the model's output."""
        self.task.stamp()
        x, y = data
        output = self.module(x)
        return cross_entropy(output, y), output

    def configure_optimizers_and_lr_scheduler(self, module: nn.Module) -> tuple[torch.optim.Optimizer, None]:
        """Return the optimizer and no scheduler."""
        return self.task.optimizer(), None


def fit(task: Task, callbacks: list[Callback]) -> None:
    """Train for one epoch."""
    train_unit(Unit(task), task.loader(), max_epochs=1, callbacks=callbacks)


def train(task: Task) -> None:
    """Train without a bar, as is the default."""
    fit(task, [])


def train_with_bar(task: Task) -> None:
    """Train with the bar that it offers."""
    fit(task, [TQDMProgressBar()])


ROWS = (Row("torchtnt", train), Row("torchtnt+bar", train_with_bar))
