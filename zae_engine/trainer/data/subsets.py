"""Which samples of its data a loader takes: the indices of subsets, within others as well, and of samplers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, SubsetRandomSampler, WeightedRandomSampler

_DEEPEST = 8
_INDICES = (list, tuple, range, np.ndarray, Tensor)
_MOST = 1_000_000  # indices of which all are looked at; of more, evenly spaced ones

Split = dict[str, str]


def split_of(loader: Any) -> Split:
    """What selects samples, by where it is, such as ``'Subset.indices'``: how many, and a hash of them."""
    found = Split()
    dataset = getattr(loader, "dataset", None)
    for path, indices in _selections(dataset, type(dataset).__name__, 0):
        found[path] = _in_short(indices)
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", getattr(loader, "sampler", None))
    if isinstance(sampler, SubsetRandomSampler):
        found[f"{type(sampler).__name__}.indices"] = _in_short(sampler.indices)
    if isinstance(sampler, WeightedRandomSampler):
        found[f"{type(sampler).__name__}.weights"] = _in_short(sampler.weights)
    return found


def _selections(dataset: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Indices of a dataset, and of those that it is made of, by their paths."""
    if not isinstance(dataset, Dataset) or depth > _DEEPEST:
        return
    own = getattr(dataset, "__dict__", {})
    if isinstance(own.get("indices"), _INDICES):
        yield f"{path}.indices", own["indices"]
    for name, value in own.items():
        parts = {name: value}
        if isinstance(value, (list, tuple)) and len(value) < 1000:
            parts = {f"{name}[{i}]": part for i, part in enumerate(value)}
        for where, part in parts.items():
            yield from _selections(part, f"{path}.{where}", depth + 1)


def _in_short(indices: Any) -> str:
    """How many there are, and a hash of them."""
    count = len(indices)
    step = max(1, count // _MOST)
    some = indices[::step] if isinstance(indices, _INDICES) else list(indices)
    if isinstance(some, Tensor):
        some = some.detach().cpu().to(torch.float64).numpy()
    try:
        content = np.asarray(some, dtype=np.float64).tobytes()
    except (TypeError, ValueError):  # they are names
        content = repr(list(some)).encode()
    return f"{count} ({hashlib.blake2b(content, digest_size=6).hexdigest()})"
