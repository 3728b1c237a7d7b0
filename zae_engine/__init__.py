"""Write the step once, run it anywhere, get the same model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .trainer import AddOnBase, Trainer

__all__ = ["AddOnBase", "Trainer", "__version__"]


def __getattr__(name: str) -> object:
    """Import the trainer, and torch with it, when it is asked for: the command line often does without."""
    if name in __all__:
        from . import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
