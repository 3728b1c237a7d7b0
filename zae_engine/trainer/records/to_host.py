"""Bring values over from the device, many in one copy."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from ..nested_values import as_float


def read(values: list[Any]) -> list[float]:
    """Return numbers and one-element tensors as floats, with one copy a device and number type."""
    numbers: list[Any] = list(values)
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        if isinstance(value, Tensor) and value.device.type != "cpu":
            groups[value.device, value.dtype].append(i)
    for indices in groups.values():
        stacked = torch.stack([values[i].reshape(()) for i in indices])
        for i, number in zip(indices, stacked.cpu().tolist(), strict=True):
            numbers[i] = number
    try:
        return [float(number) for number in numbers]  # of a tensor on the CPU this is the quickest way to read it
    except OverflowError:  # of an integer
        return [as_float(number) for number in numbers]


def to_host(values: list[Any]) -> list[Any]:
    """Return `values` with tensors on the CPU, scalars of one type in one copy."""
    if all(not isinstance(v, Tensor) or v.device.type == "cpu" for v in values):
        return values
    if all(isinstance(v, Tensor) and v.ndim == 0 and v.dtype == values[0].dtype for v in values):
        return list(torch.stack(values).cpu().unbind())
    return [v.cpu() if isinstance(v, Tensor) else v for v in values]
