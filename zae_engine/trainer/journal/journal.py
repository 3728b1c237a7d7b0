"""A run's folder while it runs: its lock, ``run.json``, and ``history.jsonl``, from which everything else reads."""

from __future__ import annotations

import os
import time
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
from ...redaction import redact
from ..console.bar import make_bar
from ..interface import Face
from ..limits import Interval, Pace
from ..loop.companion import Companion, Present
from ..loop.run_status import Standing
from ..processes.group import Processes
from ..processes.signals import Interrupted
from ..records.epoch_log import KEPT
from ..records.recorder import Recorder
from ..step.placement import Placement
from ..warn import warn
from .history_lines import StepLines
from .history_readers import Readers, end_line
from .run_json import note_attempt

_MEMORY = ("standing", "after", "origin", "begins_file")
_ROOM = KEPT // 2  # steps
_USUAL = {"output", "target"}  # what a step returns for metrics and for the trainer itself


class Journal(Companion):
    """Writes down what a trainer does, on process 0.

    Parameters
    ----------
    folder : Path
        The run's, absolute.
    placement : Placement
    recorder : Recorder
        What it has seen is written.
    interval : Interval
        How often the values of the steps are read.

    Attributes
    ----------
    standing : Standing
        Where the run stands.
    facts : (dict, dict)
        What decides the result, and what else there is.
    after : int or None
        The last line of the history that holds, when it goes on from a checkpoint; and which one that is (`origin`).
    begins_file : bool
        Whether the history has nothing of this run yet.
    best : Path or None
        Where the best weights lie.
    readers : Readers
        What reads the history.
    file : HistoryFile or None
        While it is open, on process 0.
    token : str
        The same on all processes, another one in every attempt.
    session : Session or None
        The call of `run` that is written down.
    """

    interval: Interval

    def __init__(self, folder: Path, placement: Placement, recorder: Recorder, interval: Interval) -> None:
        super().__init__(interval)
        self.folder, self.recorder, self._place = folder, recorder, placement
        self.standing, self.begins_file = Standing.FRESH, True
        self.facts: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self.after: int | None = None
        self.origin: str | None = None
        self.best: Path | None = None
        self.readers = Readers()
        self.file: HistoryFile | None = None
        self.token, self.attempt = "", dict[str, Any]()
        self.session: Present | None = None
        self.is_open, self._held = False, False
        self._noted = False  # whether the attempt that begins is written down: a run that was refused has done so
        self._pace = interval if isinstance(interval, Pace) else None
        self._lines = StepLines(recorder, True)
        self._background, self._told = Background(), set[str]()
        self._writing = 0.0  # seconds that the last writing took of the interpreter's time
        self._failure, self._failure_was_told = "", False

    @property
    def processes(self) -> Processes:
        """Those that train: in a worker of a session they are others than when the trainer was made."""
        return self._place.processes

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
    def opened(self, trainer: Face, ends: bool = True) -> Iterator[None]:
        """Inside, lines are taken and written; within another one, it is that one.

        Parameters
        ----------
        trainer : Trainer
        ends : bool
            Whether it is a call of `run`, whose end is noted.
        """
        if self.is_open:
            yield
            return
        try:
            self._open(trainer, ends)
            yield
        except BaseException as error:
            self._move_on("break off")
            self._close(trainer, ends, *_status(error))
            raise
        else:
            self._move_on("end")
            self._close(trainer, ends, "done", self.recorder.stop_reason or "")
        finally:
            self.is_open, self.file, self.session = False, None, None

    def begins(self, session: Present) -> None:
        """Nothing refuses the run any more."""
        if self.is_open:
            if self._pace is not None:  # of several processes, each reading is an exchange
                self._pace.begin(varies=self.processes.count == 1 and bool(self.readers.feeds))
            self.session, self.after = session, None
            self.standing = self.standing.after("begin")

    def go_on_from(self, after: int, origin: str, inside: bool) -> None:
        """A checkpoint was loaded, from which the next call goes on.

        Parameters
        ----------
        after : int
            The last line of the history that holds.
        origin : str
            Which checkpoint it is.
        inside : bool
            Whether it is of this folder's run.
        """
        self.after, self.origin, self.begins_file, self._noted = after, origin, not inside, False

    def _move_on(self, event: str) -> None:
        """A run is over that has begun: one that was refused has changed nothing."""
        if self.standing is Standing.RUNNING:
            self.standing = self.standing.after(event)

    def _open(self, trainer: Face, ends: bool) -> None:
        token = f"{time.time_ns():x}-{os.getpid()}"
        self.token = self.processes.on_first(lambda: token)
        self.file = HistoryFile(self.folder / "history.jsonl") if self.processes.first else None
        fresh = not (self.standing.owns or self.after or self._noted)
        self.processes.on_first(lambda: self._note(trainer))
        self._noted = True
        self._check_shared()
        if ends and self.file is not None:
            share = self._pace.for_others if self._pace is not None else None
            self.readers.begin(self.folder, trainer, self.attempt, fresh, share)
        self._lines = StepLines(self.recorder, self.begins_file, by_step=self._pace is not None)
        self.begins_file, self.is_open = False, True
        if not ends:
            self.standing, self.after = self.standing.after("save"), None

    def _note(self, trainer: Face) -> None:
        """Note that the run begins, or goes on, in run.json and in the history."""
        assert self.file is not None  # this is process 0
        self.attempt = note_attempt(self.folder, trainer, self.processes.count, self.token, self.facts)
        if not self._noted and (self.after is not None or not self.standing.owns):
            after = min(self.after or 0, self.file.count)
            step = self.recorder.counters.get_step() - 1
            self.file.append([{"kind": "attempt", "attempt": self.attempt["attempt"], "after": after, "step": step,
                               "from": self.origin, "time": time.time()}])  # fmt: skip
            self.recorder.history.resumes[:] = self.file.resumes

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

    def next_step(self, step: int) -> float:
        """Before the log forgets values that have no line yet, too."""
        return min(super().next_step(step), (step // _ROOM + 1) * _ROOM)

    def at_rest(self, session: Present) -> None:
        """Take what is new, if it is time to."""
        if not self.is_open:
            return
        step = session.step
        # A validation within the epoch has a row, which no reader may find behind a later step's values.
        tested = session.call.tested_step == step
        if self.due or session.opened is None or tested or self.interval.at_step(step) or step % _ROOM == 0:
            self.take(session.trainer.optimizer, session.opened is not None)

    def take(self, optimizer: Any, opened: bool) -> None:
        """Take what is new, and have it written; every process calls it, between two steps or epochs."""
        # On an accelerator, the waiting for it counts, too.
        clock = time.thread_time if self._place.device.type == "cpu" else time.perf_counter
        began = clock()
        with self.recorder.usage.on("logging"):
            lines = self._lines.take(optimizer, self.processes, opened)
            self.due = False
            self.interval.restart()
            if lines:
                self._put_taken(lines)
                self.write()
                self._tell_others()
        if self._pace is not None:
            self._pace.took(clock() - began + self._writing)

    def _put_taken(self, lines: Sequence[Line]) -> None:
        files, self._lines.files = self._lines.files, []
        if self.file is not None:
            self.file.put(lines, files)

    def value_came(self) -> None:
        """Write down what the user logs between two calls of `run`; this process does, without the others.

        What comes before the first one goes with its lines.
        """
        own, lock = self.recorder.own, RunLock(self.folder)
        if self.is_open or not (self.standing.owns and self.processes.first and own):
            return
        try:
            if not self._held:
                lock.acquire()
            file = HistoryFile(self.folder / "history.jsonl")
            file.put(*own.lines(self.recorder.counters.get_step() - 1))
            file.write(flush=True)
        except (CheckpointError, OSError) as error:
            warn(f"trainer.log: nothing can be added to the run in {str(self.folder)!r}: {error}")
        finally:
            if not self._held:
                lock.release()
        self.readers.go_on(self.folder)

    def _tell_others(self) -> None:
        """Say once which values the loggers do not get."""
        log = self.recorder.log_train
        others = set(log.others()) - _USUAL if self.readers.feeds and self.file else ()
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
            self.report()
            file = self.file
            self._background.submit(lambda: self._write(file))

    def _write(self, file: HistoryFile) -> None:
        began = time.thread_time()
        try:
            file.write()
            self._failure, self._failure_was_told = "", False
        except OSError as error:
            self._failure = f"{str(file.path)!r} cannot be written: {error}; its lines are kept and tried again"
        self._writing = time.thread_time() - began
        self.readers.go_on(self.folder, self._lines.step)

    def report(self) -> None:
        """Say, between two steps, what went wrong meanwhile."""
        if self._failure and not self._failure_was_told:
            self._failure_was_told = True
            self.say(self._failure)
        for sentence in self.readers.problems():
            self.say(sentence)

    def say(self, sentence: str) -> None:
        """Show a sentence beside the bar."""
        make_bar(True).write(sentence)

    def write_elsewhere(self, folder: Path) -> None:
        """For a run on trial: write into another folder, which nobody reads."""
        self.folder, self.readers = folder, Readers(draws=False)

    # ------------------------------------------------------------------ the end

    def _close(self, trainer: Face, ends: bool, status: str, reason: str) -> None:
        """Write the rest; of a run that broke off, only what process 0 has."""
        if self.file is None:
            return
        if ends and self.is_open:
            self._take_rest(trainer)
            self.put([end_line(self.recorder, self._place.device, trainer.loader, status, reason)])
        self._background.wait()
        self._write(self.file)
        self.recorder.own.forget()  # of a step that was not done
        if lost := self.file.waiting:
            self.say(f"{lost} lines of {str(self.file.path)!r} could not be written, and are lost with this process")
        lines = self.readers.end(self.folder, status, self.best) if ends and self.is_open else []
        self.report()
        for line in lines if trainer.log_bar else ():
            self.say(line)

    def _take_rest(self, trainer: Face) -> None:
        """Of a run that broke off within an epoch, what its last steps were; others have it only all together."""
        if self.processes.count > 1 or self.session is None or self.session.opened is None:
            self._put_taken(self._lines.own())
            return
        with suppress(Exception):  # the values may be what the run has failed of
            self.recorder.log_train.drain()
            if self.recorder.log_train.losses.count == self.session.step:  # and none is half done
                self._put_taken(self._lines.take(trainer.optimizer, self.processes, opened=True))


def _status(error: BaseException) -> tuple[str, str]:
    """How a run ended that raised, and why, in one line."""
    status = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
    words = redact(str(error)).strip().splitlines()
    return status, f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
