"""Names of parameters as the user's own module has them, whatever was put around its parts. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

_COMPILED = "_orig_mod"  # what torch.compile puts into the name, at each level at which it was called
_V = TypeVar("_V")


def own_name(name: str) -> str:
    """A parameter's or module's name without ``_orig_mod``: ``"body._orig_mod.weight"`` is ``"body.weight"``."""
    return ".".join(part for part in name.split(".") if part != _COMPILED) if _COMPILED in name else name


def own_names(named: Mapping[str, _V]) -> dict[str, _V]:
    """The same by their own names; as they are, should two have one name then."""
    own = {own_name(name): value for name, value in named.items()}
    return own if len(own) == len(named) else dict(named)
