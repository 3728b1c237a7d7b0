"""What `processes` and `shards` train: an MLP on random data, the share of one process, the clock, the rows."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from statistics import mean
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset

from zae_engine.trainer import Trainer

from .group import everyone
from .output import discarded
from .task import BATCH_SIZE, CLASSES, LEARNING_RATE, MOMENTUM

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Size:
    """A model, and how long a block of it is."""

    features: int
    hidden: int
    steps: int
    warmup: int

    @property
    def name(self) -> str:
        """The widths of the layers."""
        return f"{self.features}-{self.hidden}-{CLASSES}"

    def model(self) -> nn.Sequential:
        """Return the MLP, the same weights every time."""
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(self.features, self.hidden), nn.ReLU(), nn.Linear(self.hidden, CLASSES))


TINY, LARGE = Size(64, 32, 200, 20), Size(512, 1024, 60, 6)
QUICK_TINY, QUICK_LARGE = Size(64, 32, 20, 4), Size(512, 1024, 8, 2)
WIDE = Size(1024, 1536, 40, 4)  # 1.6 million parameters


def sizes(quick: bool) -> tuple[Size, Size]:
    """The tiny model and the larger one."""
    return (QUICK_TINY, QUICK_LARGE) if quick else (TINY, LARGE)


@cache
def make_data(features: int, samples: int) -> TensorDataset:
    """Return random samples, the same ones every time."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, features, generator=generator)
    return TensorDataset(x, torch.randint(CLASSES, (samples,), generator=generator))


class Problem:
    """One run of one row.

    Parameters
    ----------
    size : Size

    Attributes
    ----------
    model : nn.Module
        Fresh for the run.
    data : TensorDataset
        One epoch of it is a run.
    """

    def __init__(self, size: Size) -> None:
        self.size, self.model = size, size.model()
        self.data = make_data(size.features, BATCH_SIZE * (size.warmup + size.steps))
        self.steps, self._wall, self._cpu = 0, list[float](), list[float]()

    def loader(self) -> DataLoader[Pair]:
        """Return the loader of global batches, in the data's order."""
        return DataLoader(self.data, batch_size=BATCH_SIZE)  # type: ignore[arg-type]  # of pairs

    def own_loader(self, pieces: int = 1) -> DataLoader[Pair]:
        """Return a plain loader of this process's share of each global batch, a contiguous slice of it, in pieces."""
        count, index = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        share = BATCH_SIZE // count
        starts = range(index * share, len(self.data), BATCH_SIZE)
        ids = [sample for start in starts for sample in range(start, start + share)]
        return DataLoader(self.data, batch_size=share // pieces, sampler=ids)  # type: ignore[arg-type]  # of pairs

    def optimizer(self) -> torch.optim.SGD:
        """Return the optimizer of every row."""
        return torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def stamp(self) -> None:
        """Note the time at the first timed step and at the last; rows call it once a step, before the forward."""
        if self.steps in (self.size.warmup, self.size.warmup + self.size.steps - 1):
            self._wall.append(perf_counter())
            self._cpu.append(process_time())
        self.steps += 1

    def seconds(self) -> tuple[float, float]:
        """Return the seconds a step, and the processor's seconds a step of this process."""
        if self.steps != self.size.warmup + self.size.steps:
            raise RuntimeError(f"{self.steps} steps were stamped, instead of {self.size.warmup + self.size.steps}")
        timed = self.size.steps - 1
        return (self._wall[1] - self._wall[0]) / timed, (self._cpu[1] - self._cpu[0]) / timed


class StampedTrainer(Trainer):
    """Classify; the first micro-batch of a step is stamped."""

    def __init__(self, problem: Problem, **options: Any) -> None:
        parts: dict[str, Any] = {
            "device": "cpu",
            "mode": "train",
            "optimizer": problem.optimizer(),
            "log_bar": True,
            "seed": 0,
        }
        super().__init__(problem.model, **(parts | options))
        self.problem, self._fresh = problem, True

    def optimize(self, window: Any) -> None:
        """Let the next forward be stamped."""
        self._fresh = True
        super().optimize(window)

    def train_step(self, batch: Pair) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        if self._fresh:
            self.problem.stamp()
            self._fresh = False
        x, y = batch
        return {"loss": cross_entropy(self.model(x), y)}

    test_step = train_step


def train_by_hand(problem: Problem, max_norm: float = 0.0, pieces: int = 1) -> None:
    """Train with PyTorch alone, with DistributedDataParallel on several processes."""
    several = distributed.is_initialized()
    model = DistributedDataParallel(problem.model) if several else problem.model
    optimizer, losses = problem.optimizer(), list[Tensor]()
    model.train()
    for number, (x, y) in enumerate(problem.own_loader(pieces), 1):
        last = number % pieces == 0
        if (number - 1) % pieces == 0:
            problem.stamp()
            optimizer.zero_grad()
        with nullcontext() if last or not several else model.no_sync():  # type: ignore[operator]
            loss = cross_entropy(model(x), y) / pieces
            loss.backward()
        losses.append(loss.detach())
        if last:
            if max_norm:
                clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()


def train_zae(problem: Problem, **options: Any) -> None:
    """Train for one epoch with zae-engine, which gets the global batches."""
    StampedTrainer(problem, **options).run(n_epoch=1, loader=problem.loader())


class Rows:
    """Runs rows, and keeps what the table does not show by itself: processor time and final weights.

    Parameters
    ----------
    size : Size
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        self.cpu: dict[str, list[float]] = {}
        self.weights: dict[str, list[Tensor]] = {}

    def run(self, name: str, train: Callable[[Problem], None]) -> float:
        """Train once, in silence; return the seconds a step, the mean over the processes."""
        problem = Problem(self.size)
        gc.collect()
        everyone(None)  # begin together
        with discarded("terminal"):
            train(problem)
        torch.set_num_threads(1)  # a trainer may have changed this for the whole process
        wall, cpu = zip(*everyone(problem.seconds()), strict=True)
        self.cpu.setdefault(name, []).append(mean(cpu))
        self.weights[name] = [p.detach().clone() for p in problem.model.parameters()]
        return float(mean(wall))

    def block(self, name: str, train: Callable[[Problem], None]) -> Callable[[], float]:
        """Return a call without arguments that runs the row."""
        return partial(self.run, name, train)

    def difference(self, one: str, other: str) -> float:
        """The largest difference between the weights that two rows ended with."""
        pairs = zip(self.weights[one], self.weights[other], strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)
