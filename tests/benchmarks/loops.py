"""The loops written by hand, which the trainers are compared with."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import StepLR

from .task import MAX_NORM, Row, Task


def train(task: Task) -> None:
    """Train with PyTorch alone."""
    model, optimizer = task.model, task.optimizer()
    losses: list[Tensor] = []
    model.train()
    for x, y in task.loader():
        task.stamp()
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())


def train_clipped(task: Task) -> None:
    """Train with PyTorch alone, clipping the gradients' norm."""
    model, optimizer = task.model, task.optimizer()
    losses: list[Tensor] = []
    model.train()
    for x, y in task.loader():
        task.stamp()
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        losses.append(loss.detach())


def train_scheduled(task: Task) -> None:
    """Train with PyTorch alone, clipping the gradients' norm, with a schedule that steps with the batches."""
    model, optimizer = task.model, task.optimizer()
    schedule = StepLR(optimizer, 10**6)
    losses: list[Tensor] = []
    model.train()
    for x, y in task.loader():
        task.stamp()
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())


def train_accelerate(task: Any, max_norm: float = 0.0, epochs: int = 1, **settings: Any) -> None:
    """Train with Accelerate, as its documentation writes the loop; `settings` are its own."""
    accelerator = Accelerator(cpu=True, **settings)
    model, optimizer, loader = accelerator.prepare(task.model, task.optimizer(), task.loader())
    losses: list[Tensor] = []
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            task.stamp()
            with accelerator.accumulate(model):
                loss = cross_entropy(model(x), y)
                accelerator.backward(loss)
                if max_norm and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), max_norm)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())


def evaluate(task: Task) -> None:
    """Evaluate with PyTorch alone, summing the loss."""
    model = task.model
    total = torch.zeros(())
    model.eval()
    with torch.no_grad():
        for x, y in task.loader():
            task.stamp()
            total += cross_entropy(model(x), y)


def evaluate_accelerate(task: Task) -> None:
    """Evaluate with Accelerate, summing the loss."""
    accelerator = Accelerator(cpu=True)
    model, loader = accelerator.prepare(task.model, task.loader())
    total = torch.zeros(())
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            task.stamp()
            total += cross_entropy(model(x), y)
    accelerator.reduce(total)


TRAINING = (
    Row("pytorch", train),
    Row("accelerate", train_accelerate),
    Row("pytorch+clip", train_clipped),
    Row("pytorch+clip+schedule", train_scheduled),
    Row("accelerate+clip", partial(train_accelerate, max_norm=MAX_NORM), against="pytorch+clip"),
)
EVALUATION = (Row("pytorch", evaluate), Row("accelerate", evaluate_accelerate))
