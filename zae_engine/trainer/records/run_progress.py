"""One call of `run`, as far as it has come, in plain values."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..limits import Budget


@dataclass
class Call:
    """What one call of `run` counts from and has come to; the last one's is there until the next begins.

    Attributes
    ----------
    budget : Budget
        How long it goes on, and where it began.
    stop_reason : str or None
        Why it ends before its last epoch; all processes agree on it.
    wish : str or None
        Why this process wants it to end.
    epoch_began : float
        When the present epoch did, by time.perf_counter.
    tested_loss, tested_step : float or None
        Of the last validation since the scheduler's last step.
    tested_all : bool
        Whether each set had something to give, so that means can be compared.
    rows_before : int
        Rows of the history when it began.
    seconds_before : dict
        Seconds that earlier calls have taken, by what they went to.
    samples_before : int
        Samples that earlier calls have trained.
    warned : set of str
        What was warned of already.
    """

    budget: Budget = field(default_factory=lambda: Budget([], 0, 0))
    stop_reason: str | None = None
    wish: str | None = None
    epoch_began: float = field(default_factory=time.perf_counter)
    tested_loss: float | None = None
    tested_step: float | None = None
    tested_all: bool = True
    rows_before: int = 0
    seconds_before: dict[str, float] = field(default_factory=dict)
    samples_before: int = 0
    warned: set[str] = field(default_factory=set)

    def lasting_stop(self, step: int) -> str | None:
        """Why it ends, if that is not one of its limits, which a later call may put elsewhere."""
        reason = self.stop_reason or self.wish
        return None if reason == self.budget.spent(step) else reason
