"""TorchTNT: its `AutoUnit` with its DDP strategy."""

from __future__ import annotations

from torchtnt.framework.train import train as train_unit

from ..shares import Problem
from .torchtnt_rows import Unit


def train(problem: Problem) -> None:
    """Train for one epoch on this process's share of each batch."""
    train_unit(Unit(problem, strategy="ddp"), problem.own_loader(), max_epochs=1)
