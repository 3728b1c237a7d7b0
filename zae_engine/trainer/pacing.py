"""The part of the trainer that acts between steps and between epochs: it validates, records, agrees on the end."""

from __future__ import annotations

import time
import warnings
from typing import Any

from .agreement import Agreement
from .banner import epoch_line
from .evaluating import Evaluating
from .history import pooled
from .progress import SilentBar
from .schedule import Budget, step_scheduler


class Pacing(Evaluating):
    """What `Trainer` needs between two steps and between two epochs; it adds the loop."""

    scheduler: Any
    scheduler_step_on_batch: bool
    _agreement: Agreement
    _budget: Budget
    _title: str
    _speed: float

    def _pause(self, bar: SilentBar, **kwargs: Any) -> bool:
        """Between two steps: validate if it is due; return whether the run ends here."""
        step = self.progress_checker.get_step() - 1
        due = self._validation.at_step(step)
        if due or self._agreement.due(step):
            due |= self._settle(step)
        if due and self._valid_sets:
            self.train_metrics.clear()
            self.train_metrics.update(pooled(self._processes.gather(self.log_train.sums())))
            with bar.standing():
                tested = self._validate(**kwargs)
            if tested:
                row = self._take_stock(self.progress_checker.get_epoch(), tested)
                bar.write(epoch_line(f"{bar.title}, step {step}", row, bar.speed))
            self._settle(step)
        self._stop_reason = self._stop_reason or self._budget.spent(step)
        return self._stop_reason is not None

    def _settle(self, step: int) -> bool:
        """Agree with the other processes on whether to stop; return whether it is time for a validation."""
        wish, clock = self._agreement.settle(step, self._wish or self._budget.late(), self._validation.late())
        self._stop_reason = self._stop_reason or wish or self._budget.spent(step)
        return clock

    def _end_epoch(self, epoch: int, **kwargs: Any) -> str:
        """Validate, record, step the scheduler and count, after one epoch of `run`; return a line about it."""
        if self._batches == 0:
            warnings.warn("the loader gave no batch, so nothing was done; the run ends here", stacklevel=3)
            self._stop_reason = "the loader gave no batch"
            return self._stop_reason
        training, speed, step = self.mode == "train", self._speed, self.progress_checker.get_step() - 1
        self._settle(step)
        last = self._stop_reason is not None or epoch + 1 >= self._budget.last_epoch
        due = training and self._validation.at_epoch(epoch + 1, last)
        tested = due and self._tested_step != step and self._validate(**kwargs)
        row = self._take_stock(epoch + 1 if training else self.progress_checker.get_epoch() - 1, tested or not training)
        if training:
            if self.scheduler is not None and not self.scheduler_step_on_batch:
                step_scheduler(self.scheduler, self._tested_loss if self._valid_sets else row.get("train_loss"))
                self._tested_loss = None
            self.progress_checker.update_epoch()
        self._settle(step)
        self._epoch_began = time.perf_counter()
        return epoch_line(self._title if training else f"{self._title} test", row, speed)
