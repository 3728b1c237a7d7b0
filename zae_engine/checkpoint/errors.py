"""The error of checkpoints, below everything that raises it."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or read, or whose folder is in use."""
