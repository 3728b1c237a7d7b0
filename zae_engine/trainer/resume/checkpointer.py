"""Saves a run into its folder, takes it up from there, and lets it end when it is called away."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ...checkpoint.commit import clear_leftovers
from ...checkpoint.errors import CheckpointError
from ...checkpoint.folder import CHECKPOINTS, committed, name_of, next_serial
from ...launch.start import interactive
from ..data.plan import BatchPlan
from ..interface import Face
from ..journal.journal import Journal
from ..limits import Duration, Interval
from ..loop.companion import Companion, Present
from ..loop.open_epoch import Loaded
from ..loop.run_status import Standing
from ..processes.group import Processes, is_sharded
from ..processes.signals import Interrupted, signals_noted
from ..step.placement import Placement
from ..warn import warn
from .checkpoint_writer import STATE, Contents, Saver
from .finder import Finder
from .trainer_state import TrainerState

FAILED = "a checkpoint could not be written: "
_A_WHILE = 3.0  # seconds that a run that broke off waits for the files of the other processes


class Checkpointer(Companion):
    """Saves a trainer's run into a folder, and takes it up from there.

    Parameters
    ----------
    journal : Journal
        The run's, with its folder.
    finder : Finder
        What it goes on from.
    placement : Placement
    suffix : str
        Of the files of tensors.
    every : Duration
        How often to save.
    keep : (int or None, int)
        How many of the newest, and of the best, checkpoints are kept.
    in_background, required : bool
        Whether writing goes on beside the training; whether a failed one ends it.

    Attributes
    ----------
    data : dict
        What was seen of the present call's data.
    """

    interval: Interval

    def __init__(
        self,
        journal: Journal,
        finder: Finder,
        placement: Placement,
        suffix: str,
        every: Duration,
        keep: tuple[int | None, int],
        in_background: bool,
        required: bool,
    ) -> None:
        super().__init__(Interval(every))
        self.journal, self.finder, self._recorder, self._place = journal, finder, journal.recorder, placement
        self._required = required
        self._suffix, self._keep, self._in_background = suffix, keep, in_background
        self.data: dict[str, Any] = {}
        self._called: str | None = None  # away, by a signal that this process got
        self._session: Present | None = None
        self._broke_off_midway = False
        self._state: TrainerState | None = None  # of the trainer, while it runs
        self._saver: Saver | None = None
        self._saver_failed: str | None = None
        self._serial, self._writing = 0, False
        self._unnamed = 0.0  # seconds that the training has waited since the last row

    @property
    def _processes(self) -> Processes:
        return self._place.processes

    @property
    def is_running(self) -> bool:
        """Whether this is within a call of `run`, be it that it has yet to begin."""
        return self.ends_runs

    @property
    def broke_off_midway(self) -> bool:
        """Whether the last call of `run` broke off within an epoch."""
        return self._broke_off_midway and self.journal.standing is Standing.BROKEN

    @property
    def memory(self) -> dict[str, Any]:
        """What the next call of `run` has to know, as plain values; to be set in another process."""
        return {"calls": self.finder.calls, "best": self.finder.kept.place, "loaded": self.finder.loaded is not None}

    @memory.setter
    def memory(self, values: dict[str, Any]) -> None:
        self.finder.calls, self.finder.kept.place = values["calls"], values["best"]
        if not values["loaded"]:  # a run has gone on from it
            self.finder.loaded = None

    # ------------------------------------------------------------------ one run

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Inside, no other job writes into the folder."""
        with self.journal.holding():
            folder = self.journal.folder / CHECKPOINTS
            for sentence in self._processes.on_first(lambda: clear_leftovers(folder)):
                if self._processes.first:
                    warn(sentence)
            yield

    @contextmanager
    def keeping(self, trainer: Face) -> Iterator[None]:
        """Inside, a call of `run` is saved meanwhile, and can be called away."""
        with self._opened(trainer), signals_noted(self.call_away):
            self.ends_runs = True
            try:
                yield
                self._finish()  # here, since a signal must not end the process while the run's end is written
                if called := next(filter(None, self._processes.gather(self._called)), None):
                    self._go(called, "The run had come to its end, and is saved.")
            finally:
                self.ends_runs, self._called = False, None
        self.finder.calls += 1

    @contextmanager
    def _opened(self, trainer: Face, ends: bool = True) -> Iterator[None]:
        """Inside, checkpoints are written; the last thing there is `_finish`."""
        self._state = TrainerState(trainer, self._place, self._recorder)
        self._processes.on_first(self._state.check_savable)
        try:
            with self.journal.opened(trainer, ends):
                try:
                    self._open()
                    yield
                except BaseException as error:
                    self._break_off(error)
                    raise
        finally:
            self._saver = self._state = self._session = None

    def _open(self) -> None:
        folder, journal = self.journal.folder, self.journal
        self._serial = self._processes.on_first(lambda: next_serial(folder / CHECKPOINTS))
        where = (folder, self._processes, self._suffix, self._keep, journal.token, journal.file)
        self._saver = Saver(*where, self._in_background)
        self.due, self._writing, self._saver_failed = False, False, None

    def begins(self, session: Present) -> None:
        """Nothing refuses the run any more: what was loaded is taken."""
        self.finder.loaded = None
        if self.ends_runs:
            self._session, session.called = session, self._called

    def _finish(self) -> None:
        """Wait until all that was saved is written, on every process; refuse that it was not, if it has to be."""
        assert self._saver is not None  # while it runs
        self._saver.wait()
        self._report()
        failed = self._processes.gather(self._saver_failed)
        if self._required and any(failed):
            raise CheckpointError(next(filter(None, failed)))

    def _break_off(self, error: BaseException) -> None:
        """The run ends by an error: let what is being written end, and say where the run can be taken up."""
        if self._session is not None:  # else it was refused, and nothing has changed
            self._broke_off_midway = self._session.opened is not None
        if self._saver is None:
            return
        # What is on its way ends, so that none writes beside the next run; of the others nobody knows who is alive.
        self._saver.give_up(0.0 if isinstance(error, KeyboardInterrupt) else _A_WHILE)
        self._saver.wait()
        if isinstance(error, Exception) and self._processes.first:
            last = committed(self.journal.folder / CHECKPOINTS)
            state = f"the last committed state is {str(last[-1].path)!r}" if last else "nothing was committed yet"
            more = f"{state}; run(..., resume='auto') goes on from it" if last else state
            if failure := self._saver.failure():
                more = f"{FAILED}{failure} {more}"
            if hasattr(error, "add_note"):
                error.add_note(more)
            else:
                print(more, file=sys.stderr)

    # ------------------------------------------------------------------ when to save

    def monitored(self, model: Any, value: float, better: bool) -> None:
        """Note the monitored value of the step that is done."""
        self.finder.kept.monitored(self._recorder.counters.get_step() - 1, value, better)
        if better and is_sharded(model):  # its best weights can be put together only now
            self.due = True

    def ask(self) -> None:
        """Save as soon as no step is half done."""
        self.due = True
        if self._session is not None:
            self._session.wake()

    def next_step(self, step: int) -> float:
        """The next one at once, while something is being written: it may fail."""
        return step + 1 if self._writing else super().next_step(step)

    def at_rest(self, session: Present) -> None:
        """Between two steps or epochs: save if it is due."""
        if self._saver is None:
            return
        if self._writing:
            self._report()
        opened = session.opened
        if self.interval.at_step(session.step):
            self.due = True
        if opened is not None:
            if self.due and not _at_end(opened.plan):
                self.save()
            return
        if self.due or self.interval.at_epoch(self._recorder.counters.get_epoch() - 1, session.is_over):
            self.save(complete=session.is_over)
        else:
            self._account()

    def save_between(self, trainer: Face) -> Path:
        """Save now, between two calls of `run`; return the checkpoint's folder."""
        with self.holding(), self._opened(trainer, ends=False):
            name = self.save(complete=self.finder.calls > 0 and self.finder.loaded is None)
            self._finish()
        return self.journal.folder / CHECKPOINTS / name

    def save(self, complete: bool = False) -> str:
        """Save now, at rest; every process calls it. Returns the name of the checkpoint.

        Parameters
        ----------
        complete : bool
            Whether a call of `run` has come to its end.
        """
        start, saver, state = time.perf_counter(), self._saver, self._state
        assert saver is not None  # while it runs
        assert state is not None
        saver.wait()  # before anything is decided: whether the one before was written matters
        self._report()
        self.due = False
        self.interval.restart()
        begun = self.journal.standing in (Standing.RUNNING, Standing.BROKEN)  # not between two calls of `run`
        opened = self._session.opened if self._session else None
        contents = Contents(self._summary(opened.plan if opened else None, complete, begun))
        self.finder.kept.put(state.trainer, self._processes, contents)
        state.put_into(contents, opened, self._session.border if self._session else None)
        if self._processes.first:
            contents.documents[STATE] |= {"call": contents.summary["call"], "begun": begun, "complete": complete,
                                          "best": self.finder.kept.place}  # fmt: skip
        self.journal.take(state.trainer.optimizer, opened is not None)
        step, name = contents.summary["step"], name_of(self._serial, contents.summary["step"])
        line = {"kind": "checkpoint", "step": step, "name": name, "blocked": saver.blocked, "time": time.time()}
        contents.history = self.journal.put([line])
        self._serial += 1
        self._writing = True
        saver.save(contents)
        blocked = time.perf_counter() - start
        saver.blocked += blocked
        self._recorder.usage.saving += blocked
        self._unnamed += blocked
        self._account()
        return name

    def _account(self) -> None:
        """Put the seconds that the training has waited into the row of this step, if there is one."""
        rows = self._recorder.history.rows
        if rows and rows[-1]["step"] == self._recorder.counters.get_step() - 1:
            rows[-1]["saving"] = (rows[-1].get("saving") or 0.0) + self._unnamed
            self._unnamed = 0.0

    def _summary(self, plan: BatchPlan | None, complete: bool, begun: bool) -> dict[str, Any]:
        """What the manifest says; `plan` is that of the epoch that is running."""
        assert self._state is not None  # while it runs
        counters, rows = self._recorder.counters, self._recorder.history.rows
        step = counters.get_step() - 1
        metrics = {k: v for k, v in rows[-1].items() if k.startswith(("train_", "test_"))} if rows else {}
        summary = {
            "serial": self._serial,
            "step": step,
            "epoch": counters.get_epoch() - 1,
            "batch": plan.position if plan else 0,
            "metrics": metrics if rows and rows[-1]["step"] == step else {},
            "complete": complete,
            "call": self.finder.calls - (complete and not begun),
            "settings": self.journal.facts[0],
            "circumstances": self.journal.facts[1],
            "seed": self._state.trainer.seed,
            "data": self.data,
        }
        monitored = self.finder.kept.value_at(step)
        return summary | {"monitored": monitored} if monitored else summary

    def _report(self) -> None:
        """Say what went wrong with what was written meanwhile."""
        assert self._saver is not None  # while it runs
        if self._saver.busy:
            return
        self._writing = False
        failure = self._saver.failure()
        for sentence in self._saver.problems():
            warn(sentence)
        if failure is None:
            return
        self.finder.kept.forget_where()  # they are nowhere, then
        self._saver_failed = f"{FAILED}{failure}"
        last = f" The last good one: {self._saver.committed or 'none of this attempt'}" if self._processes.first else ""
        warn(f"{FAILED}{failure}{last}")
        if self._required:
            self.call_away(self._saver_failed)

    # ------------------------------------------------------------------ called away

    def call_away(self, reason: str) -> None:
        """Let the run end as soon as all processes have agreed on it; a signal does."""
        self._called = self._called or reason
        if self._session is not None:
            self._session.called = self._called

    def leave(self, session: Present, reason: str) -> NoReturn:
        """Save, wait until it is written on every process, and go."""
        if reason.startswith(FAILED):
            raise CheckpointError(reason)
        name = self.save()
        assert self._saver is not None  # while it runs
        self._saver_failed = None  # of one before
        self._saver.wait()
        self._report()
        failed = next(filter(None, self._processes.gather(self._saver_failed)), None)
        if failed is None:
            folder = str(self.journal.folder)
            self._go(reason, f"Saved as {name} in {folder!r}; the same command goes on from there.")
        last = committed(self.journal.folder / CHECKPOINTS)
        self._go(reason, f"{failed}; the last good state is {str(last[-1].path) if last else 'none'}.")

    def _go(self, reason: str, where: str) -> NoReturn:
        step, epoch = self._recorder.counters.get_step() - 1, self._recorder.counters.get_epoch()
        if self._processes.first:
            said = f"Ended by {reason} at step {step:,} (epoch {epoch}). {where}"
            print(said, file=sys.stderr, flush=True)
        if reason == "SIGINT" and interactive():
            raise KeyboardInterrupt(where)
        raise Interrupted(f"{reason} at step {step}: {where}")

    # ------------------------------------------------------------------ going on

    @property
    def loaded(self) -> Loaded | None:
        """What the next run goes on from, when something was loaded."""
        return self.finder.loaded

    def save_elsewhere(self, folder: Path) -> None:
        """For a run on trial: keep all of it in another folder, and save only when asked to."""
        self.interval, self._required, self._keep = Interval(Duration(1 << 62, "st")), True, (None, 1)
        self.journal.write_elsewhere(folder)
        self.finder.kept.forget_where()  # they are in no checkpoint of this folder


def _at_end(plan: BatchPlan) -> bool:
    """Whether the epoch has no further batch, as far as its loader can tell: its end saves instead."""
    return plan.batches is not None and plan.position >= plan.batches
