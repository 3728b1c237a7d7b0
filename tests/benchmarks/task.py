"""What every row of the benchmark works on: the model, the batches, the optimizer, and the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

Batch = tuple[Tensor, Tensor]

BATCH_SIZE = 32
FEATURES = 64
CLASSES = 10
LEARNING_RATE = 0.05
MOMENTUM = 0.9
MAX_NORM = 1.0


def make_model(seed: int = 0) -> nn.Sequential:
    """Return the MLP 64-64-10, the same weights for every row."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def make_batches(n: int, distinct: int = 100, seed: int = 1) -> list[Batch]:
    """Return `n` ready batches, which repeat `distinct` ones so that they stay in the cache for every row."""
    generator = torch.Generator().manual_seed(seed)
    pool = [
        (
            torch.randn(BATCH_SIZE, FEATURES, generator=generator),
            torch.randint(CLASSES, (BATCH_SIZE,), generator=generator),
        )
        for _ in range(distinct)
    ]
    return [pool[i % distinct] for i in range(n)]


@dataclass
class Task:
    """One run of one row.

    Attributes
    ----------
    model : torch.nn.Module
        Fresh for the run.
    batches : list
        The ready batches, one for each step.
    stamps : list of float
        When each step began, filled by `stamp`.
    """

    model: nn.Module
    batches: list[Batch]
    stamps: list[float] = field(default_factory=list)

    def stamp(self) -> None:
        """Note the time; every row calls this first thing in the user's step function."""
        self.stamps.append(perf_counter())

    def loader(self) -> DataLoader[Batch]:
        """Return the loader that hands out the ready batches untouched."""
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]  # a list is dataset enough

    def optimizer(self) -> torch.optim.SGD:
        """Return the optimizer of every row."""
        return torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def seconds_per_step(self, warmup: int) -> float:
        """Return the mean time from one step's beginning to the next one's, after `warmup` steps."""
        return (self.stamps[-1] - self.stamps[warmup]) / (len(self.stamps) - 1 - warmup)


@dataclass(frozen=True)
class Row:
    """A line of the table: a way to work through a `Task`, and the row that it is compared with."""

    name: str
    run: Callable[[Task], None]
    against: str = "pytorch"
