"""What processes that are stuck tell each other about themselves, apart from what the training exchanges."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]  # comes with Accelerate
import torch

V = TypeVar("V")

_ANSWER = 5.0  # seconds within which the store has to answer
_FRESH = 8.0  # seconds after which who has told nothing more is silent
_GONE, _STOPPED = ("is gone", "has ended"), "is stopped"
_NAMED = 4  # processes in a sentence


def address() -> tuple[str, int]:
    """Where this process is: host and process id."""
    return socket.gethostname(), os.getpid()


class Peers:
    """A connection of its own to the store in which the processes have met, since the group's may be what is stuck.

    Parameters
    ----------
    addresses : list of (str, int)
        Host and process id of each process.
    index : int
        This one's number.
    """

    def __init__(self, addresses: list[tuple[str, int]], index: int) -> None:
        self.addresses, self.index = addresses, index
        self._store: Any = None
        self._talk: threading.Thread | None = None
        self._seen: dict[int, tuple[int, float]] = {}  # what each told last, and when that was news
        if len(addresses) == 1:
            return
        with suppress(Exception):  # whatever store it is; without one, only what the machine knows is told
            store: Any = torch.distributed.distributed_c10d._get_default_store()
            self._store = store.clone()
            self._store.set_timeout(timedelta(seconds=_ANSWER))

    def tell(self, **state: Any) -> None:
        """Let the others know how it stands with this process."""
        text = json.dumps({**state, "time": time.time_ns()})
        self._ask(lambda store: store.set(self._key(self.index), text))

    def told(self) -> dict[int, dict[str, Any]]:
        """What each of the others tells, again and again; of one that has failed, the last."""
        found, now = self._ask(self._read) or {}, time.monotonic()
        for i, state in found.items():
            before = self._seen.get(i)  # the first may be old: it counts when another one has followed
            if before is None or before[0] != state["time"]:
                self._seen[i] = state["time"], -math.inf if before is None else now
        return {i: s for i, s in found.items() if s["kind"] == "failed" or now - self._seen[i][1] < _FRESH}

    def forget(self) -> None:
        """Take what was told so far as old."""
        self._seen.clear()

    def _read(self, store: Any) -> dict[int, dict[str, Any]]:
        keys = {i: self._key(i) for i in range(len(self.addresses)) if i != self.index}
        return {i: json.loads(store.get(key)) for i, key in keys.items() if store.check([key])}

    def _key(self, index: int) -> str:
        return f"zae/standing/{index}"

    def _ask(self, question: Callable[[Any], V]) -> V | None:
        """Ask the store, in a thread, since a store whose host is stopped does not answer at all."""
        if self._store is None or (self._talk is not None and self._talk.is_alive()):
            return None
        answers: list[V] = []

        def talk() -> None:
            try:
                answers.append(question(self._store))
            except torch.distributed.DistNetworkError:  # its host is gone, of which torch tells at each question
                self._store = None
            except Exception:  # it has not answered
                return

        self._talk = threading.Thread(target=talk, daemon=True, name="zae-talk")
        self._talk.start()
        self._talk.join(_ANSWER)
        return answers[0] if answers else None

    def describe(self, index: int) -> str:
        """A process's number and where it is."""
        host, pid = self.addresses[index]
        if len(self.addresses) == 1:
            return "this process"
        on = "" if all(one == host for one, _ in self.addresses) else f" on {host}"
        return f"process {index} (pid {pid}{on})"

    def is_lost(self, index: int) -> bool:
        """Whether a process of this machine has ended, or is stopped."""
        return self.silent(index).startswith((*_GONE, _STOPPED))

    def silent(self, index: int) -> str:
        """What the machine knows about a process that has told nothing."""
        host, pid = self.addresses[index]
        if host != self.addresses[self.index][0]:
            return "does not answer"
        try:
            status = psutil.Process(pid).status()
        except psutil.Error:
            return _GONE[0]
        if status == psutil.STATUS_STOPPED:
            return f"{_STOPPED} (`kill -CONT {pid}` lets it go on)"
        return _GONE[1] if status == psutil.STATUS_ZOMBIE else "does not say that it is stuck"


def several(names: list[str]) -> str:
    """Names in a sentence."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more
