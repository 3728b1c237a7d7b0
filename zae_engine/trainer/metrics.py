"""Metric objects with ``update``, ``compute`` and ``reset``, as torchmetrics has them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch

_NEEDED = ("update", "compute", "reset")


def check_metrics(metrics: Any) -> dict[str, Any]:
    """Return the metrics by name; refuse what is none."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics={metrics!r} is no dict; name each metric: metrics={{'acc': MulticlassAccuracy(10)}}")
    for name, metric in metrics.items():
        lacking = [method for method in _NEEDED if not callable(getattr(metric, method, None))]
        if lacking or isinstance(metric, type) or not isinstance(name, str):
            hint = "; create it first" if isinstance(metric, type) else f"; it has no {lacking[0]}()" if lacking else ""
            raise TypeError(
                f"metrics[{name!r}]={metric!r} is no metric{hint}. Give objects with update(output, target), compute()"
                " and reset() under a name, such as torchmetrics' (pip install 'zae-engine[metrics]')"
            )
    return dict(metrics)


class Measures:
    """One split's copies of the metric objects; they synchronise over the processes by themselves.

    Parameters
    ----------
    metrics : dict of str to metric
    device : torch.device
    """

    def __init__(self, metrics: dict[str, Any], device: torch.device) -> None:
        self._metrics = {name: _on(copy.deepcopy(metric), device) for name, metric in metrics.items()}

    def reset(self) -> None:
        """Begin an epoch."""
        for metric in self._metrics.values():
            metric.reset()

    def update(self, values: dict[str, Any], step: str) -> None:
        """Take the ``"output"`` and ``"target"`` of what a step returned."""
        if not self._metrics or not values:
            return
        if "output" not in values or "target" not in values:
            had = ", ".join(map(repr, values))
            raise KeyError(f"metrics= needs 'output' and 'target' in what {step} returns; it returned {had}")
        for metric in self._metrics.values():
            metric.update(values["output"], values["target"])

    def compute(self) -> dict[str, Any]:
        """The epoch's value of each; a collection's under ``name_key``."""
        found: dict[str, Any] = {}
        with warnings.catch_warnings():
            # A process may have had no share of a small set; the others' states make up for it.
            warnings.filterwarnings("ignore", "The ``compute`` method of metric", UserWarning)
            for name, metric in self._metrics.items():
                value = metric.compute()
                found |= {f"{name}_{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
        return found


def _on(metric: Any, device: torch.device) -> Any:
    return metric.to(device) if callable(getattr(metric, "to", None)) else metric
