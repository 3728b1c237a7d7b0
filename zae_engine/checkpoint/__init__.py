"""Weights to and from files. Knows no trainer."""

from .weights import WeightsError, load_weights, read_weights, save_weights

__all__ = ["WeightsError", "load_weights", "read_weights", "save_weights"]
