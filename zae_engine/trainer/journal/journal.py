"""The folder of a run while it runs: its lock, ``run.json``, and ``history.jsonl``, from which everything else reads.

The trainer is passed as Any, since its module is above this one.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...checkpoint.background import Background
from ...checkpoint.errors import CheckpointError
from ...checkpoint.folder import CHECKPOINTS
from ...checkpoint.lock import RunLock
from ...files import NotPlainError, check_plain, clear_partials, refuse_outside
from ...logs.history_file import HistoryFile, Line
from ...logs.merging import resumes_in
from ...redaction import redact
from ..console.bar import make_bar
from ..processes.group import Processes
from ..processes.signals import Interrupted
from ..warn import warn
from .lines import StepLines
from .readers import Afterwards, end_line
from .run_json import note_attempt

_MEMORY = ("mine", "after", "origin", "begins")
_USUAL = {"output", "target", "num_items"}  # what a step returns for metrics and for the trainer itself


class RunLog:
    """Writes down what a trainer does, on process 0.

    Parameters
    ----------
    trainer : Trainer
    folder : Path
        The run's, absolute.

    Attributes
    ----------
    facts : (dict, dict)
        What decides the result, and what else there is.
    mine : bool
        Whether what is in the folder comes from this trainer.
    after : int or None
        The last line of the history that holds, when it goes on from a checkpoint; and which one that is (`origin`).
    begins : bool
        Whether the history has nothing of this run yet.
    best : Path or None
        Where the best weights lie.
    afterwards : Afterwards
        What reads the history.
    """

    def __init__(self, trainer: Any, folder: Path) -> None:
        self._trainer, self.folder = weakref.ref(trainer), folder
        self.facts: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self.mine, self.begins = False, True
        self.after: int | None = None
        self.origin: str | None = None
        self.best: Path | None = None
        self.afterwards = Afterwards()
        self.file: HistoryFile | None = None  # while it is open, on process 0
        self.token = ""  # the same on all processes, another one in every attempt
        self.is_open, self._held, self._broken = False, False, False
        self._background, self._failure, self._told = Background(), "", set[str]()
        self.attempt: dict[str, Any] = {}

    @property
    def trainer(self) -> Any:
        """Whose run it is. Held weakly, since the trainer holds this; so its memory is free when nobody uses it."""
        return self._trainer()

    @property
    def processes(self) -> Processes:
        """The trainer's: in a worker of a session they are others than when the trainer was made."""
        processes: Processes = self.trainer._processes
        return processes

    @property
    def memory(self) -> dict[str, Any]:
        """What the next call of `run` has to know, as plain values; to be set in another process."""
        return {name: getattr(self, name) for name in _MEMORY}

    @memory.setter
    def memory(self, values: dict[str, Any]) -> None:
        vars(self).update(values)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Inside, no other job writes into the folder."""
        if self._held:
            yield
            return
        lock = RunLock(self.folder)
        self.processes.on_first(lambda: self._lock(lock))
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self.processes.first:
                lock.release()

    def _lock(self, lock: RunLock) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            is_file = self.folder.exists()
            reason = (
                "is a file; give a folder, which is made if needed" if is_file else f"cannot be made: {error.strerror}"
            )
            raise CheckpointError(f"save_path={str(self.folder)!r} {reason}") from error
        try:
            check_plain(self.folder / "history.jsonl")
            refuse_outside(self.folder, self.folder / CHECKPOINTS)
        except NotPlainError as error:
            raise CheckpointError(f"save_path={str(self.folder)!r} is not trained in: {error}") from error
        lock.acquire()
        clear_partials(self.folder)

    @contextmanager
    def opened(self, ends: bool = True) -> Iterator[None]:
        """Inside, lines are taken and written; within another one, it is that one.

        Parameters
        ----------
        ends : bool
            Whether it is a call of `run`, whose end is noted.
        """
        if self.is_open:
            yield
            return
        try:
            self._open(ends)
            yield
        except BaseException as error:
            self._close(ends, *_status(error))
            raise
        else:
            self._close(ends, "done", self.trainer.stop_reason or "")
        finally:
            self.is_open, self.file = False, None

    def _open(self, ends: bool) -> None:
        token = f"{time.time_ns():x}-{os.getpid()}"
        self.token = self.processes.on_first(lambda: token)
        self.file = HistoryFile(self.folder / "history.jsonl") if self.processes.first else None
        fresh = not self.mine and not self.after
        self.processes.on_first(self._note)
        self._check_shared()
        if ends and self.file is not None:
            self.afterwards.begin(self.folder, self.trainer, self.attempt, fresh)
        self._lines, self.begins, self.is_open = StepLines(self.trainer, self.begins), False, True

    def _note(self) -> None:
        """Note that the run begins, or goes on, in run.json and in the history."""
        assert self.file is not None  # this is process 0
        self.attempt = note_attempt(self.folder, self.trainer, self.token, self.facts)
        if self.after is not None or not self.mine:
            after = min(self.after or 0, self.file.count)
            step = self.trainer.progress_checker.get_step() - 1
            self.file.append([{"kind": "attempt", "attempt": self.attempt["attempt"], "after": after, "step": step,
                               "from": self.origin, "time": time.time()}])  # fmt: skip
            self.trainer.history.resumes[:] = resumes_in(self.file.path)
        self.after, self.mine = None, True

    def _check_shared(self) -> None:
        """Refuse processes that see other folders at that path."""
        path, sees = self.folder / "run.json", False
        for _ in range(50):  # a shared file system may take a while to show a file
            sees = path.is_file() and self.token in path.read_text(encoding="utf-8")
            if sees or self.processes.count == 1:
                break
            time.sleep(0.1)
        blind = [str(i) for i, seen in enumerate(self.processes.gather(sees)) if not seen]
        if blind:
            raise CheckpointError(
                f"save_path={str(self.folder)!r} is not the same folder on process {', '.join(blind)} as on process 0;"
                " give one on a file system that all machines share, as an absolute path"
            )

    # ------------------------------------------------------------------ lines

    def take(self) -> None:
        """Take what is new, and have it written; every process calls it, between two steps or epochs."""
        trainer = self.trainer
        with trainer._spent.on("logging"):
            lines = self._lines.take(trainer, opened=trainer._open is not None)
            trainer._log_due = False
            trainer._logging.restart()
            if lines:
                self._put_taken(lines)
                self.write()
                self._tell_others()

    def _put_taken(self, lines: Sequence[Line]) -> None:
        files, self._lines.files = self._lines.files, []
        if self.file is not None:
            self.file.put(lines, files)

    def add_own(self) -> None:
        """Write down what the user logs between two calls of `run`; this process does, without the others.

        What comes before the first one goes with its lines.
        """
        own, lock = self.trainer._own, RunLock(self.folder)
        if self.is_open or not (self.mine and self.processes.first and own):
            return
        try:
            if not self._held:
                lock.acquire()
            file = HistoryFile(self.folder / "history.jsonl")
            file.put(*own.lines(self.trainer.progress_checker.get_step() - 1))
            file.write(flush=True)
        except (CheckpointError, OSError) as error:
            warn(f"trainer.log: nothing can be added to the run in {str(self.folder)!r}: {error}")
        finally:
            if not self._held:
                lock.release()
        self.afterwards.go_on(self.folder)

    def _tell_others(self) -> None:
        """Say once which values the loggers do not get."""
        log = self.trainer.log_train
        others = log.data.keys() - log.sums().keys() - _USUAL if self.afterwards.feeds and self.file else ()
        for name in sorted(others - self._told if others else ()):
            self._told.add(name)
            self.say(
                f"{name!r} of train_step is no number, so the loggers do not get it; trainer.log({{{name!r}: ...}})"
                " gives them pictures and texts"
            )

    def put(self, lines: Sequence[Line]) -> int:
        """Keep lines to be written; return the number of the last one, 0 where another process writes."""
        return self.file.put(lines) if self.file is not None else 0

    def write(self) -> None:
        """Have what waits written beside the training; while that is busy, it goes with the next lines."""
        if self.file is not None and not self._background.busy:
            self._report()
            file = self.file
            self._background.submit(lambda: self._write(file))

    def _write(self, file: HistoryFile) -> None:
        try:
            file.write()
            self._failure, self._broken = "", False
        except OSError as error:
            self._failure = f"{str(file.path)!r} cannot be written: {error}; its lines are kept and tried again"
        self.afterwards.go_on(self.folder)

    def _report(self) -> None:
        """Say, between two steps, what went wrong meanwhile."""
        if self._failure and not self._broken:
            self._broken = True
            self.say(self._failure)
        for sentence in self.afterwards.problems():
            self.say(sentence)

    def say(self, sentence: str) -> None:
        """Show a sentence beside the bar."""
        make_bar(True).write(sentence)

    def _close(self, ends: bool, status: str, reason: str) -> None:
        """Write the rest; of a run that broke off, only what process 0 has."""
        self.trainer._batch_of = ""
        if self.file is None:
            return
        if ends and self.is_open:
            self._take_rest()
            self.put([end_line(self.trainer, status, reason)])
        self._background.wait()
        self._write(self.file)
        self.trainer._own.forget()  # of a step that was not done
        if lost := self.file.waiting:
            self.say(f"{lost} lines of {str(self.file.path)!r} could not be written, and are lost with this process")
        lines = self.afterwards.end(self.folder, status, self.best) if ends and self.is_open else []
        self._report()
        for line in lines if self.trainer.log_bar else ():
            self.say(line)

    def _take_rest(self) -> None:
        """Of a run that broke off within an epoch, what its last steps were; others have it only all together."""
        trainer = self.trainer
        if self.processes.count > 1 or trainer._open is None:
            self._put_taken(self._lines.own(trainer))
            return
        with suppress(Exception):  # the values may be what the run has failed of
            trainer.log_train.drain()
            if len(trainer.log_train.losses) == trainer.progress_checker.get_step() - 1:  # and none is half done
                self._put_taken(self._lines.take(trainer, opened=True))


def _status(error: BaseException) -> tuple[str, str]:
    """How a run ended that raised, and why, in one line."""
    status = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
    words = redact(str(error)).strip().splitlines()
    return status, f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
