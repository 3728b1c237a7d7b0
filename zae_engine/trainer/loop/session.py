"""One call of `run`: how long it goes on, what is due, what the processes agree on, and the epoch that is running."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from .. import refusals
from ..console.bar import SilentBar
from ..data.layout import Start
from ..data.plan import BatchPlan, named
from ..data.random_streams import (
    generators_of,
    put_loader_states,
    put_streams,
    set_streams,
    streams_of,
)
from ..data.sample_ids import check_shared, set_epoch
from ..interface import Face, decide
from ..limits import Budget, Duration, Interval
from ..processes.agreement import NOTHING, Agreement, Wish
from ..records.gather import restore_log
from ..records.recorder import Recorder
from ..records.run_progress import Call
from ..step.placement import Placement
from ..step.update import spreads
from ..warn import warn
from .companion import CalledAway, Companion
from .evaluator import Evaluator
from .open_epoch import Loaded, Midway, Open


class Session:
    """One call of `run`. It holds the trainer, and is gone when the call is over.

    Parameters
    ----------
    trainer : Trainer
    placement, recorder, evaluator
        Its parts.
    companions : sequence of Companion
        What goes along.
    limits : list of Duration
        What ends the call.
    valid_every : Duration

    Attributes
    ----------
    can_leave : bool
        Whether the run can be gone on with from any step.
    call : Call
        What it counts from and has come to; the recorder keeps it.
    valid_sets : dict of str to loader
    validation : Interval
        When a validation is due.
    plans : dict of str to BatchPlan
        The present (or last) one by mode.
    opened : Open or None
        The training epoch that is running.
    border : Trained
        What was trained between the last two epochs.
    called : str or None
        Away, by a signal that this process got.
    quiet_to, quiet_until : float
        Up to which step, and by which time, nothing is to be done between two steps, unless somebody calls.
    """

    def __init__(
        self,
        trainer: Face,
        placement: Placement,
        recorder: Recorder,
        evaluator: Evaluator,
        companions: Sequence[Companion],
        limits: list[Duration],
        valid_every: Duration,
    ) -> None:
        self.trainer, self.place, self.recorder, self.evaluator = trainer, placement, recorder, evaluator
        self.companions, self.can_leave = companions, any(c.ends_runs for c in companions)
        placement.prepare(trainer)
        self.border = placement.trained
        self.valid_sets: dict[str, Any] = named(trainer.valid_loader)
        counters, training = recorder.counters, trainer.mode == "train"
        self._trains = training
        if training:
            placement.begin_comparing(trainer)
        done = (counters.get_epoch() - 1, counters.get_step() - 1) if training else (0, 0)
        found = (companion.loaded for companion in companions if training)  # an evaluation leaves it to the training
        self._loaded = next(filter(None, found), None)
        self.budget = Budget(limits, *(self._loaded.begun(done) if self._loaded else done))
        self.validation, self.agreement = Interval(valid_every), Agreement(placement.processes, done[1])
        self.call = Call(self.budget)
        recorder.begin(trainer, self.call)
        self.opened: Open | None = None
        self.called: str | None = None
        self.quiet_to, self.quiet_until = 0.0, 0.0
        self.title = ""
        self.seen: dict[str, Any] | None = None  # what the last line within an epoch has shown
        self._midway: Midway | None = None
        if self._loaded is not None:
            self._go_on_from(self._loaded)
        self.plans = placement.guard.plans = {trainer.mode: self.plan(trainer.loader)}
        trainer.batch_size = self.plans[trainer.mode].batch_size or 0
        sizes = (self.plan(each).batch_size or 0 for each in self.valid_sets.values())
        trainer.valid_batch_size = max(sizes, default=0)
        shown = ("loader", "valid_loader", "batch_size", "valid_batch_size")
        self._shown = {name: getattr(trainer, name) for name in shown}
        placement.make_update(trainer)

    def _go_on_from(self, loaded: Loaded) -> None:
        """Take from an interrupted call what still holds."""
        position, call, trainer = loaded.position, self.call, self.trainer
        self._midway = loaded.midway
        if loaded.midway is None:
            put_loader_states(trainer.loader, position["generators"])
        for name, states in position["valid_generators"].items():
            put_loader_states(self.valid_sets.get(name), states)
        if loaded.finishes:
            call.stop_reason = position["stop"] or self.budget.spent(self.step)
        elif loaded.midway is None:
            return
        call.epoch_began -= position["seconds"]
        call.tested_step, call.tested_loss = position["tested"]
        call.rows_before = position["rows_before"]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.recorder.counters.get_step() - 1

    @property
    def shows(self) -> bool:
        """Whether this process shows how the run goes."""
        return self.trainer.log_bar and self.place.processes.first

    def check(self, loader: Any) -> None:
        """Refuse, before the first batch, a call that cannot go to its end."""
        trainer, budget, sets = self.trainer, self.budget, self.valid_sets
        refusals.check_steps(trainer, trainer.mode == "train", trainer.mode == "test" or bool(sets))
        refusals.check_run(loader, sets, budget, self.validation.within_epoch)
        batches = self.plan(loader).batches
        lengths = {f"the length of valid_loader {k!r}": self.plan(v).batches for k, v in sets.items()}
        ends = {"n_epoch": budget.last_epoch, "max_steps": budget.last_step}
        settings = {"the loader's length": batches, "its batch_size": trainer.batch_size, **lengths, **ends}
        self.place.refuse_different(trainer, settings)
        for each in (loader, *sets.values()):
            check_shared(each, self.place.processes)
        if trainer.scheduler is not None and trainer.mode == "train":
            refusals.check_lasts(trainer.scheduler, trainer.scheduler_step_on_batch, batches, budget)

    def begin(self) -> None:
        """Nothing refuses the call any more; what goes along does so with a training."""
        for companion in self.companions if self.trainer.mode == "train" else ():
            companion.begins(self)

    def take_over(self) -> None:
        """Another call of `run` has begun within this one, and is over: the trainer and its parts are of this again."""
        self.recorder.call, self.place.guard.plans = self.call, self.plans
        if self._trains:
            self.recorder.training = self.call
        decide(self.trainer, **self._shown)
        self.wake()

    def epochs(self) -> Iterator[int]:
        """The epochs to run, counted from 0 over the trainer's whole life."""
        self.begin()
        for epoch in self.budget.epochs():
            self.title = self.budget.title(epoch)
            yield epoch

    # ------------------------------------------------------------------ one walk over a loader

    def plan(self, loader: Any, epoch: int = 0, start: Start | None = None) -> BatchPlan:
        """How this process walks over a loader in the trainer's present mode."""
        if self.trainer.mode != "train":
            return self.evaluator.plan(self.trainer, loader, epoch)
        exceeds = self._go_beyond if epoch else None
        return self.place.plan(self.trainer, loader, epoch, start, exceeds, self.can_leave)

    def _go_beyond(self, batches: int, length: int) -> None:
        """Say that a loader gives more than its length; refuse a schedule that ends before the run for that."""
        trainer, words = self.trainer, refusals.beyond("the loader", batches, length)
        if trainer.scheduler_step_on_batch and trainer.scheduler is not None:
            refusals.check_lasts_beyond(trainer.scheduler, self.budget.steps_left(batches, self.step), words)
        self.recorder.warn_once("length of the loader", f"{words}; {refusals.CORRECT_LENGTH}")

    def open_epoch(self, loader: Any, bar: SilentBar) -> BatchPlan:
        """Begin a training epoch, at its first batch or where it was left; return its plan."""
        trainer, place, epoch = self.trainer, self.place, self.recorder.counters.get_epoch()
        midway, self._midway = self._midway, None
        if midway is not None and midway.again is not None:
            place.prepare(trainer)  # an optimizer, say, that was exchanged again
            midway.again()
        place.prepare(trainer)
        if not spreads(place.accelerator):  # whose optimizer is another one
            refusals.check_scheduler(trainer.scheduler, trainer.optimizer, trainer.scheduler_step_on_batch)
        self.wake()
        generators = generators_of(loader)
        put_loader_states(loader, midway.generators if midway else [])
        opened = Open(self.plan(loader, epoch), [g.get_state() for g in generators])
        if midway is not None:
            opened = Open(self.plan(loader, epoch, Start(midway.batch, midway.ids)), opened.generators)
            opened.streams = midway.streams or self._new_streams(epoch, midway.batch)
            opened.paused = midway.paused
            opened.plan.start.began = partial(self._put_streams, opened)
            bar.done = bar.first = midway.batch
            if self.call.stop_reason is not None:  # no order will be drawn
                put_loader_states(loader, midway.drawn)
            restore_log(self.recorder.log_train, midway.logs, midway.batch)
            self.recorder.measures["train"].restore(midway.measures)
        self.opened = opened
        return opened.plan

    def begin_training(self, loader: Any) -> None:
        """Bring model, random streams and the loader's sampler to the epoch that begins."""
        trainer, place, epoch = self.trainer, self.place, self.recorder.counters.get_epoch()
        place.modes.train(trainer.model)
        for sentence in place.modes.news(trainer.model) if place.processes.first else ():
            warn(sentence)
        set_streams(place.device, trainer.seed, "train", epoch)
        set_epoch(loader, epoch - 1)

    def _new_streams(self, epoch: int, batch: int) -> dict[str, Any]:
        """Streams of a process that was not there before."""
        place = self.place
        before = streams_of(place.device)
        key = ("train", epoch, "process", place.processes.index, "from", batch)
        set_streams(place.device, self.trainer.seed, *key)
        new = streams_of(place.device)
        put_streams(place.device, before)
        return new

    def _put_streams(self, opened: Open) -> None:
        if opened.streams is not None:
            put_streams(self.place.device, opened.streams)
            opened.streams = None

    # ------------------------------------------------------------------ what the processes agree on

    def settle(self, step: int, within: bool = False) -> bool:
        """Agree with the other processes, and leave if they are called away; return whether a validation is due.

        Parameters
        ----------
        step : int
            Optimizer steps done.
        within : bool
            Between two steps of an epoch.
        """
        wish, tests = self._agree(step, within)
        if wish.away and not self.is_over:
            self.leave(wish.away)
        return tests

    def _agree(self, step: int, within: bool) -> tuple[Wish, bool]:
        """Note what all processes want, and which clocks have run out; of these, that of the validation is returned."""
        clocks = (self.validation.by_clock and self.validation.late(), *map(_is_late, self.companions))
        wish, (tests, *others) = self.agreement.settle(step, self._own_wish(within), clocks)
        if wish.wrong:
            raise RuntimeError(wish.wrong)
        self.call.stop_reason = self.call.stop_reason or wish.stop or self.budget.spent(step)
        for companion, is_late in zip(self.companions, others, strict=True):
            companion.due |= is_late
        return wish, tests

    def _own_wish(self, within: bool = False) -> Wish:
        """Why this process wants the run to end, or cannot go on."""
        late, asked = self.budget.late(), self.call.wish
        wrong = self.place.untaken(self.trainer) if within and self.place.compares else None
        if not (late or wrong or asked or self.called):
            return NOTHING
        if late and self.can_leave and self.budget.bounded:  # it is this job's time that is over, not the run's
            return Wish(asked, self.called or late, wrong)
        return Wish(asked or late, self.called, wrong)

    @property
    def is_over(self) -> bool:
        """Whether the run has come to its end, between two epochs."""
        ends = self.call.stop_reason is not None or self.recorder.counters.get_epoch() > self.budget.last_epoch
        return ends and self.opened is None

    def called_away(self, done: int) -> None:
        """After so many batches of an evaluation that can be left: break it off if the processes are called away."""
        if self.place.processes.count == 1:
            asks = self.called is not None or time.perf_counter() >= self.budget.deadline
        else:  # all ask after the same batches, whoever was called
            asks = self.evaluator.watch.due(done)
        if asks:
            away = self.evaluator.watch.settle(done, self._own_wish())[0].away
            if away:
                raise CalledAway(away)

    def leave(self, reason: str) -> None:
        """End the run here, in the middle of something."""
        for companion in self.companions:
            if companion.ends_runs:
                companion.leave(self, reason)
        raise CalledAway(reason)

    def at_rest(self) -> None:
        """Nothing is half done: what goes along may save and write."""
        for companion in self.companions:
            companion.at_rest(self)

    def rest(self, step: int) -> None:
        """Find out, after so many steps, until when nothing has to be done between two of them."""
        steps = (companion.next_step(step) for companion in self.companions)
        self.quiet_to = min(self.validation.next_step(step), self.budget.last_step, self.agreement.next_step, *steps)
        clocks = (companion.interval.next_time for companion in self.companions if companion.interval is not None)
        # Of several processes, what the clock tells is asked at the steps at which they agree.
        alone = self.place.processes.count == 1
        self.quiet_until = min(self.budget.deadline, self.validation.next_time, *clocks) if alone else math.inf

    def wake(self) -> None:
        """Something is to be done as soon as no step is half done."""
        self.quiet_to = 0.0


def _is_late(companion: Companion) -> bool:
    return companion.late()
