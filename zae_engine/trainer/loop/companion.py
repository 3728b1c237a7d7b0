"""What goes along with a run: asked where no step is half done, and when all processes are called away."""

from __future__ import annotations

from typing import NoReturn, Protocol

from ..interface import Face
from ..limits import Interval
from ..records.run_progress import Call
from ..step.trained_parameters import Trained
from .open_epoch import Loaded, Open


class Present(Protocol):
    """The call of `run` that goes on, as what goes along with it sees it; see `Session`, which it is."""

    trainer: Face
    call: Call
    opened: Open | None
    border: Trained
    called: str | None

    @property
    def step(self) -> int:
        """Optimizer steps done."""

    def wake(self) -> None:
        """Something is to be done as soon as no step is half done."""

    @property
    def is_over(self) -> bool:
        """Whether the run has come to its end, between two epochs."""


class CalledAway(BaseException):
    """Breaks an evaluation off. No Exception, so that nobody who handles errors keeps it to himself."""


class Companion:
    """The base of what an add-on has beside a trainer; each method does nothing, unless it is overridden.

    Parameters
    ----------
    interval : Interval, optional
        What it does by the clock.

    Attributes
    ----------
    due : bool
        Whether the processes have agreed that it is time.
    """

    ends_runs = False  # whether it can end a run in the middle, since all of it can be gone on with

    def __init__(self, interval: Interval | None = None) -> None:
        self.interval, self.due = interval, False

    def late(self) -> bool:
        """Whether it is time, by this process's clock."""
        return self.interval is not None and self.interval.late()

    def next_step(self, step: int) -> float:
        """The first step after `step` at which `at_rest` may have something to do, unless the clock calls."""
        return step + 1 if self.due or self.interval is None else self.interval.next_step(step)

    @property
    def loaded(self) -> Loaded | None:
        """What the next run goes on from, when something was loaded."""
        return None

    def begins(self, session: Present) -> None:
        """A run begins: nothing refuses it any more."""

    def at_rest(self, session: Present) -> None:
        """Between two steps or epochs, with nothing half done; every process calls it."""

    def leave(self, session: Present, reason: str) -> NoReturn:
        """End the run here, in the middle of something, since the processes are called away."""
        raise CalledAway(reason)

    def value_came(self) -> None:
        """The user has logged a value outside of a batch."""
