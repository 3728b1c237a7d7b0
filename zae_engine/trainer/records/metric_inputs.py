"""Which of a step's values go to which metric of ``metrics=``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

_USUAL = ("output", "target")
_ACCEPTED = (
    "give the metric alone, which gets 'output' and 'target'; or (metric, 'logits', 'labels'), with the names of what"
    " the steps return, in update's order; or (metric, {'preds': 'logits'}), by update's names"
)


class Route:
    """The arguments of one metric's ``update``, by their names among what a step returns.

    A name may lead into a nest: ``'output.boxes'`` is the entry ``'boxes'`` of ``'output'``, ``'output.0'`` the first.

    Parameters
    ----------
    name : str
        The metric's, for messages.
    given : tuple
        What stands behind the metric.
    """

    def __init__(self, name: str, given: Sequence[Any] = ()) -> None:
        self.name = name
        self._by_name: dict[str, str] = {}
        self._in_order: tuple[str, ...] = tuple(given) or _USUAL
        if len(given) == 1 and isinstance(given[0], Mapping):
            self._in_order, self._by_name = (), dict(given[0])
        if not all(isinstance(each, str) for each in (*self._in_order, *self._by_name, *self._by_name.values())):
            raise TypeError(f"metrics[{name!r}] has {tuple(given)!r} behind its metric; {_ACCEPTED}")

    @property
    def keys(self) -> set[str]:
        """What it takes, or what of it comes first on the way into a nest."""
        names = (*self._in_order, *self._by_name.values())
        return {*names, *(name.partition(".")[0] for name in names)}

    def feed(self, metric: Any, values: Mapping[str, Any], step: str) -> None:
        """Update a metric with what a step returned.

        Raises
        ------
        KeyError
            When that has no such values.
        TypeError
            When the metric does not take them.
        """
        arguments = [self._find(values, name, step) for name in self._in_order]
        named = {to: self._find(values, name, step) for to, name in self._by_name.items()}
        try:
            metric.update(*arguments, **named)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            self._refuse(metric, values, step, error)

    def _find(self, values: Mapping[str, Any], name: str, step: str) -> Any:
        if name in values:
            return values[name]
        found: Any = values
        for part in name.split("."):
            inner = _children(found)
            if part not in inner:
                had = ", ".join(map(repr, values))
                if self._in_order == _USUAL:
                    raise KeyError(
                        f"metrics= needs 'output' and 'target' in what {step} returns; it returned {had}."
                        f" Write {self._example(values)} to name others"
                    )
                raise KeyError(
                    f"metrics[{self.name!r}] takes {name!r}, which {step} did not return; it returned {had}"
                    + (f", and in {name.rpartition('.')[0]!r} {', '.join(map(repr, inner))}" if "." in name else "")
                )
            found = inner[part]
        return found

    def _refuse(self, metric: Any, values: Mapping[str, Any], step: str, error: Exception) -> NoReturn:
        names = (*self._in_order, *self._by_name.values())
        came = "; ".join(f"{name!r} is {_described(self._find(values, name, step))}" for name in names)
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise TypeError(
            f"metrics[{self.name!r}], a {type(metric).__name__}, does not take what {step} returned: {came}. It says:"
            f" {said[0].rstrip('.')}. Write {self._example(values)} to name what it gets"
        ) from error

    def _example(self, values: Mapping[str, Any]) -> str:
        """What to write, with names that are there."""
        first, second = (_children(values.get(name)) for name in _USUAL)
        common = [key for key in first if key in second]
        others = [key for key in values if key not in ("loss", "num_items", "grad_norm")]
        names = [f"{name}.{common[0]}" for name in _USUAL] if common else (others if len(others) > 1 else [])[:2]
        shown = ", ".join(map(repr, names or ["logits", "labels"]))
        return f"metrics={{{self.name!r}: (metric, {shown})}}"


def _children(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple)):
        return {str(i): child for i, child in enumerate(value)}
    return {}


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} ({str(value.dtype).removeprefix('torch.')})"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, list(value)[:5]))}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
