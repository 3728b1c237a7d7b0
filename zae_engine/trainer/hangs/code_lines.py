"""Places in programs: whose they are, and how they are written."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

OURS = Path(__file__).parents[2].as_posix() + "/"
_STANDARD = tuple({Path(sysconfig.get_path(name)).as_posix() + "/" for name in ("stdlib", "platstdlib")})


def is_ours(file: str) -> bool:
    """Whether a file is this package's."""
    return _slashed(file).startswith(OURS)


def is_library(file: str) -> bool:
    """Whether a file is neither the user's nor this package's."""
    path = _slashed(file)
    foreign = path.startswith((*_STANDARD, "<frozen")) or "/site-packages/" in path or "/dist-packages/" in path
    return foreign and not path.startswith(OURS)


def is_in(file: str, *parts: str) -> bool:
    """Whether any of some parts, with slashes, is in a file's path."""
    path = _slashed(file)
    return any(part in path for part in parts)


def line_of(file: str, line: int | str, function: str) -> str:
    """A place, as it is written for the user."""
    name = f"zae_engine/{_slashed(file).removeprefix(OURS)}" if is_ours(file) else file
    return f"{name}:{line}, in {function}"


def _slashed(file: str) -> str:
    return file.replace(os.sep, "/") if os.sep != "/" else file
