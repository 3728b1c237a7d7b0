"""The trainer and what it hands out."""

from ..checkpoint import CheckpointError, WeightsError
from ..logs.history_file import read_history
from .compose import AddOnBase
from .data.window import Window
from .epoch_log import EpochLog
from .history import History
from .processes.signals import Interrupted
from .progress import ProgressChecker
from .trainer import T, Trainer

__all__ = [
    "AddOnBase",
    "CheckpointError",
    "EpochLog",
    "History",
    "Interrupted",
    "ProgressChecker",
    "T",
    "Trainer",
    "WeightsError",
    "Window",
    "read_history",
]
