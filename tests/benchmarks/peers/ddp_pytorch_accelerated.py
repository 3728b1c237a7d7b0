"""pytorch-accelerated on several processes, its bar on."""

from __future__ import annotations

import os

from ..shares import Problem
from ..task import BATCH_SIZE
from .pytorch_accelerated_rows import StampedTrainer


def train(problem: Problem) -> None:
    """Train for one epoch; it deals consecutive batches out to the processes."""
    StampedTrainer(problem).train(
        problem.data,
        num_epochs=1,
        per_device_batch_size=BATCH_SIZE // int(os.environ["WORLD_SIZE"]),
        train_dataloader_kwargs={"shuffle": False, "num_workers": 0},
    )
