"""Add-ons, one file each."""

from .core import AddOnBase
from .early_stopping import EarlyStoppingAddon
from .mix_precision import PrecisionMixerAddon
from .multi_gpu import MultiGPUAddon
from .state_manager import StateManagerAddon

__all__ = ["AddOnBase", "EarlyStoppingAddon", "MultiGPUAddon", "PrecisionMixerAddon", "StateManagerAddon"]
