"""One job at a time beside the training, which a normal exit never cuts."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable


class Background:
    """Runs one job at a time in a thread beside the main one.

    Each job has a thread of its own, which ends with it: starting one takes a tenth of a millisecond, no idle thread is
    ever there for a fork to lose, and nothing is left to stop. It is no daemon: when the program ends, the interpreter
    waits for it before it runs any exit handler, so a job sees torch and the process group alive to its end. A job that
    waits for others must therefore give up some day. It must not start threads or executors of its own, which the
    interpreter refuses by then.

    In a forked child (a worker of a DataLoader) there is no job, whatever the parent does.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._process = os.getpid()

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        self._notice_fork()
        return self._thread is not None and self._thread.is_alive()

    def submit(self, job: Callable[[], None]) -> None:
        """Start a job, and return at once.

        Raises
        ------
        RuntimeError
            While another job is running; `wait` for it first.
        """
        if self.busy:
            raise RuntimeError("a job is running in the background; wait() for it before the next submit()")
        self._failure = None
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint", daemon=False)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> float:
        """Wait until no job is running, or `timeout` seconds.

        Returns
        -------
        float
            The seconds waited, 0 if there was no job.
        """
        if not self.busy or self._thread is None:
            return 0.0
        started = time.perf_counter()
        self._thread.join(timeout)
        return time.perf_counter() - started

    def failure(self) -> BaseException | None:
        """What the last job that ended raised, once; then forgotten."""
        self._notice_fork()
        failure, self._failure = self._failure, None
        return failure

    def close(self) -> None:
        """Wait for the job that is running; not needed at the end of a program."""
        self.wait()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # it is the main thread that decides what a failure means
            self._failure = error
            if not threading.main_thread().is_alive():  # nobody is left to ask
                print("the last checkpoint could not be written:", file=sys.stderr)
                traceback.print_exception(error, file=sys.stderr)

    def _notice_fork(self) -> None:
        if self._process != os.getpid():
            self._thread, self._failure, self._process = None, None, os.getpid()
