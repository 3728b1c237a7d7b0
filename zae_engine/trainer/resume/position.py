"""The part of the trainer that says where it is, and goes on from there."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import torch

from .. import checks
from ..console.bar import SilentBar
from ..data.layout import Start
from ..data.plan import BatchPlan, named
from ..data.random_streams import generators_of, loader_states, put_loader_states, put_streams, set_streams, streams_of
from ..limits import Budget, Interval
from ..loop.evaluator import Evaluating
from ..processes.agreement import NOTHING, Agreement, Wish
from ..records.gather import log_state, restore_log
from ..step.trained import Trained
from ..step.update import spreads


class CalledAway(BaseException):
    """Breaks an evaluation off. No Exception, so that nobody who handles errors keeps it to himself."""


@dataclass
class Midway:
    """An epoch that was begun, and is to be gone on with.

    Attributes
    ----------
    batch : int
        The number of the global batch that comes next.
    ids : str
        The hash of the ids of the one before.
    paused : bool
        Whether what was due after that batch (a validation) has been done.
    generators, drawn : list of Tensor
        Where the loader's own generators were when the epoch began; and where they are left, if it ended there.
    streams : dict or None
        Where this process's random streams were.
    logs, measures : list of dict
        What the processes had of the epoch whose values this one goes on with.
    again : callable or None
        Puts the model and what trains it once more to where they were: what an override of `run_epoch` does before an
        epoch, it has done a second time when that epoch is gone on with.
    """

    batch: int
    ids: str
    paused: bool
    generators: list[torch.Tensor]
    drawn: list[torch.Tensor]
    streams: dict[str, Any] | None
    logs: list[dict[str, Any]]
    measures: list[dict[str, Any]]
    again: Callable[[], None] | None = None


@dataclass
class Open:
    """The training epoch that is running."""

    plan: BatchPlan
    generators: list[torch.Tensor] = field(default_factory=list)
    streams: dict[str, Any] | None = None  # those of a checkpoint, until they are put back
    paused: bool = True


class Resuming(Evaluating):
    """What `Trainer` and StateManagerAddon need to stop anywhere and to go on; the trainer adds the loop."""

    # Whether everything is kept that a checkpoint in the middle of an epoch needs; and whether signals end the run.
    _resumable = False
    _leaves = False
    loader: Any
    scheduler: Any
    scheduler_step_on_batch: bool
    _saving: Interval | None = None
    _save_due = False
    _logging: Interval | None = None
    _log_due = False
    _budget: Budget
    _agreement: Agreement
    _open: Open | None = None
    _midway: Midway | None = None
    _border: Trained | None = None  # between two epochs: what was trained before the present one
    _resumed: dict[str, Any] | None = None
    _called: str | None = None  # away, by a signal that this process got

    def _open_epoch(self, loader: Any, epoch: int, bar: SilentBar) -> BatchPlan:
        """The plan of a training epoch, from its first batch or from where it was left."""
        midway, self._midway = self._midway, None
        if midway is not None and midway.again is not None:
            self._prepare()  # an optimizer, say, that was exchanged again
            midway.again()
        self._prepare()
        if not spreads(self.accelerator):  # whose optimizer is another one
            checks.check_scheduler(self.scheduler, self.optimizer, self.scheduler_step_on_batch)
        generators = generators_of(loader)
        put_loader_states(loader, midway.generators if midway else [])
        opened = Open(self._plan(loader, epoch), [g.get_state() for g in generators])
        if midway is not None:
            opened = Open(self._plan(loader, epoch, Start(midway.batch, midway.ids)), opened.generators)
            opened.streams, opened.paused = midway.streams or self._new_streams(epoch, midway.batch), midway.paused
            opened.plan.start.began = partial(self._put_streams, opened)
            bar.done = bar.first = midway.batch
            if self._stop_reason is not None:  # no order will be drawn
                put_loader_states(loader, midway.drawn)
            restore_log(self.log_train, midway.logs, midway.batch)
            self._measures["train"].restore(midway.measures)
        self._open = opened
        return opened.plan

    def _new_streams(self, epoch: int, batch: int) -> dict[str, Any]:
        """Streams of a process that was not there before."""
        before = streams_of(self.device)
        set_streams(self.device, self.seed, "train", epoch, "process", self._processes.index, "from", batch)
        new = streams_of(self.device)
        put_streams(self.device, before)
        return new

    def _put_streams(self, opened: Open) -> None:
        if opened.streams is not None:
            put_streams(self.device, opened.streams)
            opened.streams = None

    # ------------------------------------------------------------------ what the processes agree on

    def _own_wish(self, within: bool = False) -> Wish:
        """Why this process wants the run to end, or cannot go on; `within`: between two steps of an epoch."""
        late, wrong = self._budget.late(), self._untaken() if within and self._one_model is not None else None
        if not (late or wrong or self._wish or self._called):
            return NOTHING
        if late and self._leaves and self._budget.bounded:  # it is this job's time that is over, not the run's
            return Wish(self._wish, self._called or late, wrong)
        return Wish(self._wish or late, self._called, wrong)

    def _look_up(self, bar: SilentBar, **kwargs: Any) -> bool:
        """Between two batches of an evaluation: break it off if the processes are called away."""
        if self._leaves and self._watch.due(bar.done):
            away = self._watch.settle(bar.done, self._own_wish())[0].away
            if away:
                raise CalledAway(away)
        return False

    def _leave(self, reason: str) -> NoReturn:
        """End the run here, in the middle of something, since the process is called away."""
        raise CalledAway(reason)

    def _at_rest(self) -> None:
        """Between two steps or epochs, with nothing half done: where a StateManagerAddon saves."""

    # ------------------------------------------------------------------ where the trainer is

    def _position(self) -> dict[str, Any]:
        """Where the run is, as plain values, arrays and tensors: what is the same on all processes."""
        opened, log = self._open, self.log_train
        return {
            "began": [self._budget.first_epoch, self._budget.first_step],
            "batch": opened.plan.position if opened else 0,
            "ids": (opened.plan.last_ids or opened.plan.start.before) if opened else "",
            "midway": opened is not None,
            "paused": opened is None or opened.paused,
            "generators": opened.generators if opened else loader_states(self.loader),
            "drawn": loader_states(self.loader) if opened and self._stop_reason else [],
            "valid_generators": {name: loader_states(loader) for name, loader in self._valid_sets.items()},
            "stop": self._lasting_stop(),
            "seconds": time.perf_counter() - self._epoch_began,
            "tested": [self._tested_step, self._tested_loss],
            "rows_before": self._rows_before,
            "rows": [dict(row) for row in self.history.rows],
            "metrics": [dict(self.train_metrics), dict(self.test_metrics)],
            "losses": [log.losses[: log.epoch_begins if opened else len(log.losses)], self.log_test.losses[:]],
        }

    def _lasting_stop(self) -> str | None:
        """Why the run ends, if that is not one of its limits, which a later call may put elsewhere."""
        reason = self._stop_reason or self._wish
        return None if reason == self._budget.spent(self.progress_checker.get_step() - 1) else reason

    def _own_part(self) -> dict[str, Any]:
        """What only this process has: its random streams, and of a running epoch its log and its metrics."""
        opened = self._open
        if opened is None:
            return {}
        return {
            "streams": opened.streams or streams_of(self.device),
            "log": log_state(self.log_train, self._processes, self._looks_at_logs()),
            "measures": self._measures["train"].state(),
        }

    def _go_to(self, position: Mapping[str, Any], parts: list[dict[str, Any]], streams: dict[str, Any] | None) -> None:
        """Take a position; the next training goes on from it.

        Parameters
        ----------
        position : mapping
            What `_position` gave.
        parts : list of dict
            What `_own_part` gave, of the processes whose values this one goes on with.
        streams : dict or None
            This process's random streams; None makes new ones.
        """
        self.history.rows[:] = [dict(row) for row in position["rows"]]
        for metrics, then in zip((self.train_metrics, self.test_metrics), position["metrics"], strict=True):
            metrics.clear()
            metrics.update(then)
        for log, losses in zip((self.log_train, self.log_test), position["losses"], strict=True):
            log.clear()
            log.losses = array("d", losses)
            log.clear()
        self._midway, self._open = None, None
        if position["midway"]:
            logs, measures = [part["log"] for part in parts], [part["measures"] for part in parts]
            keys = ("batch", "ids", "paused", "generators", "drawn")
            self._midway = Midway(**{k: position[k] for k in keys}, streams=streams, logs=logs, measures=measures)
        self._resumed = dict(position)

    def _continue_records(self) -> None:
        """After `_begin_records`: what of an interrupted call still holds."""
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            return
        if not resumed["midway"]:
            put_loader_states(self.loader, resumed["generators"])
        for name, states in resumed["valid_generators"].items():
            put_loader_states(self._valid_sets.get(name), states)
        if resumed.get("finishes"):
            self._stop_reason = resumed["stop"] or self._budget.spent(self.progress_checker.get_step() - 1)
        elif not resumed["midway"]:
            return
        self._epoch_began -= resumed["seconds"]
        self._tested_step, self._tested_loss = resumed["tested"]
        self._rows_before = resumed["rows_before"]

    def _finish_call(self) -> None:
        """Let the next call of `run` be the one that was interrupted: its limits count from where that began."""
        assert self._resumed is not None  # a position was taken
        self._resumed["finishes"] = True

    def _conclude(self, loader: Any, valid_loader: Any) -> None:
        """Leave what a call of `run` leaves whose end has been loaded; the next one begins a call of its own."""
        resumed, self._resumed = self._resumed, None
        assert resumed is not None  # a position was taken
        self.loader, self.valid_loader, self._valid_sets = loader, valid_loader, named(valid_loader)
        put_loader_states(loader, resumed["generators"])
        for name, states in resumed["valid_generators"].items():
            put_loader_states(self._valid_sets.get(name), states)
        self._stop_reason = resumed["stop"] or self._budget.spent(self.progress_checker.get_step() - 1)

    def _begun(self, done: tuple[int, int]) -> tuple[int, int, tuple[int, int, int]]:
        """Epochs and steps done when the present call began, and those done now."""
        finishes = self._resumed is not None and self._resumed.get("finishes", False)
        began = tuple(self._resumed["began"]) if finishes and self._resumed is not None else done
        return began[0], began[1], (*done, self._midway.batch if self._midway else 0)
