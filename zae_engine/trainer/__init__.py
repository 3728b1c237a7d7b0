"""The trainer and what it hands out."""

from ..checkpoint import CheckpointError, WeightsError
from ..logs.history_file import read_history
from .compose import AddOnBase
from .data.window import Window
from .processes.signals import Interrupted
from .records.counters import ProgressChecker
from .records.epoch_log import EpochLog
from .records.history import History
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
