"""Where 0.7.6 had the trainer; its imports still work."""

from .records.counters import ProgressChecker
from .trainer import T, Trainer

__all__ = ["ProgressChecker", "T", "Trainer"]
