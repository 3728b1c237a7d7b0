"""Lightning with ``accumulate_grad_batches``, nothing else on."""

from __future__ import annotations

import lightning

from ..digits import EPOCHS, DigitsTask
from .lightning_rows import Module


def train(task: DigitsTask) -> None:
    """Train on micro-batches that Lightning accumulates."""
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=task.parts,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(task), task.loader())
