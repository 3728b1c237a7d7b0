"""Accelerate configurations: read, check, fit to a machine, start."""

from .check import check_config
from .resolve import Resolved, resolve_config, write_config
from .yaml_file import Finding

__all__ = ["Finding", "Resolved", "check_config", "resolve_config", "write_config"]
