"""What a logger's work takes of the time: when it may go on, and of how many steps a record has to be."""

from __future__ import annotations

import math
import sys
import threading
import time

_CREDIT = 10.0  # seconds of the run whose share can be saved up
_AHEAD = 10.0  # seconds that a logger may be behind, and within which it should catch up then
_AT_END = 8.0  # the same, when the run is over and waits for it
_ENOUGH = 30  # records after which their price is known; or so many seconds of them:
_LONG = 2.0
_OURS = ("logger ", "checkpoint")  # threads of loggers and of what is written
_KNOWN = 200  # records over which prices are smoothed


class Pacing:
    """Measures the work of one logger, in its thread.

    What it takes of the interpreter's time is counted as CPU time: of its own thread, and of those that its client has
    started in this process. A record that only waits, for a disk or a network, has its price in time, too: a logger
    that cannot follow gets fewer ones.

    Parameters
    ----------
    share : float
        What it may take of the time.

    Attributes
    ----------
    stride : int
        How many steps a record is of.
    """

    def __init__(self, share: float) -> None:
        self.share, self.stride = share, 1
        self._threads = Threads()
        self._cpu = self._began = self._ended = 0.0
        self._paid = -math.inf  # until when the share of the time is used up
        self._count = self._handed = 0  # records since the last plan, and the last end
        self._sums = [0.0, 0.0, 0.0]  # of many records: their number, CPU time, time
        self._closing, self._flushing = 0.0, 0.0  # CPU time of what is done after records: each time, and a record
        self._speed: float | None = None  # steps a second
        self._seen = (0.0, 0)
        self._started, self._hurries = 0.0, False

    @property
    def price(self) -> float:
        """Seconds of the run that a record costs: as long as it takes, or as its share of the time takes to pay it."""
        count, cpu, wall = self._sums
        return max(cpu / self.share, wall) / count if count else 0.0

    @property
    def milliseconds(self) -> float:
        """How long a record takes."""
        count, cpu, wall = self._sums
        return 1000 * (cpu if cpu / self.share > wall else wall) / max(count, 1.0)

    @property
    def is_due(self) -> bool:
        """Whether so many records were handed over that it is time for another plan."""
        return self._count >= _ENOUGH or time.perf_counter() - self._began > 1.0

    def start(self) -> None:
        """The client has started, which is no part of what its records take."""
        self._threads.look()
        self._cpu, self._started = self._threads.spent(), time.time()

    def plan(self, steps: int, newest: int, told: float, hurry: bool) -> bool:
        """Choose the stride; return whether it has grown.

        Parameters
        ----------
        steps : int
            That wait.
        newest : int
            The last one of them.
        told : float
            Of when the last record was, in seconds since 1970.
        hurry : bool
            Whether the run is over.
        """
        self.close()
        now, before = self._began, self.stride
        if hurry and not self._hurries:  # the training, and what else has begun with it, is in nobody's way any more
            self._sums = [0.0, 0.0, 0.0]
        self._hurries = hurry
        if newest > self._seen[1] and now - self._seen[0] > 1.0:
            self._speed = (newest - self._seen[1]) / (now - self._seen[0]) if self._seen[1] else None
            self._seen = (now, newest)
        count, _, wall = self._sums
        if count < _ENOUGH and wall < _LONG:
            return False
        if hurry:
            self.stride = max(before, math.ceil(steps * wall / count / _AT_END))
        elif time.time() - max(told, self._started) > _AHEAD:
            self.stride = max(before, math.ceil(1.25 * steps * self.price / _AHEAD))
        elif self._speed is not None and 2 * self._speed * self.price < before:
            self.stride = max(1, math.ceil(self._speed * self.price))
        return self.stride > before

    def goes_on(self) -> bool:
        """A record was handed over: whether another one is paid for."""
        self._count, self._handed = self._count + 1, self._handed + 1
        if not self._ended:  # nobody knows yet what comes after them
            return self._handed < _ENOUGH
        cpu, now = self._threads.spent() - self._cpu + self._handed * self._flushing, time.perf_counter()
        return max(self._paid, now - _CREDIT) + cpu / self.share <= now

    def close(self) -> None:
        """Note what the records since the last plan took."""
        if self._count:
            keep = 0.5 ** (self._count / _KNOWN)
            new = (self._count, self._spent(), time.perf_counter() - self._began)
            self._sums = [keep * before + more for before, more in zip(self._sums, new, strict=True)]
        self._count, self._began = 0, time.perf_counter()

    def end(self) -> None:
        """What is done after some records is done, too."""
        cpu, now, count = self._spent(), time.perf_counter(), self._handed
        if count:
            self._sums = [self._sums[0], self._sums[1] + cpu, self._sums[2] + now - self._began]
            first = not self._ended
            self._closing = cpu if first else (self._closing + cpu) / 2
            self._flushing = cpu / count if first else (self._flushing + cpu / count) / 2
            self._ended, self._handed = now, 0

    def _spent(self) -> float:
        """CPU time since the last time, which is to be paid."""
        self._threads.look()
        spent = self._threads.spent()
        cpu, self._cpu = max(0.0, spent - self._cpu), spent
        now = time.perf_counter()
        self._paid = min(max(self._paid, now - _CREDIT) + cpu / self.share, now + _AHEAD)
        return cpu

    def wait(self) -> float:
        """Seconds until it is worth while to go on: in ten seconds at the latest."""
        now = time.perf_counter()
        worth = min(max(0.05, 4 * self._closing / self.share), _CREDIT / 2)
        return min(max(self._paid, now - _CREDIT) + worth, self._ended + _AHEAD) - now


class Threads:
    """The CPU time of this thread, and of those that came since it began to look, but loggers' own."""

    def __init__(self) -> None:
        self._known = {thread.ident for thread in threading.enumerate()}
        self._clocks = dict[int, float]()  # by clock, how much it has told last
        self._looks = 2  # a client starts its threads when it starts, or at its first records

    def look(self) -> None:
        """Find the threads that have come."""
        if not self._looks or not sys.platform.startswith("linux"):
            return
        self._looks -= 1
        for thread in threading.enumerate():
            is_ours = thread.name.startswith(_OURS) or "pin_memory" in thread.name
            if thread.ident not in self._known and not is_ours and thread.native_id is not None:
                self._clocks[_clock_of(thread.native_id)] = 0.0
            self._known.add(thread.ident)

    def spent(self) -> float:
        """Seconds so far; those of a thread that has ended stay."""
        for clock in self._clocks:
            try:
                self._clocks[clock] = time.clock_gettime(clock)
            except OSError:  # the thread is gone
                continue
        return time.thread_time() + sum(self._clocks.values())


def _clock_of(native_id: int) -> int:
    """The CPU clock of a thread, as the kernel numbers them; asking for one of a thread that is gone is an error."""
    return (~native_id << 3) | 6
