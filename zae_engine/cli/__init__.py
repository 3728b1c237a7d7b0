"""``zae``: what is done from a terminal, with configurations, checkpoints and runs."""

from .main import main

__all__ = ["main"]
