"""PyTorch-Ignite: an `Engine` around an update function. A bar is something that its user attaches."""

from __future__ import annotations

from ignite.engine import Engine
from ignite.handlers import ProgressBar
from torch.nn.functional import cross_entropy

from ..task import Batch, Row, Task


class UpdateFunction:
    """The user's step, which does the optimizing itself."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model = task.model
        self.optimizer = task.optimizer()

    def __call__(self, engine: Engine, batch: Batch) -> float:
        self.task.stamp()
        self.model.train()
        self.optimizer.zero_grad()
        x, y = batch
        loss = cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def name_loss(output: float) -> dict[str, float]:
    """Tell the bar what the engine's output is called."""
    return {"loss": output}


def train(task: Task) -> None:
    """Train for one epoch, without a bar as is the default."""
    Engine(UpdateFunction(task)).run(task.loader(), max_epochs=1)


def train_with_bar(task: Task) -> None:
    """Train for one epoch with the bar that its documentation attaches."""
    engine = Engine(UpdateFunction(task))
    ProgressBar().attach(engine, output_transform=name_loss)
    engine.run(task.loader(), max_epochs=1)


ROWS = (Row("ignite", train), Row("ignite+bar", train_with_bar))
