"""The error of checkpoints, below everything that raises it."""

from __future__ import annotations

from ..terminal import PrintableError


class CheckpointError(PrintableError, ValueError):
    """A checkpoint that cannot be written, or read, or whose folder is in use."""
