"""Where 0.7.6 had `MultiGPUAddon`; its imports still work."""

from .multi_gpu import MultiGPUAddon

__all__ = ["MultiGPUAddon"]
