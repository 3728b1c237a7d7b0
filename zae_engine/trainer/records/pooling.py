"""Means over several sets, or processes, from their weighted sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

Sums = dict[str, tuple[float, float]]  # the weighted sum of a value, and the sum of its weights


def pooled(parts: Sequence[Sums]) -> dict[str, float]:
    """The means over several sets, as if all of their batches had been one epoch's."""
    means = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        total, weight = (sum(column) for column in zip(*(part[key] for part in parts if key in part), strict=True))
        means[key] = total / weight if weight else math.nan
    return means


def with_metrics(sums: Sums, metrics: dict[str, float]) -> Sums:
    """The sums of one set, with its further metrics weighted by the set's items."""
    items = sums.get("loss", next(iter(sums.values()), (0.0, 1.0)))[1]
    parts = {key: (value * items, items) for key, value in metrics.items()}
    # A metric may have the name of a value that the step returns, and then stands for it.
    return parts | {key: sums[key] for key, value in pooled([sums]).items() if metrics.get(key) == value}
