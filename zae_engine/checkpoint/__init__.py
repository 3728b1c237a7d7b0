"""Checkpoints: weights to and from files, and whole states. Knows no trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import CheckpointError

if TYPE_CHECKING:
    from .weights import WeightsError, load_weights, read_weights, save_weights, whole_state

__all__ = ["CheckpointError", "WeightsError", "load_weights", "read_weights", "save_weights", "whole_state"]


def __getattr__(name: str) -> object:
    """Import torch when it is asked for: listing and verifying checkpoints do without."""
    if name in __all__:
        from . import weights

        return getattr(weights, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
