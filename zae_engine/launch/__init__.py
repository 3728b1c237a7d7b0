"""Accelerate configurations: read, check, fit to a machine, start."""

from .check import check_config
from .document import Finding
from .resolve import Resolved, resolve_config, write_config

__all__ = ["Finding", "Resolved", "check_config", "resolve_config", "write_config"]
