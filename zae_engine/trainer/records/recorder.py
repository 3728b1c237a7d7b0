"""What is seen of a run: the values of its steps, metrics, rows, the best weights, and what is warned of."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checkpoint.best_rule import RULE, is_finite
from ...redaction import redact
from .. import refusals
from ..console.bar import make_bar
from ..console.values import is_shown, rates_in_words
from ..interface import Face
from ..nested_values import as_float, is_scalar
from ..processes.group import Processes
from ..warn import warn
from .best_weights import BestWeights
from .counters import ProgressChecker
from .epoch_log import EpochLog
from .gather import put_together
from .history import History, Row
from .metric_inputs import Route
from .metrics import Measures, check_metrics
from .monitor import Monitor
from .rates import rates_of
from .run_progress import Call
from .time_and_memory import Usage
from .user_values import OwnValues

_MUCH = 256 * 2**20  # bytes that are not kept for nobody without a word


class Recorder:
    """Keeps what a trainer has seen; every process has one, and calls the same methods.

    Parameters
    ----------
    monitor : Monitor
        What tells the best weights.
    on_nan : {'warn', 'stop'}
        Whether a loss that is not finite ends the run.
    metrics : dict of str to metric
    routes : dict of str to Route
        What of a step's values each metric takes.
    keeps_lines : bool
        Whether each step's values are written down.
    processes : Processes
    device : torch.device
        Where the metrics are computed.

    Attributes
    ----------
    log_train, log_test : EpochLog
    train_metrics, test_metrics : dict of str to float
    history : History
    counters : ProgressChecker
    best : BestWeights
    usage : Usage
        Where the time goes.
    own : OwnValues
        What the user has logged.
    call, training : Call
        The present call of `run`, or the last one; and the last one that trained.
    batches, speed : int, float
        Of the last walk over a loader: how many, and samples a second.
    samples : int
        In the last batch, over all processes.
    batch_of : str
        ``'train'`` or ``'test'`` within a batch; else empty.
    """

    def __init__(
        self,
        monitor: Monitor,
        on_nan: str,
        metrics: dict[str, Any],
        routes: dict[str, Route],
        keeps_lines: bool,
        processes: Processes,
        device: torch.device,
    ) -> None:
        refusals.check_choice("on_nan", on_nan, ("warn", "stop"))
        self.best, self.history, self.usage = BestWeights(monitor), History(monitor.direction), Usage()
        self.counters, self.batch_of = ProgressChecker(), ""
        self.call = self.training = Call()
        self.batches, self.speed, self.samples = 0, 0.0, 0
        self.train_metrics: dict[str, float] = {}
        self.test_metrics: dict[str, float] = {}
        self.keeps_lines, self._on_nan, self._routes = keeps_lines, on_nan, routes
        self.join(metrics, processes, device)

    def join(self, metrics: dict[str, Any], processes: Processes, device: torch.device) -> None:
        """Begin logs that suit the number of processes; one of them writes files."""
        self._processes, self._device = processes, device
        watch = self._on_nan == "stop"
        self.log_train = EpochLog(self._not_finite_in_training, watch)
        self.log_test = EpochLog(self._not_finite_in_evaluation, watch)
        self.history.writes = processes.first
        self.own = OwnValues(self.keeps_lines and processes.first)
        self.measures = {mode: Measures(metrics, self._routes, device, processes) for mode in refusals.MODES}

    def watch(self, trainer: Face) -> None:
        """Another ``on_nan`` was assigned."""
        self._on_nan = trainer.on_nan
        for log in (self.log_train, self.log_test):
            log.watch = trainer.on_nan == "stop"

    def measure_by(self, trainer: Face, metrics: Any) -> dict[str, Any]:
        """Other metrics were assigned: they measure from the next epoch on, and are returned by name."""
        found, routes = check_metrics(metrics)
        known = {name for name, metric in found.items() if metrics[name] is trainer.metrics.get(name)}
        self._routes = {name: self._routes[name] if name in known else route for name, route in routes.items()}
        self.best.measure(found)
        for measures in self.measures.values():
            measures.exchange(Measures(found, self._routes, self._device, self._processes))
        return found

    def of(self, mode: str) -> tuple[EpochLog, dict[str, float]]:
        """The log and the metrics of training, or of evaluation."""
        return (self.log_train, self.train_metrics) if mode == "train" else (self.log_test, self.test_metrics)

    def unheard(self) -> Recorder:
        """For a rehearsal: what a step logs there is no value of the run."""
        like = object.__new__(type(self))
        vars(like).update(vars(self), own=OwnValues(kept=False))
        return like

    # ------------------------------------------------------------------ calls of run

    def begin(self, trainer: Face, call: Call) -> None:
        """A call of `run` begins: forget what belongs to an earlier one only."""
        _ = self.best.monitor.mode  # refuses, before the first batch, one that was assigned and does not tell
        self.call = call
        if trainer.mode == "train":
            self.training = call
        call.rows_before, call.samples_before = len(self.history), self.usage.samples
        call.seconds_before = self.usage.now()
        fed = set().union(*(route.keys for route in self._routes.values()))
        listeners = (self._not_finite_in_training, self._not_finite_in_evaluation)
        for log, listener in zip((self.log_train, self.log_test), listeners, strict=True):
            log.leave_out(() if reads_logs(trainer) else fed)
            log.listen(None)
            log.drain()  # what a run that broke off has left
            log.listen(listener)

    def stop(self, reason: str) -> None:
        """Let the run end; the other processes are told when all of them meet."""
        self.call.wish = self.call.wish or redact(reason)  # it is written down

    @property
    def stop_reason(self) -> str | None:
        """Why the run ends, or ended, before its last epoch; None when it does not."""
        return self.call.stop_reason or self.call.wish

    def warn_once(self, about: str, text: str) -> None:
        """Warn, once in a call of `run`; of several processes, the first one does."""
        if about in self.call.warned:
            return
        self.call.warned.add(about)
        if self._processes.first or about.startswith("nan"):  # which one process may have alone
            warn(text)

    def _not_finite_in_training(self, key: str, step: int, value: float) -> None:
        stops = key == "loss" and self._on_nan == "stop"
        advice = "; the run stops" if stops else "; on_nan='stop' would end the run" if key == "loss" else ""
        self.warn_once(f"nan train {key}", f"'{key}' is {value} from step {step} on{advice}")
        if stops:
            self.stop(f"the loss is {value} from step {step} on")

    def _not_finite_in_evaluation(self, key: str, step: int, value: float) -> None:
        self.warn_once(f"nan test {key}", f"'{key}' of the evaluation is {value} from step {step} on")

    # ------------------------------------------------------------------ epochs

    def open_epoch(self, mode: str) -> None:
        """Forget the last epoch's values."""
        self.of(mode)[0].clear()
        self.measures[mode].reset()

    def close_epoch(self, trainer: Face, batches: int) -> None:
        """After so many batches: put the processes' values together, and take the epoch's metrics."""
        log, metrics = self.of(trainer.mode)
        put_together(log, self._processes, everything=reads_logs(trainer))
        metrics.clear()
        metrics.update(log.means())
        metrics.update(self._numbers(self.measures[trainer.mode].compute() if batches else {}, "metrics= gave"))
        metrics.update(self._numbers(trainer.metric_on_epoch_end()))

    def take_stock(self, trainer: Face, epoch: int, tested: bool, validates: bool) -> Row:
        """Put the metrics, as they are now, into the history, and keep the weights if they are the best so far.

        Parameters
        ----------
        trainer : Trainer
        epoch : int
            Counted from 1.
        tested : bool
            Whether the row has an evaluation's metrics.
        validates : bool
            Whether the run has a validation, which then decides what is best.
        """
        trained, call = trainer.mode == "train", self.call
        row: Row = {"epoch": epoch, "step": self.counters.get_step() - 1, **rates_of(trainer.optimizer)}
        if trained:
            row.update({f"train_{key}": value for key, value in self.train_metrics.items()})
        if tested:
            row.update({f"test_{key}": value for key, value in self.test_metrics.items()})
            call.tested_loss, call.tested_step = row.get("test_loss") if call.tested_all else None, row["step"]
        row["seconds"] = time.perf_counter() - call.epoch_began
        row = self.history.put(row, complete=len(self.history) > call.rows_before)
        decides = call.tested_all if tested else not validates
        if trained and decides and (value := self._monitored(trainer, row, tested)) is not None:
            trainer.check_better(cur_epoch=epoch - 1, cur_loss=value)
        return row

    def _monitored(self, trainer: Face, row: Row, tested: bool) -> float | None:
        """The value that tells better from worse; None in a row that lacks it."""
        split, monitor = "test" if tested else "train", self.best.monitor
        if (name := monitor.column(row, split)) is not None:
            if is_finite(row[name]):
                self._turn_to(trainer, name)
            elif f"nan {split} {name.removeprefix(f'{split}_')}" not in self.call.warned:  # else the step has told it
                self.warn_once(f"best {name}", f"{name} is {row[name]} in epoch {row['epoch']}; {RULE}")
            return row[name]
        if monitor.name == "loss" or not any(name.startswith(f"{split}_") for name in row):
            return None
        self.warn_once("monitor", refusals.unknown_monitor(monitor.name, row, split))
        return None  # and not the loss: two quantities in one comparison would keep the wrong weights

    def _turn_to(self, trainer: Face, column: str) -> None:
        """A run with a validation may follow on one without."""
        if (before := self.best.turns_to(column)) is not None:
            said = f"The best was told by {before}; from here on {column} tells it, and is compared with itself only."
            make_bar(trainer.log_bar and self._processes.first).write(said)

    def clear_up(self, trainer: Face, tested: bool) -> None:
        """Keep nothing of a validation but its numbers; say what was kept of the training for nobody."""
        if tested:
            self.log_test.drop()
        if not reads_logs(trainer) and (size := self.log_train.size_of_others()) > _MUCH:
            names = ", ".join(map(repr, self.log_train.others()))
            self.warn_once(
                "kept",
                f"what train_step returns as {names} was kept until the epoch's end, {size / 2**20:,.0f} MiB, and no"
                " metric_on_epoch_end of this trainer reads it; leave it out there, and let test_step return what"
                " inference() needs",
            )

    def _numbers(self, metrics: Any, source: str = "metric_on_epoch_end returned") -> dict[str, float]:
        """The metrics that are numbers, as Python's; others are left out with a warning."""
        if metrics is None:  # an override that only looks
            return {}
        if not isinstance(metrics, Mapping):
            self.warn_once(
                "metrics",
                f"metric_on_epoch_end returned a {type(metrics).__name__}, which is left out; return a dict of numbers"
                " by name: {'acc': 0.9}",
            )
            return {}
        for key, value in metrics.items():
            if not _is_number(value):
                self.warn_once(
                    f"metric {key}",
                    f"{source} {key!r} of type {type(value).__name__}, which is left out; return numbers, one under"
                    " each name",
                )
        return {str(key): as_float(value) for key, value in metrics.items() if _is_number(value)}

    def shown(self, trainer: Face, position: str) -> dict[str, str]:
        """What the bar shows: position, learning rate and the epoch's means so far."""
        log, split = self.of(trainer.mode)[0], trainer.mode
        shown = {k: v for k, v in log.means().items() if is_shown(f"{split}_{k}", k, trainer.show)}
        means = {key: f"{value:.6f}" for key, value in shown.items()}
        return {"Batch": position, "LR": rates_in_words(rates_of(trainer.optimizer), 3), **means}

    # ------------------------------------------------------------------ states

    def state_dict(self) -> dict[str, Any]:
        """Counters and the best value."""
        return {"step": self.counters.get_step(), "epoch": self.counters.get_epoch(), **self.best.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.counters.init_state(state["step"], state["epoch"])
        self.best.load_state_dict(state)


def only_logs(trainer: Face) -> bool:
    """Whether nobody but the log gets a step's values, which reads the numbers on the host at once."""
    return getattr(trainer.logging, "only_logs", False) and not trainer.metrics


def reads_logs(trainer: Face) -> bool:
    """Whether the user has written `metric_on_epoch_end`, which may read any value of the epoch."""
    return not getattr(trainer.metric_on_epoch_end, "missing", False)


def _is_number(value: Any) -> bool:
    """Whether `value` is one number, be it in a tensor or an array."""
    return is_scalar(value) or (isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) == 1)
