"""What keeps a run: its folder, its history file, when a checkpoint is due, how it goes on, how it leaves.

The trainer is passed as Any, since its module is above this one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ...checkpoint.commit import clear_leftovers
from ...checkpoint.errors import CheckpointError
from ...checkpoint.folder import CHECKPOINTS, committed, name_of, next_serial
from ...checkpoint.sharded import whole_model
from ..journal.journal import RunLog
from ..limits import Duration
from ..processes.group import is_sharded
from ..warn import warn
from .finder import TakingUp
from .trainer_state import best_extra, check_savable, whole_of
from .writer import BEST, MODEL, STATE, Contents, Saver

FAILED = "a checkpoint could not be written: "
_A_WHILE = 3.0  # seconds that a run that broke off waits for the files of the other processes


class Keeper(TakingUp):
    """Saves a trainer's run into a folder, and takes it up from there.

    Parameters
    ----------
    log : RunLog
        The run's, with its folder.
    suffix : str
        Of the files of tensors.
    every : Duration
        How often to save.
    keep : (int or None, int)
        How many of the newest, and of the best, checkpoints are kept.
    in_background, required : bool
        Whether writing goes on beside the training; whether a failed one ends it.
    """

    def __init__(
        self,
        log: RunLog,
        suffix: str,
        every: Duration,
        keep: tuple[int | None, int],
        in_background: bool,
        required: bool,
    ) -> None:
        super().__init__(log)
        self.every, self.required = every, required
        self._suffix, self._keep, self._in_background = suffix, keep, in_background
        self._saver: Saver | None = None
        self._saver_failed: str | None = None
        self.data: dict[str, Any] = {}  # of the present call of `run`: see `same_data`
        self._serial, self._due, self._writing = 0, False, False
        self._unnamed = 0.0  # seconds that the training has waited since the last row

    # ------------------------------------------------------------------ one run

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Inside, no other job writes into the folder."""
        with self.log.holding():
            for sentence in self._processes.on_first(lambda: clear_leftovers(self.folder / CHECKPOINTS)):
                if self._processes.first:
                    warn(sentence)
            yield

    @contextmanager
    def running(self, counts: bool = True) -> Iterator[None]:
        """Inside, the trainer runs and saves; the last thing there is `finish`.

        Parameters
        ----------
        counts : bool
            Whether it is a call of `run`.
        """
        self._processes.on_first(lambda: check_savable(self.trainer))
        try:
            with self.log.opened(ends=counts):
                try:
                    self._open()
                    yield
                except BaseException as error:
                    self._break_off(error)
                    raise
            if counts:
                self.calls, self._broken = self.calls + 1, False
        except BaseException:
            self._broken |= counts
            raise
        finally:
            self._saver = None

    def _open(self) -> None:
        self._serial = self._processes.on_first(lambda: next_serial(self.folder / CHECKPOINTS))
        where = (self.folder, self._processes, self._suffix, self._keep, self.log.token, self.log.file)
        self._saver = Saver(*where, self._in_background)
        self._due, self._writing, self._saver_failed = False, False, None

    def finish(self) -> None:
        """Wait until all that was saved is written, on every process.

        Raises
        ------
        CheckpointError
            When it was not, and has to be.
        """
        assert self._saver is not None  # while it runs
        self._saver.wait()
        self._report()
        failed = self._processes.gather(self._saver_failed)
        if self.required and any(failed):
            raise CheckpointError(next(filter(None, failed)))

    def called_away(self) -> str | None:
        """The signal that came too late to be agreed on, to whichever process."""
        return next(filter(None, self._processes.gather(self.trainer._called)), None)

    def _break_off(self, error: BaseException) -> None:
        """The run ends by an error: let what is being written end, and say where the run can be taken up."""
        if self._saver is None:
            return
        # What is on its way ends, so that none writes beside the next run; of the others nobody knows who is alive.
        self._saver.give_up(0.0 if isinstance(error, KeyboardInterrupt) else _A_WHILE)
        self._saver.wait()
        if isinstance(error, Exception) and self._processes.first:
            last = committed(self.folder / CHECKPOINTS)
            state = f"the last committed state is {str(last[-1].path)!r}" if last else "nothing was committed yet"
            more = f"{state}; run(..., resume='auto') goes on from it" if last else state
            if failure := self._saver.failure():
                more = f"{FAILED}{failure} {more}"
            if hasattr(error, "add_note"):
                error.add_note(more)
            else:
                print(more, file=sys.stderr)

    # ------------------------------------------------------------------ when to save

    def monitored(self, value: float, better: bool) -> None:
        """Note the monitored value of the step that is done."""
        step = self.trainer.progress_checker.get_step() - 1
        self._monitored = (step, value, better)
        if better and is_sharded(self.trainer.model):  # its best weights can be put together only now
            self._due = True

    def at_rest(self) -> None:
        """Between two steps or epochs: save if it is due."""
        if self._writing:
            self._report()
        trainer, every = self.trainer, self.every
        opened, step = trainer._open, trainer.progress_checker.get_step() - 1
        if every.unit == "st" and step % every.count == 0:
            self._due = True
        if opened is not None:
            if (self._due or trainer._save_due) and not _at_end(opened.plan):
                self.save()
            return
        epochs = trainer.progress_checker.get_epoch() - 1
        complete = trainer._is_over()
        if complete or self._due or trainer._save_due or (every.unit == "ep" and epochs % every.count == 0):
            self.save(complete)
        else:
            self._account()

    def save(self, complete: bool = False) -> str:
        """Save now, at rest; every process calls it. Returns the name of the checkpoint."""
        start, trainer, saver = time.perf_counter(), self.trainer, self._saver
        assert saver is not None  # while it runs
        saver.wait()  # before anything is decided: whether the one before was written matters
        self._report()
        self._due = trainer._save_due = False
        if trainer._saving is not None:
            trainer._saving.restart()
        begun = trainer._keeps or self._broken  # or save_state() was called between two calls of `run`
        contents = Contents(self._summary(complete, self.calls - (complete and not begun)))
        self._put_best(contents)
        whole_of(trainer, contents)
        if self._processes.first:
            contents.documents[STATE] |= {"call": contents.summary["call"], "begun": begun, "complete": complete,
                                          "best": self._best, "best_extra": best_extra(trainer)}  # fmt: skip
        self.log.take()
        name = name_of(self._serial, contents.summary["step"])
        contents.history = self.log.put([{"kind": "checkpoint", "step": contents.summary["step"], "name": name,
                                          "blocked": saver.blocked, "time": time.time()}])  # fmt: skip
        self._serial += 1
        self._writing = True
        saver.save(contents)
        blocked = time.perf_counter() - start
        saver.blocked += blocked
        trainer._spent.saving += blocked
        self._unnamed += blocked
        self._account()
        return name

    def _account(self) -> None:
        """Put the seconds that the training has waited into the row of this step, if there is one."""
        rows = self.trainer.history.rows
        if rows and rows[-1]["step"] == self.trainer.progress_checker.get_step() - 1:
            rows[-1]["saving"] = (rows[-1].get("saving") or 0.0) + self._unnamed
            self._unnamed = 0.0

    def _summary(self, complete: bool, call: int) -> dict[str, Any]:
        trainer = self.trainer
        step, epoch = trainer.progress_checker.get_step() - 1, trainer.progress_checker.get_epoch() - 1
        rows = trainer.history.rows
        metrics = {k: v for k, v in rows[-1].items() if k.startswith(("train_", "test_"))} if rows else {}
        summary = {
            "serial": self._serial,
            "step": step,
            "epoch": epoch,
            "batch": trainer._open.plan.position if trainer._open else 0,
            "metrics": metrics if rows and rows[-1]["step"] == step else {},
            "complete": complete,
            "call": call,
            "settings": self.log.facts[0],
            "circumstances": self.log.facts[1],
            "seed": trainer.seed,
            "data": self.data,
        }
        if self._monitored is not None and self._monitored[0] == step:
            name, mode, column = trainer._monitor.watched
            summary["monitored"] = {"name": column or name, "value": self._monitored[1], "mode": mode}
        return summary

    def _put_best(self, contents: Contents) -> None:
        """See to it that the best weights are in this checkpoint, or in one that it refers to."""
        buffer, spread = self.trainer.weight_buffer, is_sharded(self.trainer.model)
        now = self._monitored is not None and self._monitored[2] and self._monitored[0] == contents.summary["step"]
        # Spread ones are put together by all processes, of which one alone may know that the last save failed.
        if buffer["weight"] and (now if spread else buffer["weight"][-1] is not self._best_weights):
            # What was kept then: the model's own weights may be others again, after an add-on has swapped them back.
            best = whole_model(self.trainer.model, buffer["weight"][-1]) if spread else buffer["weight"][-1]
            if best is not None and self._processes.first:
                contents.private[MODEL if spread else BEST] = {k: v for k, v in best.items() if isinstance(v, Tensor)}
            contents.is_best = True
            self._best_weights = buffer["weight"][-1]
            self._best = {"epoch": buffer["epoch"][-1], "serial": self._serial}
        elif not buffer["weight"]:  # another `monitor` was assigned
            self._best = self._best_weights = None
        if self._best is not None:
            contents.summary["refers_to"] = [self._best["serial"]]
            contents.summary["best"] = {"epoch": self._best["epoch"], "serial": self._best["serial"]}

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
        self._best_weights = None  # they are nowhere, then
        self._saver_failed = f"{FAILED}{failure}"
        last = f" The last good one: {self._saver.committed or 'none of this attempt'}" if self._processes.first else ""
        warn(f"{FAILED}{failure}{last}")
        if self.required:
            self.trainer._called = self._saver_failed

    def leave(self, reason: str) -> str:
        """Save, wait until every process has written, and say where it is."""
        if reason.startswith(FAILED):
            raise CheckpointError(reason)
        name = self.save()
        assert self._saver is not None  # while it runs
        self._saver_failed = None  # of one before
        self._saver.wait()
        self._report()
        failed = next(filter(None, self._processes.gather(self._saver_failed)), None)
        if failed is None:
            return f"Saved as {name} in {str(self.folder)!r}; the same command goes on from there."
        last = committed(self.folder / CHECKPOINTS)
        return f"{failed}; the last good state is {str(last[-1].path) if last else 'none'}."


def _at_end(plan: Any) -> bool:
    """Whether the epoch has no further batch, as far as its loader can tell: its end saves instead."""
    return plan.batches is not None and plan.position >= plan.batches
