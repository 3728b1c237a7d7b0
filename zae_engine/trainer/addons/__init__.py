"""Add-ons, one file each."""

from .core import AddOnBase
from .early_stopping import EarlyStoppingAddon
from .mix_precision import PrecisionMixerAddon
from .multi_gpu import MultiGPUAddon

__all__ = ["AddOnBase", "EarlyStoppingAddon", "MultiGPUAddon", "PrecisionMixerAddon"]
