"""What a trainer shows its parts and its add-ons: the names that they may read, with their types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .compose import Seams


class Face(Seams):
    """A trainer, as its parts see it: its options, what `run` was given, and the `Seams` that they call.

    What a part keeps is the part's own; it holds no trainer, and gets this one where it needs it.
    """

    model: nn.Module
    optimizer: Any
    scheduler: Any
    scheduler_step_on_batch: bool
    device: torch.device
    mixed_precision: str
    loader: Any
    valid_loader: Any
    batch_size: int
    valid_batch_size: int
    log_bar: bool
    show: tuple[str, ...] | None
    gradient_clip: float
    gradient_accumulation_steps: int
    shards: int | None
    split_batches: bool
    seed: int
    seed_was_given: bool
    seeded_samples: bool
    sync_batchnorm: bool
    metrics: dict[str, Any]
    on_nan: str
    max_wait: float | None
    kwargs_handlers: Any
    train_step: Callable[[Any], dict[str, Any]]
    test_step: Callable[[Any], dict[str, Any]]
    stop_reason: str | None
    is_main_process: bool

    def toggle(self, mode: str | None = None) -> None:
        """Switch to `mode`, 'train' or 'test'; None switches to the other one."""


def decide(trainer: Face, **values: Any) -> None:
    """Set options, fixed ones too, that the trainer itself decides or has loaded."""
    vars(trainer).update(values)
