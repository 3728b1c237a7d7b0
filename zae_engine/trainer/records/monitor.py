"""What tells the best weights: a metric, and which direction of it is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...checkpoint.best_rule import MODES, RULE, direction_of, is_better, is_finite, resolved
from .. import refusals

Row = Mapping[str, Any]


class Monitor:
    """A metric's name with its direction, which is the given one, the metric object's own, or told by the name.

    Parameters
    ----------
    name : str
        As the user writes it: ``'acc'`` or ``'test_acc'``.
    mode : {'min', 'max'} or None
        None infers it.
    metrics : mapping
        The trainer's metric objects by name; torchmetrics' say whether ``higher_is_better``.

    Attributes
    ----------
    of : str or None
        The column that the best so far is of: the validation's, or without one, the training's.

    Raises
    ------
    TypeError, ValueError
        For what is no name or no direction, or a name that does not tell its direction.
    """

    def __init__(self, name: str, mode: str | None, metrics: Mapping[str, Any]) -> None:
        self._of_metrics = dict(_directions(metrics))
        self._chosen: str | None = None  # since the name was
        self._name = ""
        self.of: str | None = None
        if mode is not None:
            self.choose(mode)
        self.rename(name)
        self.mode  # noqa: B018  # refuses a name that does not tell

    @property
    def name(self) -> str:
        """The metric's, as it was given."""
        return self._name

    @property
    def known_mode(self) -> str | None:
        """The direction; None as long as it was not given and the name does not tell."""
        return self._mode

    @property
    def mode(self) -> str:
        """The direction.

        Raises
        ------
        ValueError
            As long as it was not given and the name does not tell.
        """
        return resolved(self._name, self._mode, "monitor_mode")

    def rename(self, name: Any) -> None:
        """Watch another metric; a direction that was chosen since the last time is meant for it."""
        if not isinstance(name, str) or not name:
            raise TypeError(
                f"monitor={name!r} is not a metric's name; write 'loss', or another metric's, such as 'acc'"
            )
        self._mode = self._chosen or self.direction(name)
        self._name, self._chosen, self.of = name, None, None

    def choose(self, mode: Any) -> None:
        """Take a direction; None infers it again."""
        if mode is not None:
            refusals.check_choice("monitor_mode", mode, MODES)
        self._chosen = mode
        self._mode = mode or self.direction(self._name)

    def measure(self, metrics: Mapping[str, Any]) -> None:
        """Be told by other metric objects."""
        self._of_metrics = dict(_directions(metrics))
        self._mode = self._mode or self.direction(self._name)

    def direction(self, name: str) -> str | None:
        """The direction of any metric, as far as it is known."""
        plain = _plain(name)
        of_objects = [key for key in self._of_metrics if plain == key or plain.endswith(f"_{key}")]
        if not of_objects:
            return direction_of(plain)
        found = self._of_metrics[key := max(of_objects, key=len)]
        told = direction_of(plain.removesuffix(key))  # 'loss_cls' beside an accuracy 'cls' is not that of a set 'loss'
        return found if told in (None, found) else None

    @property
    def watched(self) -> list[str | None]:
        """Which values may be compared with each other: name, direction, column; for a checkpoint."""
        return [self._name, self._mode, self.of]

    def better(self, value: float, than: float) -> bool:
        """Whether a value is better than the best so far."""
        return is_better(value, than, self.mode)

    def worst(self) -> float:
        """What any value is better than."""
        return -math.inf if self._mode == "max" else math.inf

    def column(self, row: Row, split: str) -> str | None:
        """The row's name for the value, when `split` ('train' or 'test') tells; None in a row that lacks it."""
        return next((name for name in (self._name, f"{split}_{self._name}") if row.get(name) is not None), None)

    def turns_to(self, column: str) -> str | None:
        """Be told the column that tells now; return the one that told before, if that is another one."""
        before, self.of = self.of, column
        return before if before != column else None

    def takes(self, watched: Sequence[str | None]) -> bool:
        """Go on with what a checkpoint has watched; False when that is another metric, or another direction of it."""
        if [*watched[:2]] != self.watched[:2]:
            return False
        self.of = watched[2]
        return True

    def values(self, rows: Sequence[Row]) -> list[float]:
        """All values of it in the rows of a run: the validation's, or where there is none, the training's."""
        for name in (self._name, f"test_{self._name}", f"train_{self._name}"):
            if values := [row[name] for row in rows if row.get(name) is not None]:
                return values
        return []

    def never_finite(self, rows: Sequence[Row]) -> str:
        """Say that the metric was never finite; an empty text when it was, or was never there."""
        values = self.values(rows)
        if not values or any(map(is_finite, values)):
            return ""
        kinds = " or ".join(dict.fromkeys(map(str, values)))
        times = f"{kinds} in each of {len(values)} rows" if len(values) > 1 else kinds
        return f"{self._name} was never finite ({times})"

    def why_none(self, rows: Sequence[Row]) -> str:
        """Say why there are no best weights."""
        if said := self.never_finite(rows):
            return f"there are no best weights, since {said}, and {RULE}"
        if rows and not self.values(rows):
            return f"there are no best weights, since no epoch has had a value {self._name!r} (monitor=)"
        if rows:
            return f"there are no best weights, since no validation has given all that {self._name!r} is decided by"
        return "there are no best weights yet; they are kept from the first epoch's end on"


def _plain(name: str) -> str:
    return name.removeprefix("train_").removeprefix("test_")


def _directions(metrics: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Of the metric objects that say it; those of a collection under ``name_key``, as their values are."""
    for name, metric in metrics.items():
        inner = getattr(metric, "items", None)
        members = {f"{name}_{key}": each for key, each in inner()} if callable(inner) else {name: metric}
        for key, member in members.items():
            higher = getattr(member, "higher_is_better", None)
            if isinstance(higher, bool):
                yield key, "max" if higher else "min"
