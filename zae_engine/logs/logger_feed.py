"""One logger, fed from the run's history by a thread of its own, so that whatever it does cannot hurt the training."""

from __future__ import annotations

import atexit
import os
import re
import shlex
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..redaction import redact
from ..terminal import printable
from .client_streams import import_apart, keep_apart
from .cursor import Cursor
from .loggers.logger import Logger, RunInfo
from .merging import Tail
from .trust import check_begin

AGAIN = 60.0  # seconds until a logger that raised is tried again; each further time twice as many
SLOW = 60.0  # seconds after which a call is told to hang
PATIENCE = 30.0  # seconds that the end of a process waits for loggers
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MANY = 1000  # records between two flushes

_OPEN: weakref.WeakSet[Delivery] = weakref.WeakSet()  # those that the end of the process has to close


class Feed:
    """Delivers the records of a run to one logger, each once.

    Parameters
    ----------
    make : callable
        Makes the `Logger`; again after each failure.
    settings : dict
        The user's that go into the cursor, without secrets.
    """

    def __init__(self, make: Callable[[], Logger], settings: dict[str, Any] | None = None) -> None:
        self._make, self._settings = make, settings or {}
        logger = make()
        logger.check()
        self.name, self._module = logger.name, logger.module
        self.known_id: str | None = None  # of a checkpoint, for a folder that has no cursor
        self._delivery: Delivery | None = None
        self._before: list[Delivery] = []  # that may have something to tell yet

    def begin(self, info: RunInfo, fresh: bool) -> None:
        """Start, unless it runs already. A `fresh` run is a new one for the logger, too."""
        before = self._here
        if before is not None and before.alive and not before.ending and not fresh:
            before.watch(info)
            return
        if before is not None:
            before.end("done")
            self._before.append(before)
        cursor = Cursor(self.name) if fresh else Cursor.load(info.folder, self.name)
        cursor.id = cursor.id or (None if fresh else self.known_id)
        cursor.settings = self._settings
        import_apart(self._module)
        self._delivery = Delivery(self._make, info, cursor, before)

    @property
    def _here(self) -> Delivery | None:
        """The delivery, unless this is a fork of the process that has it."""
        return self._delivery if self._delivery is not None and self._delivery.process == os.getpid() else None

    @property
    def alive(self) -> bool:
        """Whether its thread runs, in this process."""
        return self._here is not None and self._here.alive

    @property
    def id(self) -> str | None:
        """The run's at the logger's service, once it has one."""
        return self._delivery.id if self._delivery is not None else self.known_id

    def wake(self) -> None:
        """There are new lines."""
        if self._here is not None:
            self._here.wake()

    def offer(self, summary: dict[str, Any], file: Path | None) -> None:
        """Have the run's summary and its best weights kept with the next delivery."""
        if self._here is not None:
            self._here.offer(summary, file)

    def settle(self, patience: float) -> None:
        """Wait until all is delivered; not longer than that many seconds, nor for a logger that was set aside."""
        if self._here is not None:
            self._here.settle(patience)

    def end(self, status: str | None = None) -> None:
        """Have what is left delivered, and the run closed with a status (None: the one that it has)."""
        if self._here is not None:
            self._here.end(status)

    def join(self, patience: float) -> None:
        """Wait until it has ended, so many seconds at most."""
        if self._here is not None:
            self._here.join(patience)

    def abandon(self) -> None:
        """End it where nobody will ask for `problems` any more: it tells them itself."""
        if self._here is not None:
            self._here.aloud = True
            self._here.end("done")

    def problems(self) -> list[str]:
        """What the user should know, each sentence once."""
        told = [sentence for delivery in self._before for sentence in delivery.problems()]
        self._before = [delivery for delivery in self._before if delivery.alive]
        return told + (self._here.problems() if self._here is not None else [])

    def client(self, patience: float | None = None) -> Any:
        """The logger's real client; None as long as it has none. While it starts, that is waited for, but once."""
        return self._here.client(PATIENCE if patience is None else patience) if self._here is not None else None


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
    """

    def __init__(
        self, make: Callable[[], Logger], info: RunInfo, cursor: Cursor, before: Delivery | None = None
    ) -> None:
        self._make, self._info, self._cursor, self._before = make, info, cursor, before
        self.name, self.process = cursor.logger, os.getpid()
        self._changed, self._asked, self._done = threading.Condition(), 0, 0
        self._ending, self._started, self._aside = threading.Event(), False, False
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

    def wake(self) -> None:
        """There are new lines."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def offer(self, summary: dict[str, Any], file: Path | None) -> None:
        """Have these kept with the next delivery."""
        self._summary, self._file = summary, file
        self.wake()

    def settle(self, patience: float) -> None:
        """Wait until all is delivered that is there now."""
        if self.alive:
            with self._changed:
                asked = self._asked
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
        tail = Tail(self._info.folder / "history.jsonl")
        while True:
            with self._changed:
                asked = self._asked
            self._since = time.monotonic()
            ending = self._final = self.ending  # before it is read, so that nothing is left behind
            self._deliver(logger, tail)
            self._give_offers(logger)
            if ending:
                logger.finish(self._status)
                self._since, self._cursor.status = None, self._status
                self._cursor.save(self._info.folder)
                return
            self._since = None
            with self._changed:
                self._done = asked
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._asked > self._done)

    def _deliver(self, logger: Logger, tail: Tail) -> None:
        handed = 0
        for record in tail.read():
            if record.place > self._last:
                self._since = time.monotonic()
                self._tell_best(logger, tail)
                logger.log(logger.fitting(record))
                self._last, handed = record.place, handed + 1
                if handed % _MANY == 0:
                    self._flush(logger)
        self._flush(logger)

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


def close(feeds: Iterable[Feed | Delivery], status: str | None, patience: float | None = None) -> None:
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
