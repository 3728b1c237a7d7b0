"""Trainings that take turns: each in a process of its own, one at work at a time, so that noise disturbs all alike.

A process lives as long as its training. What a training has beside it (threads, a client's own processes) is its own,
and where a turn ends, the training waits in its loader for the next one.
"""

from __future__ import annotations

import multiprocessing
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time, thread_time
from typing import Any

import torch

from .output import discarded

PATIENCE = 120.0  # seconds for a process to be ready, or to end


@dataclass(frozen=True)
class Turn:
    """What was done in one turn: optimizer steps, seconds, CPU seconds of the process and of the training thread."""

    steps: int
    wall: float
    cpu: float
    thread: float

    def __add__(self, other: Turn) -> Turn:
        return Turn(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


class Turns:
    """A loader that hands out ready batches, as long as it is its process's turn.

    Parameters
    ----------
    batches : sequence
        Handed out again and again.
    epoch : int
        Batches of an epoch.
    connection : Connection
        Tells how many seconds the next turn has, None for the end; gets the `Turn` of the last one.

    Attributes
    ----------
    over : bool
        Whether the end has come, and when that was (`ended`).
    resume : callable
        Called with the seconds that the training has just stood, to let its clocks stand, too.
    stop : callable
        Called at the end, to let the training end.
    """

    def __init__(self, batches: Sequence[Any], epoch: int, connection: Connection) -> None:
        self._batches, self._epoch, self._connection = batches, epoch, connection
        self.resume: Callable[[float], None] = lambda _: None
        self.stop: Callable[[], None] = lambda: None
        self.over, self.ended = False, 0.0
        self._steps, self._end = 0, 0.0
        self._clocks = (0.0, 0.0, 0.0)

    def wait(self) -> None:
        """Wait for the first turn: with everything ready, and nothing begun that goes on beside the training."""
        self._hand_over()

    def __iter__(self) -> Iterator[Any]:
        """Go through an epoch."""
        count, batches = len(self._batches), self._batches
        for number in range(self._epoch):
            if perf_counter() >= self._end:
                self._hand_over()
                if self.over:
                    self.stop()
                    return
            self._steps += 1
            yield batches[number % count]

    def _hand_over(self) -> None:
        now = _clocks()
        if self._end:
            self._connection.send(Turn(self._steps, *(b - a for a, b in zip(self._clocks, now, strict=True))))
        else:
            self._connection.send(now[0])  # ready
        seconds = self._connection.recv()
        if seconds is None:
            self.over, self.ended = True, perf_counter()
            return
        if self._end:
            self.resume(perf_counter() - now[0])
        self._steps, self._clocks = 0, _clocks()
        self._end = self._clocks[0] + seconds


def _clocks() -> tuple[float, float, float]:
    return perf_counter(), process_time(), thread_time()


class Worker:
    """A process with one training.

    Parameters
    ----------
    work : callable
        Called in the process with ``work(case, turns, folder, facts)``; it trains until the loader is at its end, and
        puts into `facts` what else is to be known.
    """

    def __init__(self, work: Callable[..., None], case: Any, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_be, args=(work, case, folder, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Wait until it is ready for its first turn."""
        self._receive()

    def turn(self, seconds: float) -> Turn:
        """Train for so long."""
        self._connection.send(seconds)
        found: Turn = self._receive(seconds)
        return found

    def end(self) -> dict[str, Any]:
        """End the training, and return the facts."""
        self._connection.send(None)
        facts: dict[str, Any] = self._receive()
        self._process.join(PATIENCE)
        return facts

    def kill(self) -> None:
        """End the process, if it lives."""
        with suppress(ValueError):
            self._process.kill()

    def _receive(self, seconds: float = 0.0) -> Any:
        if not self._connection.poll(seconds + PATIENCE):
            raise TimeoutError(f"nothing came from process {self._process.pid}")
        found = self._connection.recv()
        if isinstance(found, str):
            raise RuntimeError(found)
        return found


def _be(work: Callable[..., None], case: Any, folder: Path, connection: Connection) -> None:
    """Be the process."""
    torch.set_num_threads(1)
    threading.current_thread().name = "training"
    try:
        turns = Turns(case.batches(), case.epoch, connection)
        facts = dict[str, Any]()
        with discarded("terminal"):
            work(case, turns, folder, facts)
    except EOFError:  # the one who measures is gone
        return
    except BaseException:
        connection.send(traceback.format_exc())
        raise
    connection.send(facts)
