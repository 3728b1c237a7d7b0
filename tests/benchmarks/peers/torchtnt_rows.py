"""TorchTNT: an `AutoUnit`. A bar is a callback that its user passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchtnt.framework.auto_unit import AutoUnit
from torchtnt.framework.callback import Callback
from torchtnt.framework.callbacks import TQDMProgressBar
from torchtnt.framework.evaluate import evaluate as evaluate_unit
from torchtnt.framework.state import State
from torchtnt.framework.train import train as train_unit

from ..task import MAX_NORM, Batch, Row, Task


class Unit(AutoUnit[Batch]):
    """The user's part: the loss, what is done with it in an evaluation, and the optimizer."""

    def __init__(self, task: Any, **settings: Any) -> None:
        super().__init__(module=task.model, device=torch.device("cpu"), **settings)
        self.task, self.total = task, torch.zeros(())

    def compute_loss(self, state: State, data: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and the model's output."""
        self.task.stamp()
        x, y = data
        output = self.module(x)
        return cross_entropy(output, y), output

    def on_eval_step_end(self, state: State, data: Batch, step: int, loss: Tensor, outputs: Tensor) -> None:
        """Sum the losses, which is its user's part."""
        self.total += loss

    def configure_optimizers_and_lr_scheduler(self, module: nn.Module) -> tuple[torch.optim.Optimizer, None]:
        """Return the optimizer and no scheduler."""
        return self.task.optimizer(), None


def fit(task: Task, callbacks: list[Callback], **settings: Any) -> None:
    """Train for one epoch; `settings` are the unit's."""
    train_unit(Unit(task, **settings), task.loader(), max_epochs=1, callbacks=callbacks)


def train(task: Task) -> None:
    """Train without a bar, as is the default."""
    fit(task, [])


def train_with_bar(task: Task) -> None:
    """Train with the bar that it offers."""
    fit(task, [TQDMProgressBar()])


def train_clipped(task: Task) -> None:
    """Train without a bar, clipping the gradients' norm."""
    fit(task, [], clip_grad_norm=MAX_NORM)


def evaluate(task: Task) -> None:
    """Evaluate once, without a bar as is the default."""
    evaluate_unit(Unit(task), task.loader())


ROWS = (Row("torchtnt", train), Row("torchtnt+bar", train_with_bar))
CLIPPED = (Row("torchtnt+clip", train_clipped, against="pytorch+clip"),)
EVALUATION = (Row("torchtnt", evaluate),)
