"""Composer on several processes, with the sampler that it asks for."""

from __future__ import annotations

from composer.utils import dist
from torch.utils.data import DataLoader

from ..shares import Pair, Problem
from ..task import BATCH_SIZE
from .composer_rows import make_trainer


def train(problem: Problem) -> None:
    """Train for one epoch on this process's share of each batch, every other sample of it."""
    sampler = dist.get_sampler(problem.data, shuffle=False)
    share = BATCH_SIZE // dist.get_world_size()
    loader: DataLoader[Pair] = DataLoader(problem.data, batch_size=share, sampler=sampler)  # type: ignore[arg-type]
    make_trainer(problem, train_dataloader=loader, optimizers=problem.optimizer(), max_duration="1ep").fit()
