"""Warnings that name the line of the user's which led to them."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path

from ..terminal import printable

# Whose lines are never the cause: this package's, and those that stand between two of its own.
_OURS = (str(Path(__file__).parents[1]) + os.sep, contextlib.__file__)


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and let the warning name the innermost line outside of this package.

    A fixed ``stacklevel`` would be wrong as soon as an add-on's override stands between, and ``skip_file_prefixes``
    begins with Python 3.12.
    """
    warnings.warn(printable(text), category, stacklevel=_frames_of_ours() + 1)


def _frames_of_ours() -> int:
    """How many frames, from `warn` outwards, are this package's; all of them in a thread of its own."""
    frame, count = sys._getframe(1), 0
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, count = frame.f_back, count + 1  # type: ignore[assignment]  # the outermost frame has None
    return count
