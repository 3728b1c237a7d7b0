"""Metric objects with ``update``, ``compute`` and ``reset``, as torchmetrics has them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from ..nested_values import map_nest, to_cpu
from ..processes.group import Processes
from .metric_inputs import Route

_NEEDED = ("update", "compute", "reset")


def check_metrics(metrics: Any) -> tuple[dict[str, Any], dict[str, Route]]:
    """Return the metrics by name, and by name what they take; refuse what is none."""
    if metrics is None:
        return {}, {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics={metrics!r} is no dict; name each metric: metrics={{'acc': MulticlassAccuracy(10)}}")
    objects, routes = dict[str, Any](), dict[str, Route]()
    for name, given in metrics.items():
        metric, *names = given if isinstance(given, (tuple, list)) and given else (given,)
        lacking = [method for method in _NEEDED if not callable(getattr(metric, method, None))]
        if lacking or isinstance(metric, type) or not isinstance(name, str):
            hint = "; create it first" if isinstance(metric, type) else f"; it has no {lacking[0]}()" if lacking else ""
            raise TypeError(
                f"metrics[{name!r}]={_short(given)} is no metric{hint}. Give objects with update(output, target),"
                " compute() and reset() under a name, such as torchmetrics' (pip install 'zae-engine[metrics]')"
            )
        objects[name], routes[name] = metric, Route(name, names)
    return objects, routes


def _short(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 200 else f"{text[:200]}…"


class Measures:
    """One split's copies of the metric objects; they synchronise over the processes by themselves.

    Parameters
    ----------
    metrics : dict of str to metric
    routes : dict of str to Route
        What each takes.
    device : torch.device
    processes : Processes

    Attributes
    ----------
    metrics : dict of str to metric
        The copies.
    """

    def __init__(
        self, metrics: dict[str, Any], routes: dict[str, Route], device: torch.device, processes: Processes
    ) -> None:
        self._routes = routes
        self.metrics = {name: _on(copy.deepcopy(metric), device) for name, metric in metrics.items()}
        self._processes, self._updated, self._device = processes, False, device
        self._next: Measures | None = None
        for name, metric in self.metrics.items():
            if processes.count > 1 and not all(hasattr(member, "process_group") for member in _members(metric)):
                raise TypeError(
                    f"metrics[{name!r}], a {type(metric).__name__}, does not synchronise over {processes.count}"
                    " processes; give one of torchmetrics, or compute it in metric_on_epoch_end from the logs"
                )

    def reset(self) -> None:
        """Begin an epoch."""
        if self._next is not None:
            self.metrics, self._routes, self._next = self._next.metrics, self._next._routes, None
        self._updated = False
        for metric in self.metrics.values():
            metric.reset()

    def exchange(self, others: Measures) -> None:
        """From the next epoch on, measure by others."""
        self._next = others

    def state(self) -> dict[str, Any]:
        """What the metrics have seen in the running epoch, as plain values and tensors."""
        members = {n: [_state_of(m) for m in _members(metric)] for n, metric in self.metrics.items()}
        return {"updated": self._updated, "metrics": members}

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Go on with what one process had seen, or with what several had."""
        self._updated = any(state["updated"] for state in states)
        for name, metric in self.metrics.items():
            for number, member in enumerate(_members(metric)):
                seen = [s["metrics"][name][number] for s in states if s["updated"] and name in s["metrics"]]
                if seen:
                    _put_states(member, seen, self._device)

    def update(self, values: dict[str, Any], step: str) -> None:
        """Take what each needs of what a step returned."""
        for name, metric in self.metrics.items():
            self._routes[name].feed(metric, values, step)
            self._updated = True

    def compute(self) -> dict[str, Any]:
        """The epoch's value of each; a collection's under ``name_key``."""
        if not self.metrics:
            return {}
        # Lists of nothing cannot be gathered: processes that had no share of a small set get the others' values.
        having = sum(self._processes.gather(self._updated))  # the first ones, since they get the larger shares
        if having < self._processes.count:
            group = self._processes.leading(having)
            for member in (m for metric in self.metrics.values() for m in _members(metric)):
                member.process_group = group if self._processes.index < having else None
        return self._processes.from_first(self._computed() if self._processes.index < having else {})

    def _computed(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, metric in self.metrics.items():
            value = metric.compute()
            found |= {f"{name}_{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
            for member in _members(metric):
                member.process_group = None
        return {key: to_cpu(value) for key, value in found.items()}


def _state_of(metric: Any) -> dict[str, Any]:
    """A metric's values: torchmetrics' say which these are, of any other it is all attributes."""
    if hasattr(metric, "metric_state"):
        return {"values": dict(metric.metric_state), "count": metric.update_count}
    return {"values": dict(vars(metric))}


def _put_states(metric: Any, states: list[dict[str, Any]], device: torch.device) -> None:
    """Put a state into a metric, or of several what torchmetrics would make of them when it synchronises."""
    every = [map_nest(lambda leaf: _on(leaf, device), state["values"]) for state in states]
    values = every[0]
    if len(every) > 1:
        reductions = getattr(metric, "_reductions", {})
        values = {name: _merged(reductions.get(name), [each[name] for each in every]) for name in values}
    vars(metric).update(values)
    if "count" in states[0]:
        metric._update_count, metric._computed = sum(state["count"] for state in states), None


def _merged(reduction: Any, values: list[Any]) -> Any:
    if isinstance(values[0], list):
        return [value for part in values for value in part]
    if reduction is None:
        raise ValueError(
            "a metric of metrics= cannot be put together from several processes; go on with as many processes as"
            " before, or from a checkpoint of an epoch's end"
        )
    return reduction(torch.stack(values))


def _members(metric: Any) -> list[Any]:
    """The metrics of a collection, or the metric itself."""
    return list(metric.values()) if callable(getattr(metric, "values", None)) else [metric]


def _on(metric: Any, device: torch.device) -> Any:
    return metric.to(device) if callable(getattr(metric, "to", None)) else metric
