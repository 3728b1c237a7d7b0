"""The trainer and what it hands out."""

from ..checkpoint import WeightsError
from .compose import AddOnBase
from .history import EpochLog, History
from .progress import ProgressChecker
from .trainer import T, Trainer
from .window import Window

__all__ = ["AddOnBase", "EpochLog", "History", "ProgressChecker", "T", "Trainer", "WeightsError", "Window"]
