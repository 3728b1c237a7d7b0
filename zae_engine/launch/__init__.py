"""Accelerate configurations: read, check, fit to a machine, start."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import check_config
    from .findings import Finding
    from .resolve import Resolved, resolve_config, write_config

__all__ = ["Finding", "Resolved", "check_config", "resolve_config", "write_config"]

_MODULES = {"Finding": "findings", "check_config": "check"}  # the others are in `resolve`


def __getattr__(name: str) -> Any:
    """Import what is asked for: a training needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES.get(name, 'resolve')}", __name__), name)
