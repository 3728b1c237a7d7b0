"""Keras on its PyTorch backend: `compile` and `fit`, its bar on."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import torch
from torch import Tensor, nn

from ..task import CLASSES, FEATURES, LEARNING_RATE, MAX_NORM, MOMENTUM, Row, Task

if keras.backend.backend() != "torch":
    raise ImportError(f"keras runs on {keras.backend.backend()}, set KERAS_BACKEND=torch")


class StampedModel(keras.Model):
    """The default step, noting when it begins."""

    task: Task

    def train_step(self, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Train on one batch."""
        self.task.stamp()
        return super().train_step(data)

    def test_step(self, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Evaluate one batch."""
        self.task.stamp()
        return super().test_step(data)


def build(task: Task, **settings: Any) -> StampedModel:
    """Return the same network, made of Keras's layers, with the weights of the task's model."""
    inputs = keras.Input((FEATURES,))
    hidden = keras.layers.Dense(64, activation="relu")(inputs)
    model = StampedModel(inputs, keras.layers.Dense(CLASSES)(hidden))
    model.task = task
    model.set_weights([p.detach().T.numpy() for p in task.model.parameters()])
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM, **settings),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def copy_weights(model: keras.Model, module: nn.Module) -> None:
    """Put what Keras has trained into the task's model, where the benchmark looks for it."""
    with torch.no_grad():
        for parameter, weight in zip(module.parameters(), model.get_weights(), strict=True):
            parameter.copy_(torch.from_numpy(weight.T))


def train(task: Task, **settings: Any) -> None:
    """Train for one epoch; `settings` are the optimizer's."""
    model = build(task, **settings)
    model.fit(task.loader(), epochs=1)
    copy_weights(model, task.model)


def evaluate(task: Task) -> None:
    """Evaluate once."""
    build(task).evaluate(task.loader())


ROWS = (Row("keras", train),)
CLIPPED = (Row("keras+clip", partial(train, global_clipnorm=MAX_NORM), against="pytorch+clip"),)
EVALUATION = (Row("keras", evaluate),)
