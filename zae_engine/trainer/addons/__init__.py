"""Add-ons, one file each."""

from .core import AddOnBase
from .early_stopping import EarlyStoppingAddon
from .loggers import CSVLoggerAddon, MLflowLoggerAddon, TensorBoardLoggerAddon, TrackerAddon, TrackioLoggerAddon
from .mix_precision import PrecisionMixerAddon
from .multi_gpu import MultiGPUAddon
from .state_manager import StateManagerAddon
from .web_logger import NeptuneLoggerAddon, WandBLoggerAddon

__all__ = [
    "AddOnBase",
    "CSVLoggerAddon",
    "EarlyStoppingAddon",
    "MLflowLoggerAddon",
    "MultiGPUAddon",
    "NeptuneLoggerAddon",
    "PrecisionMixerAddon",
    "StateManagerAddon",
    "TensorBoardLoggerAddon",
    "TrackerAddon",
    "TrackioLoggerAddon",
    "WandBLoggerAddon",
]
