"""Which of some names a mistyped one was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

# From here on a name is a slip for another; 'train_loader' and 'valid_loader', which are none, come to 0.75.
_ALIKE = 0.78
_ALIKE_FILES = 0.66  # of folders' names, which are short: 'rum' for 'run'


def nearest(name: str, names: Iterable[str], alike: float = _ALIKE) -> str | None:
    """The one of `names` that `name` is a slip of the pen for, or None when none is near."""
    by_lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=alike)
    return by_lower[found[0]] if found else None


def nearest_path(path: Path) -> str | None:
    """The path beside `path` that it is a slip of the pen for; the way to it, which both share, makes nothing near."""
    try:
        there = [other.name for other in path.parent.iterdir()]
    except OSError:
        return None
    found = nearest(path.name, there, _ALIKE_FILES)
    return str(path.with_name(found)) if found else None
