"""What the processes have to decide alike: when to stop, when to validate, and that they train the same."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from .group import Processes

_SECONDS = 0.5  # between two questions, as far as steps allow
_MOST = 64  # steps between them, since steps may become slower


class Wish(NamedTuple):
    """Why a process wants the run to end, why it is called away, and what is wrong, so that nobody can go on."""

    stop: str | None = None
    away: str | None = None
    wrong: str | None = None


NOTHING = Wish()


class Agreement:
    """Processes decide together at steps that all of them know; one process decides at once.

    These steps are half a second apart, but at most 64 steps. Any other step costs a comparison of two numbers.

    Parameters
    ----------
    processes : Processes
    step : int
        Optimizer steps (of an evaluation: batches) done so far.
    """

    def __init__(self, processes: Processes, step: int) -> None:
        self._processes = processes
        self._step, self._time = step, time.perf_counter()
        self._next = step + 1

    @property
    def next_step(self) -> float:
        """The step after which the processes ask each other; infinite where one decides by itself, at any step."""
        return self._next if self._processes.count > 1 else math.inf

    def due(self, step: int) -> bool:
        """Whether it may be decided after this step."""
        return step >= self._next or self._processes.count == 1

    def settle(self, step: int, wish: Wish = NOTHING, clocks: Sequence[bool] = ()) -> tuple[Wish, Sequence[bool]]:
        """Ask each other.

        Parameters
        ----------
        step : int
            Optimizer steps done.
        wish : Wish
            This process's.
        clocks : sequence of bool
            What it is time for by this process's clock.

        Returns
        -------
        The wishes of the first processes that have them, and process 0's clocks.
        """
        if self._processes.count == 1:
            return wish, clocks
        now = time.perf_counter()
        speed = (step - self._step) / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        ahead = min(_MOST, max(1, int(speed * _SECONDS)))
        first = self._processes.first
        mine = [wish != NOTHING, (step + ahead) if first else 0, *(late and first for late in clocks)]
        wishes, self._next, *late = self._processes.sum(mine).tolist()
        everyone = self._processes.gather(wish) if wishes else [NOTHING]
        first_ones = (next((reason for reason in reasons if reason), None) for reasons in zip(*everyone, strict=True))
        return Wish(*first_ones), list(map(bool, late))


def refuse_different(processes: Processes, settings: dict[str, Any]) -> None:
    """Refuse a training whose processes were set up differently, since they would wait for each other for ever."""
    everyone = processes.gather(settings)
    for name in dict.fromkeys(name for one in everyone for name in one):
        found = [one.get(name, "not there") for one in everyone]
        if other := [i for i, value in enumerate(found) if value != found[0]]:
            raise ValueError(
                f"{name} is {found[0]!r} on process 0 and {found[other[0]]!r} on process {other[0]}; every process has"
                " to run the same script with the same arguments and data, and the trainer gives each its share"
            )
