"""What ``seeded_samples`` costs a batch: datasets that draw nothing, and some that draw from each generator.

Run as ``python -m tests.benchmarks.seeded``; ``--help`` lists the options.

A batch is 32 samples of 64 numbers. The plan is walked without training, so that a loader's whole cost shows; a batch
is timed from its arrival to the next one's. With workers, a batch's time is what the workers need, divided by their
number as far as there are processors for them.
"""

from __future__ import annotations

import random
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from zae_engine.trainer.data.plan import BatchPlan

from . import blocks
from .blocks import Block
from .task import BATCH_SIZE, FEATURES

BATCHES, QUICK_BATCHES = 200, 12
WARMUP, QUICK_WARMUP = 20, 4  # batches that the workers have ready before the first is taken, among others
WORKERS = (0, 2)


class Still(Dataset[Tensor]):
    """Draws nothing, which a trainer cannot know beforehand.

    Parameters
    ----------
    samples : int
    """

    def __init__(self, samples: int) -> None:
        self.x = torch.randn(samples, FEATURES, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, sample: int) -> Tensor:
        return self.x[sample]


class FromTorch(Still):
    """Noise from torch's generator."""

    def __getitem__(self, sample: int) -> Tensor:
        return self.x[sample] + torch.randn(FEATURES)


class FromPython(Still):
    """A random scale from python's generator."""

    def __getitem__(self, sample: int) -> Tensor:
        return self.x[sample] * random.uniform(0.9, 1.1)


class FromNumpy(Still):
    """Noise from numpy's generator."""

    def __getitem__(self, sample: int) -> Tensor:
        return self.x[sample] + torch.from_numpy(np.random.standard_normal(FEATURES).astype(np.float32))


def datasets(samples: int) -> dict[str, Dataset[Any]]:
    """The datasets by what they draw from."""
    still = Still(samples)
    return {
        "TensorDataset": TensorDataset(still.x),
        "draws nothing": still,
        "torch": FromTorch(samples),
        "python": FromPython(samples),
        "numpy": FromNumpy(samples),
    }


def walk(data: Dataset[Any], workers: int, warmup: int, seeded: bool) -> float:
    """Walk over the data once; return the seconds a batch after `warmup` of them."""
    loader = DataLoader(data, batch_size=BATCH_SIZE, num_workers=workers)
    plan = BatchPlan(loader, seeded=seeded, key="0/train/1")
    stamps = [perf_counter() for _ in plan]
    return (stamps[-1] - stamps[warmup]) / (len(stamps) - 1 - warmup)


def measure(quick: bool, repetitions: int) -> dict[str, list[dict[str, Any]]]:
    """Measure each dataset with each number of workers, seeded and not, in turn."""
    batches, warmup = (QUICK_BATCHES, QUICK_WARMUP) if quick else (BATCHES, WARMUP)
    found: dict[str, list[dict[str, Any]]] = {}
    for workers in WORKERS:
        rows = []
        for name, data in datasets(BATCH_SIZE * (batches + warmup)).items():
            rows.append(Block(name, partial(walk, data, workers, warmup, False), name))
            rows.append(Block(f"{name}, seeded", partial(walk, data, workers, warmup, True), name))
        found[str(workers)] = [comparison.as_dict() for comparison in blocks.alternate(rows, repetitions)]
    return found


def main() -> None:
    """Print a table for each number of workers."""
    options = blocks.parse("seeded", __doc__, repetitions=15)
    torch.set_num_threads(1)
    found = measure(options.quick, options.repetitions)
    for workers, rows in found.items():
        title = f"{workers} workers, {options.repetitions} repetitions"
        print(f"{blocks.format_table(title, rows, 'batch')}\n", flush=True)
    blocks.keep(found, options.json)


if __name__ == "__main__":
    main()
