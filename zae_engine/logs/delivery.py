"""The thread that feeds one logger from the run's history, so that whatever it does cannot hurt the training."""

from __future__ import annotations

import atexit
import os
import re
import shlex
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ..redaction import redact
from ..terminal import printable
from .client_streams import keep_apart
from .cursor import Cursor
from .loggers.logger import Logger, Record, RunInfo
from .merging import Tail
from .pacing import Pacing
from .trust import check_begin

AGAIN = 60.0  # seconds until a logger that raised is tried again; each further time twice as many
SLOW = 60.0  # seconds after which a call is told to hang
PATIENCE = 30.0  # seconds that the end of a process waits for loggers
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MANY = 1000  # records between two flushes

_OPEN: weakref.WeakSet[Delivery] = weakref.WeakSet()  # those that the end of the process has to close


class Delivery:
    """The thread that delivers one run, and what it shares with the training's.

    Parameters
    ----------
    make : callable
        Makes the logger.
    info : RunInfo
    cursor : Cursor
        Where it begins.
    before : Delivery, optional
        Of another run, with the same logger: it has to end first.
    share : float, optional
        What it may take of the time.
    """

    def __init__(
        self,
        make: Callable[[], Logger],
        info: RunInfo,
        cursor: Cursor,
        before: Delivery | None = None,
        share: float | None = None,
    ) -> None:
        self._make, self._info, self._cursor, self._before = make, info, cursor, before
        self.name, self.process = cursor.logger, os.getpid()
        self._changed, self._asked, self._done = threading.Condition(), 0, 0
        self._ending, self._started, self._aside = threading.Event(), False, False
        self._share, self._newest, self._hurry = share, cursor.step, False
        self._told_at = 0.0  # of when the last record was
        self._pacing: Pacing | None = None
        self._reading: Iterator[Record] | None = None  # that has not come to its end
        self._status, self._summary = "done", dict[str, Any]()
        self._file: Path | None = None
        self._since: float | None = None  # when the call began in which the logger is
        self._last = cursor.place  # of the last record that was handed over, if not flushed yet
        self._problems, self._told, self.aloud = list[str](), set[str](), False
        self._patient, self._failed, self._final = True, False, False
        self.given_up = False  # whether its end was waited for in vain
        self._logger: Logger | None = None
        cursor.status = "open"
        _register(self)
        self._thread = threading.Thread(target=self._work, name=f"logger {self.name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and self.process == os.getpid()

    @property
    def ending(self) -> bool:
        """Whether it was told to end."""
        return self._ending.is_set()

    @property
    def id(self) -> str | None:
        """The run's at the logger's service."""
        return self._cursor.id

    def watch(self, info: RunInfo) -> None:
        """Have another value tell the best from now on, if it is another one."""
        self._info = replace(self._info, monitor=info.monitor, column=info.column)

    def wake(self, step: int = 0) -> None:
        """There are new lines, up to a step if that is known."""
        with self._changed:
            self._asked, self._newest = self._asked + 1, max(self._newest, step)
            self._changed.notify_all()

    def offer(self, summary: dict[str, Any], file: Path | None) -> None:
        """Have these kept with the next delivery."""
        self._summary, self._file = summary, file
        self.wake()

    def settle(self, patience: float) -> None:
        """Wait until all is delivered that is there now."""
        if self.alive:
            with self._changed:
                asked, self._hurry = self._asked, True
                self._changed.notify_all()
                done = self._changed.wait_for(lambda: self._done >= asked or self._aside, patience)
            if not done:
                self._tell(f"{self.name} has not taken everything yet; it goes on meanwhile, and {self._later()}")

    def end(self, status: str | None) -> None:
        """Have what is left delivered, and the run closed."""
        if self.alive:
            self._status = status or self._status
            self._ending.set()
            self.wake()

    def join(self, patience: float) -> None:
        """Wait until the thread has ended."""
        if self.alive:
            self._thread.join(patience)
            if self.alive:
                self.given_up = True
                self._tell(f"{self.name} is not done in time; {self._later()}")

    def problems(self) -> list[str]:
        """What the user should know."""
        since = self._since
        if since is not None and time.monotonic() - since > SLOW:
            self._tell(f"{self.name} has not answered for {SLOW:g} s; the training goes on, and {self._later()}")
        logger = self._logger
        for sentence in list(logger.notices) if logger is not None else ():
            self._tell(f"{self.name}: {sentence}")
        told = []
        while self._problems:  # one by one, since the thread may add to them
            told.append(self._problems.pop(0))
        return told

    def client(self, patience: float) -> Any:
        """The logger's client; one that does not start in time is not waited for again."""
        with self._changed:
            if self._patient and not self._started:
                self._changed.wait_for(lambda: self._started or self._aside, patience)
                self._patient = self._started
        return self._logger.client if self._started and self._logger is not None else None

    # ------------------------------------------------------------------ in the thread

    def _work(self) -> None:
        pause = AGAIN
        if self._before is not None:
            self._before.join(PATIENCE)
            self._before = None
        while True:
            self._final = self.ending
            try:
                logger = self._logger = self._make()
                self._start(logger)
                self._follow(logger)
                break
            except BaseException as error:  # a client may even exit; that is no reason to end a training
                self._set_aside(error, pause)
            if self._final:
                break
            self._ending.wait(pause)
            pause, self._aside = 2 * pause, False
        if self.aloud:
            _print(self.problems())

    def _start(self, logger: Logger) -> None:
        cursor, folder = self._cursor, self._info.folder
        self._pacing = Pacing(self._share) if self._share is not None else None
        self._since = time.monotonic()
        check_begin(type(logger), folder)
        cursor.save(folder)  # so that `sync` knows of it, even if it never starts
        self._told_best = self._info.monitor
        cursor.id = logger.start(replace(self._info, id=cursor.id, step=cursor.step, monitor=self._told_best))
        keep_apart()  # what the start has imported
        cursor.save(folder)  # at once, so that there is no second run, whatever comes
        cursor.correct(logger)
        self._last = cursor.place
        cursor.save(folder)
        _register(self)  # once more, after the client's own handler, and so called before it
        with self._changed:
            self._started = True
            self._changed.notify_all()

    def _follow(self, logger: Logger) -> None:
        tail, self._reading = Tail(self._info.folder / "history.jsonl", self._last[0]), None
        if self._pacing is not None:
            self._pacing.start()
        while True:
            with self._changed:
                asked, hurry = self._asked, self._hurry
            self._since = time.monotonic()
            ending = self._final = self.ending  # before it is read, so that nothing is left behind
            is_whole = self._deliver(logger, tail, hurry or ending)
            if is_whole:
                self._give_offers(logger)
            if ending:
                logger.finish(self._status)
                self._since, self._cursor.status = None, self._status
                self._cursor.save(self._info.folder)
                return
            self._since = None
            with self._changed:
                if is_whole:
                    self._done, self._hurry = asked, self._hurry and self._asked > asked
                self._changed.notify_all()
                self._wait()

    def _wait(self) -> None:
        """Wait until there is something to do, and it may be done."""
        while not (self._hurry or self.ending):
            left = self._pacing.wait() if self._pacing is not None else 0.0
            if self._asked > self._done and left <= 0:
                return
            self._changed.wait(left if self._asked > self._done else None)

    def _deliver(self, logger: Logger, tail: Tail, hurry: bool) -> bool:
        """Hand over what there is, but without a `hurry` no more than is paid for; return whether that was all."""
        pacing, is_whole = self._pacing, True
        self._plan(tail, hurry)
        for handed, _ in enumerate(self._handed(logger, tail), 1):
            if pacing is not None:
                if not pacing.goes_on() and not hurry:
                    is_whole = False
                    break
                if pacing.is_due:
                    self._plan(tail, hurry)
            if handed % _MANY == 0:
                self._flush(logger)
        if pacing is not None:
            pacing.close()
        self._flush(logger)
        if pacing is not None:
            pacing.end()
        return is_whole

    def _plan(self, tail: Tail, hurry: bool) -> None:
        """Choose of how many steps the records are that come next."""
        pacing = self._pacing
        if pacing is None:
            return
        if pacing.plan(self._newest - self._last[0], self._newest, self._told_at, hurry) and not hurry:
            self._tell(
                f"{self.name} takes {pacing.milliseconds:.2g} ms a record and may take {pacing.share:.2%} of the time,"
                " so it gets means of several steps where need be; history.jsonl has each step",
                "means",
            )
        tail.stride = pacing.stride

    def _handed(self, logger: Logger, tail: Tail) -> Iterator[Record]:
        """The records, each when it has been handed over; those of a reading that was left come first."""
        for reading in ([self._reading] if self._reading is not None else []) + [tail.read()]:
            self._reading = reading
            for record in reading:
                if record.place > self._last:
                    self._since = time.monotonic()
                    self._tell_best(logger, tail)
                    logger.log(logger.fitting(record))
                    self._last, self._told_at = record.place, record.time
                    yield record
            self._reading = None

    def _tell_best(self, logger: Logger, tail: Tail) -> None:
        """Tell the logger which value tells the best, once its rows show that it is another one than was told."""
        info = self._info
        wanted = (tail.names.get(info.column, info.monitor[0]), info.monitor[1])
        if wanted != self._told_best:
            logger.watch(*wanted)
            self._told_best = wanted

    def _flush(self, logger: Logger) -> None:
        if self._last > self._cursor.place:
            self._since = time.monotonic()
            logger.flush()
            self._cursor.place = self._last
            self._cursor.save(self._info.folder)

    def _give_offers(self, logger: Logger) -> None:
        """The summary and the weights; they stay there for the next attempt if the logger raises."""
        if summary := self._summary:
            logger.summarize(summary)
            if self._summary is summary:
                self._summary = {}
        if (file := self._file) is not None:
            logger.keep_file(file)
            if self._file is file:
                self._file = None

    def _set_aside(self, error: BaseException, pause: float) -> None:
        words = [line for line in redact(_COLOURS.sub("", str(error))).splitlines() if any(map(str.isalnum, line))]
        said = f"{type(error).__name__}: {words[0].strip().rstrip('.')}" if words else type(error).__name__
        again = "" if self._final else f" it is tried again in {pause:g} s, and"
        if not self._final or not self._failed:  # what a last attempt says, at the end of a process say, tells no more
            self._tell(f"{self.name} is set aside: {said[:300]}. The training goes on;{again} {self._later()}", said)
        self._failed = True
        self._since = time.monotonic()
        with self._changed:
            self._aside = True
            self._changed.notify_all()
        with suppress(BaseException):
            self._let_go()
        self._since = None

    def _let_go(self) -> None:
        """Close a logger that has raised; what it was handed is kept if it can still do that."""
        if self._logger is None:
            return
        self._logger.finish("interrupted")
        if self._last > self._cursor.place:
            self._cursor.place = self._last
            self._cursor.save(self._info.folder)

    def _later(self) -> str:
        return f"`zae logs sync {shlex.quote(str(self._info.folder))}` delivers later what is missing"

    def _tell(self, sentence: str, about: str = "") -> None:
        if (about or sentence) not in self._told:
            self._told.add(about or sentence)
            self._problems.append(sentence)


class Ends(Protocol):
    """What is ended first, and then waited for: a feed, or its delivery."""

    def end(self, status: str | None) -> None:
        """Have what is left delivered, and the run closed."""

    def join(self, patience: float) -> None:
        """Wait until it has ended."""


def close(feeds: Iterable[Ends], status: str | None, patience: float | None = None) -> None:
    """End feeds, all at the same time, and wait for them together."""
    feeds, deadline = list(feeds), time.monotonic() + (PATIENCE if patience is None else patience)
    for feed in feeds:
        feed.end(status)
    for feed in feeds:
        feed.join(max(0.0, deadline - time.monotonic()))


def _register(delivery: Delivery) -> None:
    """Have the end of the process wait for a delivery."""
    _OPEN.add(delivery)
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)


def _at_exit() -> None:
    own = [delivery for delivery in list(_OPEN) if delivery.process == os.getpid()]
    close([delivery for delivery in own if not delivery.given_up], None)  # others have been waited for long enough
    for delivery in own:
        _print(delivery.problems())


def _print(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        print(printable(sentence), file=sys.stderr, flush=True)
