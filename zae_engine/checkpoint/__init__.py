"""Checkpoints: weights to and from files. Knows no trainer."""

from .weights import WeightsError, load_weights, read_weights, save_weights, whole_state

__all__ = ["WeightsError", "load_weights", "read_weights", "save_weights", "whole_state"]
