"""Counters of a run: which optimizer step, and which epoch, comes next."""

from __future__ import annotations


class ProgressChecker:
    """Counts optimizer steps and epochs, both from 1: what is counted is the one that comes next.

    Attributes
    ----------
    step, epoch : int
        Their numbers.
    """

    def __init__(self) -> None:
        self.init_state()

    def update_step(self) -> None:
        """Count a step."""
        self.step += 1

    def update_epoch(self) -> None:
        """Count an epoch."""
        self.epoch += 1

    def get_step(self) -> int:
        """The number of the optimizer step that comes next."""
        return self.step

    def get_epoch(self) -> int:
        """The number of the epoch that comes next."""
        return self.epoch

    def init_state(self, step: int = 1, epoch: int = 1) -> None:
        """Count from here."""
        self.step, self.epoch = step, epoch
