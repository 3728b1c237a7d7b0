"""Signals that ask a run to end: noted when they come, acted on where all processes can."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN = 75  # EX_TEMPFAIL of sysexits.h: not done, run me again
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
_TWICE = 1.0  # seconds within which a terminal and a launcher deliver one Ctrl-C twice


class Interrupted(SystemExit):
    """The run was asked to end, and has saved where it was; the process exits with 75, "run me again"."""

    def __init__(self, reason: str) -> None:
        super().__init__(AGAIN)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@contextmanager
def signals_noted(note: Callable[[str], Any]) -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGUSR1 call `note` with their name; a second Ctrl-C raises KeyboardInterrupt.

    Python lets only its main thread handle signals; in any other one nothing is changed. Processes that are forked
    inside (workers of a loader) do not note: SIGTERM ends them, and the others are their parent's to act on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Handler(note)
    before = {number: signal.signal(number, handler) for name in _NAMES if (number := getattr(signal, name, None))}
    try:
        yield
    finally:
        for number, action in before.items():
            if signal.getsignal(number) is handler:  # nobody has put another one there meanwhile
                signal.signal(number, action if action is not None else signal.SIG_DFL)


class _Handler:
    def __init__(self, note: Callable[[str], Any]) -> None:
        self._note, self._owner = note, os.getpid()
        self._interrupted: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is not None and now - self._interrupted > _TWICE:
                raise KeyboardInterrupt
            self._interrupted = self._interrupted or now
        self._note(signal.Signals(number).name)
