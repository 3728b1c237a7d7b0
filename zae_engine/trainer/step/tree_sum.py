"""Sums in one fixed tree: which additions are made depends on the number of terms only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class Tree(list[tuple[int, T]]):
    """Sums neighbours, then neighbouring sums, and so on, as the terms come, so that few of them are held at a time.

    It holds sums over powers of two of terms, as the digits of a binary counter: the largest first.

    Parameters
    ----------
    add : callable
        Returns the sum of two terms; it may be the first of them, changed.
    """

    def __init__(self, add: Callable[[T, T], T]) -> None:
        super().__init__()
        self._add = add

    def take(self, term: T) -> None:
        """Add the next term."""
        size = 1
        while self and self[-1][0] == size:
            size, term = size * 2, self._add(self.pop()[1], term)
        self.append((size, term))

    def total(self) -> T:
        """The sum of all; nothing is held after it."""
        total = self.pop()[1]
        while self:
            total = self._add(self.pop()[1], total)
        return total


def tree_sum(terms: Iterable[T], add: Callable[[T, T], T]) -> T:
    """The sum of `terms`, which are read one by one."""
    tree = Tree(add)
    for term in terms:
        tree.take(term)
    return tree.total()
