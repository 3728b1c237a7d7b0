"""PyTorch-Ignite: its `Engine`, and what its ``distributed`` package makes of the model and the optimizer."""

from __future__ import annotations

import ignite.distributed as idist
from ignite.engine import Engine

from ..shares import Problem
from .ignite_rows import UpdateFunction


def train(problem: Problem) -> None:
    """Train for one epoch on this process's share of each batch."""
    model, optimizer = idist.auto_model(problem.model), idist.auto_optim(problem.optimizer())
    Engine(UpdateFunction(problem, model, optimizer)).run(problem.own_loader(), max_epochs=1)
