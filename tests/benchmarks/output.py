"""Where the output of what is measured goes: nowhere, by way of a stream that passes for a terminal."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


class Terminal(io.TextIOWrapper):
    """The null device as a terminal, so that every trainer draws the bar that its user would see."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@contextmanager
def discarded(kind: str) -> Iterator[None]:
    """Discard output and warnings.

    Parameters
    ----------
    kind : {'terminal', 'file'}
        What the output seems to go to.
    """
    stream = Terminal if kind == "terminal" else io.TextIOWrapper
    with (
        stream(open(os.devnull, "wb"), encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
