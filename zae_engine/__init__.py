"""Write the step once, run it anywhere, get the same model."""

from ._version import __version__
from .trainer import AddOnBase, Trainer

__all__ = ["AddOnBase", "Trainer", "__version__"]
