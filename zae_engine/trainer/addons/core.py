"""Where 0.7.6 had the base class of add-ons; its imports still work."""

from ..compose import AddOnBase
from ..trainer import T

__all__ = ["AddOnBase", "T"]
