"""A service that keeps what its logger gives it, and that can fail, hang or be slow in any of the logger's methods."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import ClassVar

from zae_engine.logs.delivery import close
from zae_engine.logs.logger_feed import Feed
from zae_engine.logs.loggers.logger import Logger


class Service:
    """What is kept, by the id of a run.

    Parameters
    ----------
    fails : dict of str to exception, optional
        What a method of the logger raises, at each call.
    at : int
        The step from which on `log` fails or hangs.
    times : int
        How often something fails before the service is back.
    hangs : str
        The method that hangs until `release` is called.
    slow : float
        Seconds that each record takes.
    """

    def __init__(self, fails=None, at=1, times=10**6, hangs="", slow=0.0):
        self.fails, self.at, self.left, self.hangs, self.slow = fails or {}, at, times, hangs, slow
        self.records: dict[str, list] = {}
        self.statuses, self.summaries, self.files, self.calls = [], [], [], []
        self.gate, self.waits = threading.Event(), threading.Event()

    def visit(self, method, step=None):
        self.calls.append(method)
        if step is not None and step < self.at:
            return
        if method in self.fails and self.left:
            self.left -= 1
            raise self.fails[method]
        if method == self.hangs and not self.gate.is_set():
            self.waits.set()
            assert self.gate.wait(60), "nobody released it"

    def steps(self, id="run-1"):
        return [record.step for record in self.records[id]]


class ServiceLogger(Logger):
    """Keeps records in a `Service`, each at once."""

    name: ClassVar[str] = "service"

    def __init__(self, service, settings=None):
        super().__init__(settings)
        self.service = service

    def start(self, info):
        self.service.visit("start")
        self.id = info.id or f"run-{len(self.service.records) + 1}"
        self.service.records.setdefault(self.id, [])
        self.client = self.service
        return self.id

    def log(self, record):
        self.service.visit("log", record.step)
        if self.service.slow:
            time.sleep(self.service.slow)
        self.service.records[self.id].append(record)

    def flush(self):
        self.service.visit("flush")

    def summarize(self, summary):
        self.service.visit("summarize")
        self.service.summaries.append(dict(summary))

    def keep_file(self, path):
        self.service.visit("keep_file")
        self.service.files.append(path.name)

    def finish(self, status):
        self.service.visit("finish")
        self.service.statuses.append(status)


class SecondLogger(ServiceLogger):
    name: ClassVar[str] = "second"


class ReadBackLogger(ServiceLogger):
    """Can tell what is kept already."""

    def last_step(self):
        kept = self.service.records[self.id]
        return kept[-1].step if kept else 0


class BufferingLogger(ServiceLogger):
    """Keeps records when it is flushed or closed, and loses what waits when it is not."""

    def start(self, info):
        self.waiting = []
        return super().start(info)

    def log(self, record):
        self.service.visit("log", record.step)
        self.waiting.append(record)

    def flush(self):
        self.service.visit("flush")
        self.service.records[self.id] += self.waiting
        self.waiting = []

    def finish(self, status):
        self.flush()
        super().finish(status)


_MADE: list[tuple[Service, Feed]] = []


def feed_of(service, kind=ServiceLogger):
    """A feed; `end_all` ends it."""
    feed = Feed(partial(kind, service))
    _MADE.append((service, feed))
    return feed


def end_all():
    """Let go what hangs, and end all feeds; none of their threads may be left."""
    for service, _ in _MADE:
        service.gate.set()
    close([feed for _, feed in _MADE], None, 20.0)
    _MADE.clear()
    wait_for(lambda: not threads())


def attach(trainer, *feeds):
    """Give a trainer with a run folder further loggers."""
    trainer._journal.readers.feeds |= {feed.name: feed for feed in feeds}
    return trainer


def threads():
    """The threads of loggers that run now."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("logger ")]


def wait_for(condition, longest=20.0):
    end = time.monotonic() + longest
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)
