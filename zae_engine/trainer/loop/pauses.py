"""The part of the trainer that acts between steps and between epochs: it validates, records, agrees on the end."""

from __future__ import annotations

import time
from typing import Any

from ..console.bar import SilentBar
from ..console.values import epoch_line, unknown_in
from ..data.random_streams import loader_states, put_loader_states
from ..limits import step_scheduler
from ..records.epoch_log import pooled
from ..records.history import Row
from ..resume.position import CalledAway, Resuming
from ..step.trained import Trained
from ..warn import warn

_MUCH = 256 * 2**20  # bytes that are not kept for nobody without a word


class Pacing(Resuming):
    """What `Trainer` needs between two steps and between two epochs; it adds the loop."""

    scheduler: Any
    scheduler_step_on_batch: bool
    _title: str
    _speed: float
    _samples: int
    _seen: Row | None = None  # what the last line within an epoch has shown

    def _pause(self, bar: SilentBar, **kwargs: Any) -> bool:
        """Between two steps: validate and save if it is due; return whether the run ends here."""
        assert self._open is not None  # there is a step in an epoch only
        step, self._open.paused = self.progress_checker.get_step() - 1, False
        self._spent.samples += self._samples
        due = self._validation.at_step(step)
        if due or self._agreement.due(step):
            due |= self._settle(step, within=True)
            if self._one_model is not None and self._compared is None:
                self._compare_processes()
        if due and self._valid_sets:
            self.train_metrics.clear()
            self.train_metrics.update(pooled(self._processes.gather(self.log_train.sums())))
            with bar.standing():
                tested = self._tested_now(**kwargs)
            if tested:
                row = self._take_stock(self.progress_checker.get_epoch(), tested)
                bar.write(epoch_line(f"{bar.title}, step {step}", row, bar.speed, self.show))
                self._seen = dict(row)
                self.log_test.drop()
            self._open.paused = True  # whoever leaves now, has tested
            self._settle(step, within=True)
        self._stop_reason = self._stop_reason or self._budget.spent(step)
        self._open.paused = True
        self._at_rest()
        return self._stop_reason is not None

    def _owes(self, bar: SilentBar, **kwargs: Any) -> bool:
        """Make up for a pause that an interruption has cut off; return whether the run ends here."""
        if self._open is not None and not self._open.paused:
            return self._pause(bar, **kwargs)
        return self._stop_reason is not None  # the run went on after its last step

    def _settle(self, step: int, within: bool = False) -> bool:
        """Agree with the other processes on whether to stop; return whether it is time for a validation."""
        saves = self._saving is not None and self._saving.late()
        logs = self._logging is not None and self._logging.late()
        clocks = (self._validation.late(), saves, logs)
        wish, (tests, saves, logs) = self._agreement.settle(step, self._own_wish(within), clocks)
        if wish.wrong:
            raise RuntimeError(wish.wrong)
        self._stop_reason = self._stop_reason or wish.stop or self._budget.spent(step)
        self._save_due |= saves
        self._log_due |= logs
        if wish.away and not self._is_over():
            self._leave(wish.away)
        return tests

    def _is_over(self) -> bool:
        """Whether the run has come to its end, between two epochs."""
        ends = self._stop_reason is not None or self.progress_checker.get_epoch() > self._budget.last_epoch
        return ends and self._open is None

    def _tested_now(self, **kwargs: Any) -> bool:
        """Validate; when the processes are called away meanwhile, that is where the training leaves."""
        losses, log = len(self.log_test.losses), self.log_test
        generators = {name: loader_states(loader) for name, loader in self._valid_sets.items()}
        try:
            with self._spent.on("evaluation"):
                return self._validate(**kwargs)
        except CalledAway as call:  # it is begun again from the same order, and each of its losses counts once
            for name, states in generators.items():
                put_loader_states(self._valid_sets.get(name), states)
            log.clear()
            del log.losses[losses:]
            self._leave(str(call))

    def _clear_up(self, tested: bool) -> None:
        """Keep nothing of a validation but its numbers; say what was kept of the training for nobody."""
        if tested:
            self.log_test.drop()
        if not self._looks_at_logs() and (size := self.log_train.size_of_others()) > _MUCH:
            names = ", ".join(map(repr, self.log_train.others()))
            self._warn_once(
                "kept",
                f"what train_step returns as {names} was kept until the epoch's end, {size / 2**20:,.0f} MiB, and no"
                " metric_on_epoch_end of this trainer reads it; leave it out there, and let test_step return what"
                " inference() needs",
            )

    def _end_epoch(self, epoch: int, **kwargs: Any) -> str:
        """Validate, record, step the scheduler and count, after one epoch of `run`; return a line about it."""
        if self._batches == 0:
            warn("the loader gave no batch, so nothing was done; the run ends here")
            self._stop_reason = "the loader gave no batch"
            if self.mode == "train":
                self._open, self._border = None, Trained(self.model, self.optimizer)
                if self.progress_checker.get_step() - 1 > self._budget.first_step:  # else nothing is there to be kept
                    self._at_rest()
            return self._stop_reason
        training, speed, step = self.mode == "train", self._speed, self.progress_checker.get_step() - 1
        self._settle(step)
        last = self._stop_reason is not None or epoch + 1 >= self._budget.last_epoch
        due = training and self._validation.at_epoch(epoch + 1, last)
        tested = due and self._tested_step != step and self._tested_now(**kwargs)
        row = self._take_stock(epoch + 1 if training else self.progress_checker.get_epoch() - 1, tested or not training)
        if training:
            self._clear_up(tested)
            if self.scheduler is not None and not self.scheduler_step_on_batch:
                step_scheduler(self.scheduler, self._tested_loss if self._valid_sets else row.get("train_loss"))
                self._tested_loss = None
            self.progress_checker.update_epoch()
            self._open, self._border = None, Trained(self.model, self.optimizer)
        self._epoch_began = time.perf_counter()
        self._settle(step)
        if training:
            self._at_rest()
        if self.show and (unknown := unknown_in(self.show, row)):
            self._warn_once("show", unknown)
        # The values of a validation at the last step stand in the line before.
        seen = self._seen if training and self._seen is not None and self._seen["step"] == step else None
        return epoch_line(self._title if training else f"{self._title} test", row, speed, self.show, seen)
