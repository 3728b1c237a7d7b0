"""Properties of whatever values: a few values that are the same in each run, and many others in tests marked slow."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings

FEW, MANY = 30, 1000


def holds_for(*strategies: object, few: int = FEW, many: int = MANY) -> Callable:
    """As hypothesis's ``given``; the search that takes long is a test beside it, of the same name and ``_for_long``."""

    def searched(test: Callable) -> Callable:
        long = settings(max_examples=many, deadline=None, database=None)(given(*strategies)(test))
        vars(sys.modules[test.__module__])[f"{test.__name__}_for_long"] = pytest.mark.slow(long)
        return settings(max_examples=few, deadline=None, derandomize=True, database=None)(given(*strategies)(test))

    return searched
