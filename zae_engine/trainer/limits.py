"""Durations, how long a run may take, and learning-rate schedulers."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from numbers import Integral
from typing import Any

from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    LinearLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from .several_optimizers import Schedulers, schedulers_of

_SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}
_SPELLING = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")
_ACCEPTED = "write '3ep' (epochs), '500st' (optimizer steps) or a time such as '90s', '10min', '2h'"


@dataclass(frozen=True)
class Duration:
    """A length of training.

    Attributes
    ----------
    count : float
        How many.
    unit : {'ep', 'st', 's'}
        Of epochs, optimizer steps or seconds.
    """

    count: float
    unit: str

    @classmethod
    def parse(
        cls, value: Duration | str | int | timedelta, name: str, bare: str | None = "ep", least: float = 1e-9
    ) -> Duration:
        """Read a duration.

        Parameters
        ----------
        value : str, int or timedelta
            ``'3ep'``, ``'500st'``, ``'10min'``; an integer counts `bare` units.
        name : str
            The option's name, for the message.
        bare : {'ep', 'st', None}
            What a bare integer counts; None refuses one.
        least : float
            The smallest count that is accepted.

        Raises
        ------
        ValueError
            When `value` is none of these, or too small.
        """
        duration = value if isinstance(value, Duration) else cls._read(value, bare)
        if duration is None or duration.count < least or (duration.unit != "s" and duration.count % 1):
            bare_too = {"ep": ", or a whole number of epochs", "st": ", or a whole number of steps", None: ""}[bare]
            raise ValueError(f"{name}={value!r} is not a duration; {_ACCEPTED}{bare_too}")
        return duration

    @classmethod
    def _read(cls, value: Any, bare: str | None) -> Duration | None:
        if isinstance(value, timedelta):
            return cls(value.total_seconds(), "s")
        if isinstance(value, Integral) and not isinstance(value, bool):
            return cls(int(value), bare) if bare else None
        found = _SPELLING.fullmatch(value.lower()) if isinstance(value, str) else None
        if found is None:
            return None
        count, unit = float(found[1]), found[2]
        if unit in _SECONDS:
            return cls(count * _SECONDS[unit], "s")
        return cls(count, unit) if unit in ("ep", "st") else None


class Budget:
    """How long one call of `run` goes on, in absolute epochs, steps and clock time.

    Parameters
    ----------
    limits : list of Duration
        Whichever is reached first ends the run.
    epoch, step : int
        Epochs and optimizer steps that were done when the call began.
    now : (int, int, int), optional
        Epochs, steps, and batches of the next epoch that are done now, when the call goes on after an interruption.
    """

    def __init__(self, limits: list[Duration], epoch: int, step: int, now: tuple[int, int, int] | None = None) -> None:
        def least(unit: str) -> float:
            return min((limit.count for limit in limits if limit.unit == unit), default=math.inf)

        self.first_epoch, self.first_step = epoch, step
        self._epoch, self._step, self._batches = now or (epoch, step, 0)
        self.last_epoch, self.last_step = epoch + least("ep"), step + least("st")
        self.seconds = least("s")
        self.deadline = time.perf_counter() + self.seconds

    @property
    def bounded(self) -> bool:
        """Whether something else than the time ends the call."""
        return min(self.last_epoch, self.last_step) < math.inf

    def spent(self, step: int) -> str | None:
        """Why the run ends after `step` optimizer steps, or None when it goes on."""
        done = step - self.first_step
        return f"{done:,} step{'s' if done != 1 else ''} done" if step >= self.last_step else None

    def late(self) -> str | None:
        """Why the run ends by the clock, or None when it goes on."""
        over = self.seconds < math.inf and time.perf_counter() >= self.deadline
        return f"{self.seconds:g} s are over" if over else None

    def epochs(self) -> Iterator[int]:
        """The epochs to run, counted from 0 over the trainer's whole life."""
        epoch = self._epoch
        while epoch < self.last_epoch:
            yield epoch
            epoch += 1

    def steps(self, batches: int | None) -> float:
        """How many optimizer steps the call will still take at most, with that many batches an epoch."""
        by_epoch = math.inf if batches is None else (self.last_epoch - self._epoch) * batches - self._batches
        return min(by_epoch, self.last_step - self._step)

    def steps_left(self, batches: int, step: int) -> float:
        """The same, after `step` optimizer steps of the trainer's whole life."""
        return self.steps(batches) - (step - self._step)

    def epochs_needed(self, batches: int | None) -> float:
        """How many epochs the call will still take at most, with that many batches an epoch."""
        steps = self.last_step - self._step + self._batches
        by_step = math.ceil(steps / batches) if batches and steps < math.inf else math.inf
        return min(self.last_epoch - self._epoch, by_step)

    def title(self, epoch: int) -> str:
        """``Epoch 3/10``, or ``Epoch 3`` when the epochs have no end."""
        return f"Epoch {epoch + 1}" + (f"/{int(self.last_epoch)}" if self.last_epoch < math.inf else "")


class Interval:
    """When something is due that happens every so often, such as a validation."""

    def __init__(self, every: Duration) -> None:
        self.every = every
        self.within_epoch, self.by_clock = every.unit != "ep", every.unit == "s"
        self._last = time.perf_counter()

    def at_step(self, step: int) -> bool:
        """Whether it is due after `step` optimizer steps, in the middle of an epoch."""
        return self.every.unit == "st" and step % self.every.count == 0

    def next_step(self, step: int) -> float:
        """The first step after `step` at which it is due in the middle of an epoch; infinite if none is."""
        return (step // self.every.count + 1) * self.every.count if self.every.unit == "st" else math.inf

    @property
    def next_time(self) -> float:
        """When it is due by the clock, as `time.perf_counter` tells it; infinite if it goes by something else."""
        return self._last + self.every.count if self.by_clock else math.inf

    def late(self) -> bool:
        """Whether it is due by the clock."""
        return self.by_clock and time.perf_counter() - self._last >= self.every.count

    def restart(self) -> None:
        """Count the time from now."""
        self._last = time.perf_counter()

    def at_epoch(self, epoch: int, is_last: bool) -> bool:
        """Whether it is due at the end of epoch `epoch` (counted from 1); the last one always is."""
        return is_last or (self.every.unit == "ep" and epoch % self.every.count == 0)


_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_LEAST, _MOST = 0.1, 10.0  # seconds between two readings
_OF_READING = 0.2  # of a pace's share: what is left is for what is done with the values
_READINGS = 10_000  # of a run's time so far, its present interval is one part in so many, at least


class Pace(Interval):
    """When something is due that may take a share of the time: the dearer it was, the later, but every ten seconds.

    Parameters
    ----------
    share : float
        Of the time, for this and all that follows from it; the interval keeps to a fifth of that.
    """

    def __init__(self, share: float) -> None:
        super().__init__(Duration(_MOST, "s"))
        self.share = share
        self._varies, self._seconds, self._cost = False, _MOST, 0.0
        self.began = self._last

    @property
    def for_others(self) -> float:
        """The share that is left for what is done with the values."""
        return self.share * (1 - _OF_READING)

    def begin(self, varies: bool) -> None:
        """Begin anew; it is ten seconds unless it `varies`."""
        self.began = time.perf_counter()
        self._varies, self._seconds, self._cost = varies, _LEAST if varies else _MOST, 0.0

    def took(self, seconds: float) -> None:
        """It has just been done, in so many seconds."""
        if self._varies:
            self._cost = (self._cost + seconds) / 2 if self._cost else seconds
            wanted = max(_LEAST, self._cost / (self.share * _OF_READING), (self._last - self.began) / _READINGS)
            self._seconds = min(_MOST, wanted, 2 * self._seconds)  # one that was held up tells little

    @property
    def next_time(self) -> float:
        """When it is due, as `time.perf_counter` tells it."""
        return self._last + self._seconds

    def late(self) -> bool:
        """Whether it is due."""
        return time.perf_counter() >= self.next_time


def read_interval(value: Any, name: str) -> Interval:
    """Read how often: ``'1%'`` of the time, or a `Duration`, of which an integer counts steps.

    Raises
    ------
    ValueError
        When `value` is none of these.
    """
    found = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if found is not None and 0 < float(found[1]) <= 100:
        return Pace(float(found[1]) / 100)
    try:
        return Interval(Duration.parse(value, name, bare="st"))
    except ValueError as error:
        raise ValueError(f"{error}, or a share of the time, '1%' say") from None


def step_scheduler(scheduler: Any, value: float | None = None) -> None:
    """Step once; ReduceLROnPlateau gets `value` and waits when there is none."""
    for part in schedulers_of(scheduler).values():
        if not isinstance(part, ReduceLROnPlateau):
            part.step()
        elif value is not None:
            part.step(value)


def refuse_short(scheduler: Any, needed: float, unit: str, done: int | None = None) -> None:
    """Raise when `scheduler` ends before the run does.

    Parameters
    ----------
    scheduler : a scheduler of torch, or one with ``total_steps`` or ``total_iters``
    needed : float
        Steps that the run will take it; infinite when that is not known.
    unit : str
        What a step is, for the message.
    done : int, optional
        Steps that it has taken; None asks the scheduler.
    """
    if isinstance(scheduler, Schedulers):
        # Of optimizers that are stepped by name, nobody knows how often each will be.
        for part in () if scheduler.optimizer.named and unit != "epoch" else scheduler.parts.values():
            refuse_short(part, needed, unit)
        return
    done = getattr(scheduler, "last_epoch", 0) if done is None else done
    if isinstance(scheduler, ChainedScheduler):
        for part in scheduler._schedulers:
            refuse_short(part, needed, unit)
    elif isinstance(scheduler, SequentialLR):
        _refuse_short_part(scheduler, done + needed, unit)
    elif not isinstance(scheduler, (LinearLR, ConstantLR)):  # these hold their last value, so they last
        name = next((n for n in ("total_steps", "total_iters") if hasattr(scheduler, n)), None)
        if name and needed == math.inf:
            raise ValueError(
                f"{type(scheduler).__name__} lasts {name}={getattr(scheduler, name)} steps, but nothing says how many"
                f" {unit}s this run takes; give n_epoch= or max_steps=, and a loader with a length"
            )
        if name and done + needed > getattr(scheduler, name):
            raise ValueError(
                f"{type(scheduler).__name__} lasts {name}={getattr(scheduler, name)} steps, but this run takes it to"
                f" {int(done + needed)} ({done} done, {int(needed)} to come, one a{'n' if unit[0] in 'aeio' else ''}"
                f" {unit}); make it longer, or the run shorter"
            )


def _refuse_short_part(sequence: SequentialLR, final: float, unit: str) -> None:
    """Hold each part of a sequence to its own stretch; a part counts from 0 where it begins."""
    starts = [0, *sequence._milestones]
    ends = [*(milestone - 1 for milestone in sequence._milestones), math.inf]
    for part, start, end in zip(sequence._schedulers, starts, ends, strict=True):
        if final > start:
            refuse_short(part, min(final, end) - start, unit, done=0)
