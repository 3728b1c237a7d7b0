"""A thread that says who is waited for when nothing goes on; it costs a step nothing."""

from __future__ import annotations

import atexit
import functools
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

from .peer_store import Peers, several
from .thread_place import CODE, place_of
from .waits import Waits, say

_TICK = 1.0  # seconds between two looks
_GRACE = 10.0  # seconds after the limit in which a process may end by itself
_LOOKS = 3  # after which the others have told what they have to tell

_LOST = re.compile(r"gloo|nccl|connection (closed|reset)|timed out|broken pipe", re.IGNORECASE)
_WORKER = "DataLoader worker (pid"

_current: Watch | None = None


class Watch:
    """Looks at a process from a thread beside it, once a second.

    As long as what the training counts goes on, there is nothing to do. Once it has stood still for a while, the
    process tells the others where it stands, and the first of those that wait says for whom.

    Parameters
    ----------
    waits : Waits
    peers : Peers
    counted : callable
        Returns what the training counts; other values mean that it goes on.
    """

    def __init__(self, waits: Waits, peers: Peers, counted: Callable[[], Any]) -> None:
        self.waits, self.peers, self._counted = waits, peers, counted
        self._ended = threading.Event()
        self._go_on(None)

    @property
    def _tick(self) -> float:
        return min(_TICK, self.waits.notice / 5)

    def start(self) -> None:
        """Begin to look at the present thread; there is one watch in a process."""
        global _current
        if _current is not None:
            _current.pause()
        _current, self._of = self, threading.get_ident()
        _register()
        self.go_on()

    def end(self) -> None:
        """Look no more."""
        global _current
        self.pause()
        if _current is self:
            _current = None

    def go_on(self) -> None:
        """Look, in a thread."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, args=[self._ended], daemon=True, name="zae-watch")
        self._thread.start()

    def pause(self) -> None:
        """Let the thread end."""
        self._ended.set()
        self._thread.join(2.0)
        self.let_go()

    def let_go(self) -> None:
        """Forget where the process stood: a frame that is kept keeps all that it holds, a whole trainer say."""
        self._place = CODE

    def _look(self, ended: threading.Event) -> None:
        while not ended.wait(self._tick):
            count = self._counted()
            if not self.waits.running:
                self._stand(told=False)
            if count != self._count:
                self._go_on(count)
            elif time.monotonic() - self._since >= self.waits.notice:
                self._judge()

    def _go_on(self, count: Any) -> None:
        self._count, self._since = count, time.monotonic()
        self._stood, self._next, self._asked = self._since, 0.0, False
        self._sentence = ""
        self._computed = time.process_time()
        self.let_go()
        self.peers.forget()

    def _judge(self) -> None:
        self._stand()
        waits = self._place.kind != "code"
        waited = time.monotonic() - self._stood if waits else 0.0
        self.peers.tell(kind=self._place.kind, words=self._words(), waited=waited)
        told = self.peers.told()
        now = time.monotonic()  # a store that does not answer takes its time
        waited = now - self._stood if waits else 0.0
        self._asked |= any(state["waited"] >= self.waits.notice for state in told.values())
        self._say(told, waited)
        limit = self.waits.limit
        if limit is None or not self.waits.running:
            return
        if waited >= limit + _GRACE or (self._asked and now - self._since >= limit + 2 * _GRACE):
            self._leave()

    def _stand(self, told: bool = True) -> None:
        """See where this process stands, and since when; a loader's workers are asked only for what is told."""
        before, computed = self._place, time.process_time() - self._computed
        self._computed += computed
        self._place = place_of(self._of, told)
        mine = self._place.kind == "loader" or self.waits.count > 1
        if not mine or (self._place.kind == "backward" and computed > self._tick / 4):  # it computes, and is slow
            self._place = self._place._replace(kind="code", frame=None)
        # Within a run nothing has been counted since; outside of one, this very exchange has to last.
        if not self.waits.running and (self._place.kind == "code" or self._place.frame is not before.frame):
            self._stood = time.monotonic()

    def _words(self) -> str:
        return f"is {self._place.words}, {self._at()}"

    def _at(self) -> str:
        return f"in {self.waits.where()}" if self.waits.running else "outside of the epochs"

    def _say(self, told: dict[int, dict[str, Any]], waited: float) -> None:
        """If this is the first process that waits, say for whom."""
        if waited < self.waits.notice + _LOOKS * self._tick:
            return
        mine, limit = self.peers.index, self.waits.limit
        self._sentence = self._whom(told)
        first = not any(i < mine and state["waited"] >= self.waits.notice for i, state in told.items())
        over = limit is not None and waited >= limit
        if first and (waited >= self._next or (over and self._next < float("inf"))):
            self._next = float("inf") if over else 2 * waited
            ending = f"; max_wait={limit:g} s is over, and the run ends" if over else ""
            say(f"for {waited:.0f} s nothing has gone on: {self._sentence}{ending}")

    def _whom(self, told: dict[int, dict[str, Any]]) -> str:
        """Where this process is, and which of the others has not come."""
        own = f"{self.peers.describe(self.peers.index)} {self._words()}"
        if self._place.kind == "loader":
            return own
        others = [i for i in range(self.waits.count) if i != self.peers.index]
        at = {i: told[i]["words"] if i in told else self.peers.silent(i) for i in others}
        missing = [i for i in others if i not in told or told[i]["kind"] not in ("exchange", "backward")]
        named = several([f"{self.peers.describe(i)}, which {at[i]}" for i in missing or others])
        return f"{own}, and waits for {named}" + ("" if missing else ": all wait for each other, or for the network")

    def _leave(self) -> None:
        """End a process that cannot be ended from within, since its thread is in an exchange or hangs."""
        say(f"{self._sentence or self._words()}; max_wait={self.waits.limit:g} s is over, so this process ends")
        os._exit(1)

    def explain(self, error: Exception) -> str:
        """Who has made an exchange fail, or lost a worker; empty for any other error."""
        text = " ".join(str(error).split())
        if _WORKER in text:
            return f"{self.waits.name} has lost a worker of its loader {self._at()}: {text}"
        if not isinstance(error, RuntimeError) or not _LOST.search(text):
            return ""
        end = time.monotonic() + 2.0
        while time.monotonic() < end and not self._sentence:
            if named := self._lost():
                self._next = float("inf")  # that says it all
                return f"{self.waits.name} has lost {several(named)}, {self._at()}"
            time.sleep(self._tick / 2)
        return self._sentence and f"for too long nothing has gone on: {self._sentence}"

    def _lost(self) -> list[str]:
        """The others that have failed, are gone, or are stopped, so that they cannot tell anything."""
        told = {i: state["words"] for i, state in self.peers.told().items() if state["kind"] == "failed"}
        others = [i for i in range(self.waits.count) if i != self.peers.index]
        lost = {i: told.get(i, self.peers.silent(i)) for i in others if i in told or self.peers.is_lost(i)}
        return [f"{self.peers.describe(i)}, which {words}" for i, words in lost.items()]

    def fail(self, error: BaseException) -> None:
        """Let the others know why this process ends."""
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        self.peers.tell(kind="failed", words=f"has failed {self._at()}: {text}", waited=0.0)


@functools.cache
def _register() -> None:
    """A fork beside a thread is a risk, and later Pythons warn of it: there is none of ours at that moment."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_pause, after_in_parent=_go_on, after_in_child=_forget)
    atexit.register(_pause)


def _pause() -> None:
    if _current is not None:
        _current.pause()


def _go_on() -> None:
    if _current is not None:
        _current.go_on()


def _forget() -> None:
    global _current
    _current = None


def let_go() -> None:
    """Let the watch of this process hold nothing of what it has seen, until its next look."""
    if _current is not None:
        _current.let_go()
