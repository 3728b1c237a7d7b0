"""One logger of a run, which is fed by a thread of its own; see `Delivery`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import delivery
from .client_streams import import_apart
from .cursor import Cursor
from .delivery import Delivery
from .loggers.logger import Logger, RunInfo


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

    def begin(self, info: RunInfo, fresh: bool, share: float | None = None) -> None:
        """Start, unless it runs already. A `fresh` run is a new one for the logger, too.

        With a `share` of the time that it may take, a record may be the mean of several; else it gets every record.
        """
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
        self._delivery = Delivery(self._make, info, cursor, before, share)

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

    def wake(self, step: int = 0) -> None:
        """There are new lines, up to a step if that is known."""
        if self._here is not None:
            self._here.wake(step)

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
        return (
            self._here.client(delivery.PATIENCE if patience is None else patience) if self._here is not None else None
        )
