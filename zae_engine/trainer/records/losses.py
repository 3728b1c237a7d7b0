"""The loss of every step over all epochs, as far as there is room."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

MOST = 1 << 20  # that are kept for sure; eight bytes each


class Losses:
    """One number a step; of a very long run the last million or two.

    Attributes
    ----------
    values : array of float
        The ones that are kept.
    before : int
        How many there were before these.
    """

    def __init__(self, values: Iterable[float] = (), before: int = 0) -> None:
        self.values, self.before = array("d", values), before

    @property
    def count(self) -> int:
        """How many there have been."""
        return self.before + len(self.values)

    def add(self, values: array[float]) -> None:
        """Put these behind the others."""
        self.values.extend(values)
        if len(self.values) >= 2 * MOST:
            self.before += len(self.values) - MOST
            del self.values[:-MOST]

    def take_back(self, count: int) -> None:
        """Forget those that came when there were so many."""
        del self.values[max(0, count - self.before) :]

    def until(self, count: int) -> array[float]:
        """Those that were there when there were so many."""
        return self.values[: max(0, count - self.before)]
