"""The best weights of a run, and what tells them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from torch import Tensor, nn

from ...checkpoint import WeightsError, load_weights, read_weights, whole_state
from ...checkpoint.snapshot import identity_of
from ...checkpoint.weights import own_state
from .history import Row
from .monitor import Monitor

Path = str | PathLike[str]


class BestWeights:
    """The best value of the monitored metric so far, with a copy of the weights that had it.

    Parameters
    ----------
    monitor : Monitor
        What tells the best.

    Attributes
    ----------
    value : float
        The best so far.
    weights : dict
        ``"epoch"`` (counted from 0) and ``"weight"``: each a list of one, or of none so far.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.forget()

    def forget(self) -> None:
        """Look for the best anew."""
        self.value = self.monitor.worst()
        self.weights: dict[str, list[Any]] = {"epoch": [], "weight": []}

    @property
    def name(self) -> str:
        """The metric's. After another one was assigned, the best is looked for anew."""
        return self.monitor.name

    @name.setter
    def name(self, name: str) -> None:
        self._change(lambda monitor: monitor.rename(name))

    @property
    def mode(self) -> str | None:
        """Which direction of it is better; None as long as that is not known."""
        return self.monitor.known_mode

    @mode.setter
    def mode(self, mode: str | None) -> None:
        self._change(lambda monitor: monitor.choose(mode))

    def measure(self, metrics: Mapping[str, Any]) -> None:
        """Be told the direction by other metric objects."""
        self._change(lambda monitor: monitor.measure(metrics))

    def _change(self, change: Callable[[Monitor], None]) -> None:
        before = self.name, self.mode
        change(self.monitor)
        if (self.name, self.mode) != before:
            self.forget()

    def turns_to(self, column: str) -> str | None:
        """Compare values of this column only from here on; return the one that told before, if it is another."""
        before = self.monitor.turns_to(column)
        if before is not None:
            self.forget()
        return before

    def is_beaten_by(self, value: float) -> bool:
        """Whether a value is better than all before; NaN and infinities never are, nor is an equal one."""
        return self.monitor.better(value, self.value)

    def keep(self, model: nn.Module, epoch: int, value: float) -> None:
        """Keep a copy of the model's weights, with the value that they have."""
        self.value = float(value)
        # On the CPU, so that the copy takes no memory of the device; a copy, since the live weights go on changing.
        spread = any(hasattr(p, "ds_id") for p in model.parameters())  # ZeRO-3 leaves nothing of them here
        state = whole_state(model) if spread else own_state(model)
        self.weights = {"epoch": [epoch], "weight": [_copies(state)]}

    def apply(self, model: nn.Module, filename: Path | None, strict: bool, rows: list[Row]) -> None:
        """Put the best weights, or a file's, into a model; the history's rows tell why there are none."""
        if filename is not None:
            load_weights(model, read_weights(filename), strict, source=repr(str(filename)))
            return
        if not self.weights["weight"]:
            raise WeightsError(self.monitor.why_none(rows))
        load_weights(model, self.weights["weight"][-1], strict, source="the best weights")

    def state_dict(self) -> dict[str, Any]:
        """The best value, and what it is of."""
        return {"best": self.value, "monitor": self.monitor.watched}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; a best by another metric is left out."""
        if self.monitor.takes(state.get("monitor", self.monitor.watched)):
            self.value = state["best"]
        else:
            self.forget()


def _copies(state: dict[str, Any]) -> dict[str, Any]:
    """Copies of a state's values; tied weights are one tensor there, too, and so are written once."""
    known: dict[object, Any] = {}
    copies: dict[str, Any] = {}
    for key, value in state.items():
        identity = identity_of(value) if isinstance(value, Tensor) else key
        if identity not in known:
            known[identity] = _copy(value)
        copies[key] = known[identity]
    return copies


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
