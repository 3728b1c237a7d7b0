"""PyTorch-Ignite: an `Engine` around an update function. A bar and clipping are things that its user adds."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from ignite.handlers import ProgressBar
from ignite.metrics import Loss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from ..task import MAX_NORM, Batch, Row, Task


class UpdateFunction:
    """The user's step, which does the optimizing itself, and the clipping where there is some."""

    def __init__(
        self, task: Any, model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float | None = None
    ) -> None:
        self.task, self.model, self.optimizer, self.max_norm = task, model, optimizer, max_norm

    def __call__(self, engine: Engine, batch: Batch) -> float:
        self.task.stamp()
        self.model.train()
        self.optimizer.zero_grad()
        x, y = batch
        loss = cross_entropy(self.model(x), y)
        loss.backward()
        if self.max_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        return loss.item()


class InferenceFunction:
    """The user's evaluation step, which gives the metrics what they need."""

    def __init__(self, task: Task) -> None:
        self.task, self.model = task, task.model

    def __call__(self, engine: Engine, batch: Batch) -> tuple[Tensor, Tensor]:
        self.task.stamp()
        self.model.eval()
        with torch.no_grad():
            x, y = batch
            return self.model(x), y


def name_loss(output: float) -> dict[str, float]:
    """Tell the bar what the engine's output is called."""
    return {"loss": output}


def train(task: Task) -> None:
    """Train for one epoch, without a bar as is the default."""
    Engine(UpdateFunction(task, task.model, task.optimizer())).run(task.loader(), max_epochs=1)


def train_clipped(task: Task) -> None:
    """Train for one epoch, clipping the gradients' norm."""
    Engine(UpdateFunction(task, task.model, task.optimizer(), MAX_NORM)).run(task.loader(), max_epochs=1)


def train_with_bar(task: Task) -> None:
    """Train for one epoch with the bar that its documentation attaches."""
    engine = Engine(UpdateFunction(task, task.model, task.optimizer()))
    ProgressBar().attach(engine, output_transform=name_loss)
    engine.run(task.loader(), max_epochs=1)


def evaluate(task: Task) -> None:
    """Evaluate once, with its metric of the loss."""
    engine = Engine(InferenceFunction(task))
    Loss(cross_entropy).attach(engine, "loss")
    engine.run(task.loader())


ROWS = (Row("ignite", train), Row("ignite+bar", train_with_bar))
CLIPPED = (Row("ignite+clip", train_clipped, against="pytorch+clip"),)
EVALUATION = (Row("ignite", evaluate),)
