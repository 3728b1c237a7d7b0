"""How long a process waits, and the end of its patience with a loader's workers."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import dataloader

from ...launch import child_processes
from .loader_workers import check_sockets, describe_awaited, let_tell, lost_workers

NOTICE = 30.0  # seconds after which a wait is told


class WaitError(RuntimeError):
    """A process has waited too long."""


def say(text: str) -> None:
    """Print what a process waits for."""
    print(f"zae-engine: {text}", file=sys.stderr, flush=True)


class Waits:
    """How long one process may wait, and who it is.

    Parameters
    ----------
    limit : float or None
        Seconds after which a wait ends the run; None waits for ever.
    index, count : int
        Of the processes.
    where : callable
        Says what the training is at, such as ``"step 12"``.

    Attributes
    ----------
    explain : callable
        Says who has made an exchange fail; empty for any other error.
    """

    def __init__(self, limit: float | None, index: int, count: int, where: Callable[[], str]) -> None:
        self.limit, self.count, self.where = limit, count, where
        self.notice = NOTICE if limit is None else min(NOTICE, limit / 2)
        self.explain: Callable[[Exception], str] = lambda error: ""
        self.running = False
        self.name = f"process {index} of {count} (pid {os.getpid()})" if count > 1 else "this process"

    @property
    def watched(self) -> bool:
        """Whether a thread beside this one looks, and says who is waited for."""
        return self.running or self.count > 1

    def over(self, waited: float, whom: str) -> WaitError:
        """What ends a run that has waited too long."""
        text = f"for {waited:.0f} s, {self.name} has waited in {self.where()} for {whom}"
        return WaitError(f"{text}; max_wait={self.limit:g} s is over")

    def walk(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Begin to walk over a loader; whoever waits for its workers does not do so for ever."""
        if getattr(loader, "num_workers", 0):
            check_sockets()
            let_tell()
        iterator = child_processes.walk(loader)
        multiprocessing = getattr(dataloader, "_MultiProcessingDataLoaderIter", ())
        if isinstance(iterator, multiprocessing) and not iterator._timeout and "_try_get_data" not in vars(iterator):
            vars(iterator)["_try_get_data"] = _Patience(iterator, self)
        return iterator


class _Patience:
    """In place of what torch's loader calls again and again until a batch has come."""

    def __init__(self, iterator: Any, waits: Waits) -> None:
        self._iterator, self._waits = weakref.ref(iterator), waits  # which ends its workers once nothing refers to it
        self._take, self._waited = type(iterator)._try_get_data, 0.0

    def __call__(self, timeout: float = 5.0) -> tuple[bool, Any]:
        timeout = min(timeout, self._waits.notice)
        iterator = self._iterator()
        try:
            there, batch = self._take(iterator, timeout)
        except (OSError, EOFError, RuntimeError) as error:  # whatever of a worker's end is seen first
            if lost := lost_workers(iterator):
                raise RuntimeError(f"{self._waits.name} has lost {lost}, in {self._waits.where()}") from error
            raise
        if there:
            self._waited = 0.0
        else:
            before, self._waited = self._waited, self._waited + timeout
            if before < self._waits.notice <= self._waited and not self._waits.watched:
                awaited = describe_awaited(iterator)
                say(f"for {self._waited:.0f} s nothing has gone on: this process waits for {awaited}")
            if self._waits.limit is not None and self._waited >= self._waits.limit:
                raise self._waits.over(self._waited, describe_awaited(iterator))
        return there, batch
