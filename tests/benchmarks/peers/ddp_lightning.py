"""Lightning with its DDP strategy, its bar on, without checkpoints and loggers."""

from __future__ import annotations

import os

import lightning
from lightning.pytorch.strategies import DDPStrategy

from ..shares import Problem
from .lightning_rows import Module


def train(problem: Problem) -> None:
    """Train for one epoch on this process's share of each batch."""
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy=DDPStrategy(process_group_backend="gloo"),
        use_distributed_sampler=False,  # the loader gives this process's samples already
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(problem), problem.own_loader())  # type: ignore[arg-type]  # of which it needs what both have
