"""One logger, fed from the run's history by a thread of its own, so that whatever it does cannot hurt the training."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .cursor import Cursor
from .logger import Logger, Record, RunInfo
from .merging import Tail

AGAIN = 60.0  # seconds until a logger that raised is tried again; each further time twice as many
SLOW = 60.0  # seconds after which a call is told to hang
PATIENCE = 30.0  # seconds that the end of a process waits for loggers

_OPEN: weakref.WeakSet[Feed] = weakref.WeakSet()  # those that the end of the process has to close


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
        self.name = logger.name
        self.known_id: str | None = None  # of a checkpoint, for a folder that has no cursor
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def begin(self, info: RunInfo, fresh: bool) -> None:
        """Start, unless it runs already. A `fresh` run is a new one for the logger, too."""
        if self.alive and not fresh:
            return
        if self.alive:
            self.end("done")
        self._info, self._process = info, os.getpid()
        self._cursor = Cursor(self.name) if fresh else Cursor.load(info.folder, self.name)
        self._cursor.id = self._cursor.id or (None if fresh else self.known_id)
        self._cursor.settings, self._cursor.status = self._settings, "open"
        self._changed, self._asked, self._done = threading.Condition(), 0, 0
        self._ending, self.started, self._aside = threading.Event(), threading.Event(), False
        self._status, self._summary = "done", dict[str, Any]()
        self._file: Path | None = None
        self._since: float | None = None  # when the call began in which the logger is
        self._problems, self._told = list[str](), set[str]()
        self.logger: Logger | None = None
        self._thread = threading.Thread(target=self._work, name=f"logger {self.name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs, in this process."""
        return self._thread is not None and self._thread.is_alive() and self._process == os.getpid()

    @property
    def id(self) -> str | None:
        """The run's at the logger's service, once it has one."""
        return self._cursor.id if self._thread is not None else self.known_id

    def wake(self) -> None:
        """There are new lines."""
        if self._thread is not None:
            with self._changed:
                self._asked += 1
                self._changed.notify_all()

    def offer(self, summary: dict[str, Any], file: Path | None) -> None:
        """Have the run's summary and its best weights kept with the next delivery."""
        if self.alive:
            self._summary, self._file = summary, file
            self.wake()

    def settle(self, patience: float) -> None:
        """Wait until all is delivered; not longer than that many seconds, nor for a logger that was set aside."""
        if self.alive:
            with self._changed:
                asked = self._asked
                done = self._changed.wait_for(lambda: self._done >= asked or self._aside, patience)
            if not done:
                self._tell(f"{self.name} has not taken everything yet; it goes on meanwhile, and {self._later()}")

    def end(self, status: str | None = None) -> None:
        """Have what is left delivered, and the run closed with a status (None: the one that it has)."""
        if self.alive:
            self._status = status or self._status
            self._ending.set()
            self.wake()

    def join(self, patience: float) -> None:
        """Wait until it has ended, so many seconds at most."""
        if self.alive and self._thread is not None:
            self._thread.join(patience)
            if self.alive:
                self._tell(f"{self.name} is not done in time; {self._later()}")

    def problems(self) -> list[str]:
        """What the user should know, each sentence once."""
        if self._thread is None:
            return []
        since = self._since
        if since is not None and time.monotonic() - since > SLOW:
            self._tell(f"{self.name} has not answered for {SLOW:g} s; the training goes on, and {self._later()}")
        for sentence in self.logger.notices if self.logger is not None else ():
            self._tell(f"{self.name}: {sentence}")
        problems, self._problems = self._problems, []
        return problems

    def client(self, patience: float = PATIENCE) -> Any:
        """The logger's real client, which may have yet to start; None when it does not in that time."""
        if self._thread is None or not self.started.wait(patience) or self.logger is None:
            return None
        return self.logger.client

    # ------------------------------------------------------------------ in the thread

    def _work(self) -> None:
        pause = AGAIN
        while True:
            logger = self.logger = self._make()
            try:
                self._start(logger)
                self._follow(logger)
                return
            except BaseException as error:  # a client may even exit; that is no reason to end a training
                self._set_aside(logger, error, pause)
            if self._ending.wait(pause):
                return
            pause, self._aside = 2 * pause, False

    def _start(self, logger: Logger) -> None:
        cursor, folder = self._cursor, self._info.folder
        self._since = time.monotonic()
        cursor.id = logger.start(replace(self._info, id=cursor.id, step=cursor.step))
        seen = logger.last_step()  # the truth: a kill may have come between its file and our note
        cursor.step = cursor.step if seen is None else seen
        cursor.save(folder)
        _OPEN.add(self)
        atexit.unregister(_at_exit)
        atexit.register(_at_exit)  # after the client's own, and so called before it
        self.started.set()

    def _follow(self, logger: Logger) -> None:
        tail = Tail(self._info.folder / "history.jsonl")
        while True:
            with self._changed:
                asked = self._asked
            self._since = time.monotonic()
            ending = self._ending.is_set()  # before it is read, so that nothing is left behind
            self._deliver(logger, tail.read())
            if self._summary:
                summary, self._summary = self._summary, {}
                logger.summarize(summary)
            if self._file is not None:
                file, self._file = self._file, None
                logger.keep_file(file)
            if ending:
                logger.finish(self._status)
                self._cursor.status = self._status
                self._cursor.save(self._info.folder)
                return
            self._since = None
            with self._changed:
                self._done = asked
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._asked > self._done)

    def _deliver(self, logger: Logger, records: Iterable[Record]) -> None:
        cursor, last = self._cursor, self._cursor.step
        try:
            for record in records:
                if record.step > last:
                    self._since = time.monotonic()
                    logger.log(record)
                    last = record.step
            if last > cursor.step:
                logger.flush()
        finally:
            if last > cursor.step:  # also of a logger that raised in the middle
                cursor.step = last
                cursor.save(self._info.folder)

    def _set_aside(self, logger: Logger, error: BaseException, pause: float) -> None:
        words = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
        self._since = None
        self._tell(
            f"{self.name} is set aside: {said[:300]}. The training goes on; it is tried again in {pause:g} s, and"
            f" {self._later()}"
        )
        with self._changed:
            self._aside = True
            self._changed.notify_all()
        with suppress(BaseException):
            logger.finish("interrupted")

    def _later(self) -> str:
        return f"`zae logs sync {self._info.folder}` delivers later what is missing"

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._problems.append(sentence)


def close(feeds: Iterable[Feed], status: str | None, patience: float = PATIENCE) -> None:
    """End feeds, all at the same time, and wait for them together."""
    feeds, deadline = list(feeds), time.monotonic() + patience
    for feed in feeds:
        feed.end(status)
    for feed in feeds:
        feed.join(max(0.0, deadline - time.monotonic()))


def _at_exit() -> None:
    open_ones = [feed for feed in _OPEN if feed.alive]
    close(open_ones, None)
    for feed in open_ones:
        for sentence in feed.problems():
            print(sentence, file=sys.stderr)
