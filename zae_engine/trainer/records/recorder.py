"""What a trainer keeps of a run: logs, metrics, history, and the best weights."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor

from ...checkpoint import WeightsError, load_weights, read_weights, save_weights, whole_state
from ...checkpoint.best import RULE, is_finite
from ...checkpoint.snapshot import identity_of
from ...checkpoint.weights import own_state
from ...redaction import redact
from .. import checks
from ..console.bar import make_bar
from ..console.values import is_shown, rates_in_words
from ..nests import as_float, is_scalar
from ..options import Settings
from ..processes.group import Processes, is_sharded
from ..warn import warn
from .counters import ProgressChecker
from .epoch_log import EpochLog
from .history import History, Row
from .monitor import Monitor
from .own_values import OwnValues, TakesValues
from .rates import rates_of
from .routes import Route
from .usage import Spent

Path = str | PathLike[str]


class Records(TakesValues, Settings):
    """The part of the trainer that remembers; `Trainer` adds the part that trains."""

    log_train: EpochLog
    log_test: EpochLog
    train_metrics: dict[str, float]
    test_metrics: dict[str, float]
    history: History
    progress_checker: ProgressChecker
    loss_buffer: float
    weight_buffer: dict[str, list[Any]]
    _valid_sets: dict[str, Any]
    log_bar: bool
    _routes: dict[str, Route]
    _lines_wanted = False  # whether somebody writes down each step's values
    _processes: Processes

    def _start_records(self, monitor: Monitor, on_nan: str) -> None:
        checks.check_choice("on_nan", on_nan, ("warn", "stop"))
        self._monitor, self.on_nan = monitor, on_nan
        self.history, self.progress_checker, self._spent = History(monitor.direction), ProgressChecker(), Spent()
        self.train_metrics, self.test_metrics = {}, {}
        self._forget_best()

    def _forget_best(self) -> None:
        self.loss_buffer, self.weight_buffer = self._monitor.worst(), {"epoch": [], "weight": []}

    @property
    def monitor(self) -> str:
        """What tells the best weights. After another one was assigned, the best is looked for anew."""
        return self._monitor.name

    @monitor.setter
    def monitor(self, name: str) -> None:
        self._watch_for(lambda monitor: monitor.rename(name))

    @property
    def monitor_mode(self) -> str | None:
        """Which direction of it is better, ``'min'`` or ``'max'``; None as long as that is not known."""
        return self._monitor.known_mode

    @monitor_mode.setter
    def monitor_mode(self, mode: str | None) -> None:
        self._watch_for(lambda monitor: monitor.choose(mode))

    def _watch_for(self, change: Callable[[Monitor], None]) -> None:
        before = self.monitor, self.monitor_mode
        change(self._monitor)
        if (self.monitor, self.monitor_mode) != before:
            self._forget_best()

    def _start_logs(self) -> None:
        """Begin logs that suit the number of processes; one of them writes files."""
        watch, parts = self.on_nan == "stop", self._processes.count > 1 or self._lines_wanted
        self.log_train, self.log_test = (EpochLog(self._not_finite, watch, parts) for _ in range(2))
        self.history.writes = self._processes.first
        self._own = OwnValues(self._lines_wanted and self._processes.first)

    @property
    def stop_reason(self) -> str | None:
        """Why the run ends, or ended, before its last epoch; None when it does not."""
        return self._stop_reason or self._wish

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that shows and writes: the only one, or the first of several."""
        return self._processes.first

    def toggle(self, mode: str | None = None) -> None:
        """Switch to `mode`, 'train' or 'test'; None switches to the other one."""
        if mode is None:
            mode = "test" if self.mode == "train" else "train"
        checks.check_choice("mode", mode, checks.MODES)
        self.mode = mode

    def _begin_records(self) -> None:
        """Forget what belongs to an earlier call of `run` only."""
        _ = self._monitor.mode  # refuses, before the first batch, one that was assigned and does not tell
        self._stop_reason: str | None = None  # all processes agree on it
        self._wish: str | None = None  # this process's
        self._epoch_began = time.perf_counter()
        self._tested_loss: float | None = None  # of the last validation since the scheduler's last step
        self._tested_step: float | None = None
        self._tested_all = True  # whether each set had something to give, so that means can be compared
        self._rows_before = len(self.history)
        self._spent_before = self._spent.now(), self._spent.samples
        self._warned: set[str] = set()
        fed = set().union(*(route.keys for route in self._routes.values()))
        for log in (self.log_train, self.log_test):
            log.leave_out(() if self._looks_at_logs() else fed)
            log.listen(None)
            log.drain()  # what a run that broke off has left
            log.listen(self._not_finite)

    # ------------------------------------------------------------------ values of the steps

    def logging(self, step_dict: dict[str, Any]) -> None:
        """Take the values of one batch: detached, still on their device, with ``"num_items"`` as their weight."""
        log = self.log_train if self.mode == "train" else self.log_test
        log.add(step_dict, step_dict.get("num_items", 1), self.progress_checker.get_step())

    def _looks_at_logs(self) -> bool:
        """Whether `metric_on_epoch_end` was written by the user, who may read any value of the epoch there."""
        return type(self).metric_on_epoch_end is not Records.metric_on_epoch_end

    def log_reset(self, epoch_end: bool = False) -> None:
        """Forget the running epoch's values; with `epoch_end`, the metrics, too."""
        self.log_train.clear()
        self.log_test.clear()
        if epoch_end:
            self.train_metrics.clear()
            self.test_metrics.clear()

    def get_loss_history(self, mode: str = "train") -> list[float]:
        """The loss of every step so far, in mode 'train' or 'test'."""
        checks.check_choice("mode", mode, checks.MODES)
        log = self.log_train if mode == "train" else self.log_test
        log.drain()
        return log.losses.tolist()

    def print_log(self, cur_batch: int, num_batch: Any) -> dict[str, str]:
        """What the bar shows: position, learning rate and the epoch's means so far."""
        log = self.log_train if self.mode == "train" else self.log_test
        split = "train" if self.mode == "train" else "test"
        shown = {k: v for k, v in log.means().items() if is_shown(f"{split}_{k}", k, self.show)}
        means = {key: f"{value:.6f}" for key, value in shown.items()}
        return {"Batch": f"{cur_batch}/{num_batch}", "LR": rates_in_words(rates_of(self.optimizer), 3), **means}

    def metric_on_epoch_end(self) -> dict[str, float]:
        """Return further metrics of the epoch that ends, from its logs; override this.

        `mode` tells which epoch it is; ``self.log_train`` and ``self.log_test`` hold its values.

        Examples
        --------
        >>> def metric_on_epoch_end(self):
        ...     log = self.log_train if self.mode == "train" else self.log_test
        ...     hits = torch.cat(log["output"]).argmax(1) == torch.cat(log["target"])
        ...     return {"acc": hits.float().mean().item()}
        """
        return {}

    def _numbers(self, metrics: Any, source: str = "metric_on_epoch_end returned") -> dict[str, float]:
        """The metrics that are numbers, as Python's; others are left out with a warning."""
        if metrics is None:  # an override that only looks
            return {}
        if not isinstance(metrics, Mapping):
            self._warn_once(
                "metrics",
                f"metric_on_epoch_end returned a {type(metrics).__name__}, which is left out; return a dict of numbers"
                " by name: {'acc': 0.9}",
            )
            return {}
        for key, value in metrics.items():
            if not _is_number(value):
                self._warn_once(
                    f"metric {key}",
                    f"{source} {key!r} of type {type(value).__name__}, which is left out; return numbers, one under"
                    " each name",
                )
        return {str(key): as_float(value) for key, value in metrics.items() if _is_number(value)}

    def _not_finite(self, key: str, step: int, value: float) -> None:
        training_loss = self.mode == "train" and key == "loss"
        stops = training_loss and self.on_nan == "stop"
        where = "" if self.mode == "train" else " of the evaluation"
        advice = "; the run stops" if stops else "; on_nan='stop' would end the run" if training_loss else ""
        self._warn_once(f"nan {self.mode} {key}", f"'{key}'{where} is {value} from step {step} on{advice}")
        if stops:
            self.stop(f"the loss is {value} from step {step} on")

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            if not self._processes.first and not about.startswith("nan"):
                return  # process 0 has said it
            warn(text)

    # ------------------------------------------------------------------ epochs

    def _take_stock(self, epoch: int, tested: bool) -> Row:
        """Put the metrics, as they are now, into the history, and keep the weights if they are the best so far."""
        trained = self.mode == "train"
        row: Row = {"epoch": epoch, "step": self.progress_checker.get_step() - 1}
        row.update(rates_of(self.optimizer))
        if trained:
            row.update({f"train_{key}": value for key, value in self.train_metrics.items()})
        if tested:
            row.update({f"test_{key}": value for key, value in self.test_metrics.items()})
            self._tested_loss, self._tested_step = row.get("test_loss") if self._tested_all else None, row["step"]
        row["seconds"] = time.perf_counter() - self._epoch_began
        row = self.history.put(row, complete=len(self.history) > self._rows_before)
        decides = self._tested_all if tested else not self._valid_sets
        if trained and decides and (value := self._monitored(row, tested)) is not None:
            self.check_better(cur_epoch=epoch - 1, cur_loss=value)
        return row

    def _monitored(self, row: Row, tested: bool) -> float | None:
        """The value that tells better from worse; None in a row that lacks it."""
        split = "test" if tested else "train"
        if (name := self._monitor.column(row, split)) is not None:
            if is_finite(row[name]):
                self._turn_to(name)
            elif f"nan {split} {name.removeprefix(f'{split}_')}" not in self._warned:  # else the step has told it
                self._warn_once(f"best {name}", f"{name} is {row[name]} in epoch {row['epoch']}; {RULE}")
            return row[name]
        if self.monitor == "loss" or not any(name.startswith(f"{split}_") for name in row):
            return None
        self._warn_once("monitor", checks.unknown_monitor(self.monitor, row, split))
        return None  # and not the loss: two quantities in one comparison would keep the wrong weights

    def _turn_to(self, column: str) -> None:
        """Compare values of one column only: a run with a validation may follow on one without."""
        if (before := self._monitor.turns_to(column)) is not None:
            self._forget_best()
            said = f"The best was told by {before}; from here on {column} tells it, and is compared with itself only."
            make_bar(self.log_bar and self._processes.first).write(said)

    def check_better(self, cur_epoch: int, cur_loss: float) -> bool:
        """Whether `cur_loss` (the monitored value) is the best so far; if so, keep a copy of the weights.

        What the model's weights are at this moment is what is kept and saved, be they those that an add-on swaps in.

        Parameters
        ----------
        cur_epoch : int
            Counted from 0.
        cur_loss : float
            NaN and infinities are never better, nor is an equal value.
        """
        better = self._monitor.better(cur_loss, self.loss_buffer)
        if better:
            self.loss_buffer = float(cur_loss)
            # On the CPU, so that the copy takes no memory of the device; a copy, since the live weights go on changing.
            spread = any(hasattr(p, "ds_id") for p in self.model.parameters())  # ZeRO-3 leaves nothing of them here
            state = whole_state(self.model) if spread else own_state(self.model)
            self.weight_buffer = {"epoch": [cur_epoch], "weight": [_copies(state)]}
        return better

    def stop(self, reason: str) -> None:
        """End the run after the current step, with its epoch closed as usual.

        Several processes end together, within about a second, whichever of them it was called on.

        Parameters
        ----------
        reason : str
            Shown at the end of the run.
        """
        self._wish = self._wish or redact(reason)  # it is written down

    # ------------------------------------------------------------------ files

    def save_model(self, filename: Path) -> None:
        """Write the model's weights, whole or not at all. Of several processes, the first one writes.

        A sharded model (FSDP2) is put together for it, so all processes have to call this.

        Parameters
        ----------
        filename : path-like
            ``.safetensors`` or ``.safetensor`` loads with ``safetensors.torch.load_model(model, filename)``, any other
            ending with ``model.load_state_dict(torch.load(filename, weights_only=True))``.
        """
        engine = hasattr(self.accelerator.state, "deepspeed_plugin") and self.accelerator.state.deepspeed_plugin
        state = whole_state(self.model) if is_sharded(self.model) or engine else None
        if self._processes.first:
            save_weights(self.model, filename, state)

    def apply_weights(self, filename: Path | None = None, strict: bool = True) -> None:
        """Put weights into the model: the best of this run, or a file's. No pickle is executed.

        Of several processes, all call it.

        Parameters
        ----------
        filename : path-like, optional
            What `save_model` or ``torch.save(model.state_dict(), …)`` wrote; None takes the best weights.
        strict : bool
            Refuse missing and unexpected keys.

        Raises
        ------
        FileNotFoundError
            When there is no such file.
        WeightsError
            When there are no best weights yet, the file is damaged, is another model's, or holds more than tensors.
        """
        if filename is None and not self.weight_buffer["weight"]:
            raise WeightsError(self._monitor.why_none(self.history.rows))
        if filename is not None:
            self._processes.wait()  # process 0 may have yet to write it
        weights = self.weight_buffer["weight"][-1] if filename is None else read_weights(filename)
        load_weights(
            self.model, weights, strict, source="the best weights" if filename is None else repr(str(filename))
        )

    def state_dict(self) -> dict[str, Any]:
        """Counters and the best value; an add-on adds its own under its class name."""
        counted = {"step": self.progress_checker.get_step(), "epoch": self.progress_checker.get_epoch()}
        return {"Trainer": {**counted, "best": self.loss_buffer, "monitor": self._monitor.watched}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. A best value by another `monitor` than this trainer's is left out."""
        own = state["Trainer"]
        self.progress_checker.init_state(own["step"], own["epoch"])
        if self._monitor.takes(own.get("monitor", self._monitor.watched)):
            self.loss_buffer = own["best"]
        else:
            self._forget_best()


def _copies(state: dict[str, Any]) -> dict[str, Any]:
    """Copies of a state's values; tied weights are one tensor there, too, and so are written once."""
    known: dict[object, Any] = {}
    copies: dict[str, Any] = {}
    for key, value in state.items():
        identity = identity_of(value) if isinstance(value, Tensor) else key
        if identity not in known:
            known[identity] = _copy(value)
        copies[key] = known[identity]
    return copies


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


def _is_number(value: Any) -> bool:
    """Whether `value` is one number, be it in a tensor or an array."""
    return is_scalar(value) or (isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) == 1)
