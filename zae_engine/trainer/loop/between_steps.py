"""What is done between two steps and between two epochs: validate, write a row, agree on the end, save."""

from __future__ import annotations

import time
from typing import Any

from ..console.bar import SilentBar
from ..console.values import epoch_line, unknown_in
from ..data.random_streams import loader_states, put_loader_states
from ..limits import step_scheduler
from ..records.pooling import pooled
from ..step.trained_parameters import Trained
from ..warn import warn
from .companion import CalledAway
from .session import Session


def between_steps(session: Session, bar: SilentBar, now: float, **kwargs: Any) -> bool:
    """Validate and save if it is due, by `time.perf_counter`; return whether the run ends here."""
    opened, call, step = session.opened, session.call, session.recorder.counters.step - 1
    assert opened is not None  # there is a step in an epoch only
    session.recorder.usage.samples += session.recorder.samples
    called = call.wish is not None or session.called is not None
    if step < session.quiet_to and now < session.quiet_until and not called:
        return False
    opened.paused = False
    due = session.validation.at_step(step)
    if due or session.agreement.due(step):
        due |= session.settle(step, within=True)
        if session.place.compares and not session.place.has_compared:
            session.place.compare(session.trainer, session.recorder.warn_once)
    else:
        call.stop_reason = call.stop_reason or session.budget.spent(step)
    if due and session.valid_sets:
        _validate_within_epoch(session, bar, **kwargs)
        opened.paused = True  # whoever leaves now, has tested
        session.settle(step, within=True)
    opened.paused = True
    session.at_rest()
    session.rest(step)
    return call.stop_reason is not None


def owes(session: Session, bar: SilentBar, **kwargs: Any) -> bool:
    """Make up for a pause that an interruption has cut off; return whether the run ends here."""
    if session.opened is not None and not session.opened.paused:
        return between_steps(session, bar, time.perf_counter(), **kwargs)
    return session.call.stop_reason is not None  # the run went on after its last step


def _validate_within_epoch(session: Session, bar: SilentBar, **kwargs: Any) -> None:
    trainer, recorder = session.trainer, session.recorder
    recorder.train_metrics.clear()
    recorder.train_metrics.update(pooled(session.place.processes.gather(recorder.log_train.sums())))
    with bar.standing():
        tested = _validated(session, **kwargs)
    if tested:
        row = recorder.take_stock(trainer, recorder.counters.get_epoch(), tested, validates=True)
        bar.write(epoch_line(f"{bar.title}, step {session.step}", row, bar.speed, trainer.show))
        session.seen = dict(row)
        recorder.log_test.drop()


def _validated(session: Session, **kwargs: Any) -> bool:
    """Validate; when the processes are called away meanwhile, that is where the training leaves."""
    log = session.recorder.log_test
    losses, generators = log.losses.count, {n: loader_states(loader) for n, loader in session.valid_sets.items()}
    try:
        with session.recorder.usage.on("evaluation"):
            tested = session.evaluator.validate(session.trainer, session.valid_sets, **kwargs)
            session.validation.restart()
            return tested
    except CalledAway as call:  # it is begun again from the same order, and each of its losses counts once
        for name, states in generators.items():
            put_loader_states(session.valid_sets.get(name), states)
        log.clear()
        log.losses.take_back(losses)
        session.leave(str(call))
        raise


def end_of_epoch(session: Session, epoch: int, **kwargs: Any) -> str:
    """Validate, record, step the scheduler and count, after one epoch (from 0); return a line about it."""
    if session.recorder.batches == 0:
        return _end_of_nothing(session)
    training, call, step = session.trainer.mode == "train", session.call, session.step
    session.settle(step)
    last = call.stop_reason is not None or epoch + 1 >= session.budget.last_epoch
    due = training and session.validation.at_epoch(epoch + 1, last)
    speed = session.recorder.speed  # of the epoch: a validation has its own
    tested = due and call.tested_step != step and _validated(session, **kwargs)
    number = epoch + 1 if training else session.recorder.counters.get_epoch() - 1
    row = session.recorder.take_stock(session.trainer, number, tested or not training, bool(session.valid_sets))
    if training:
        session.recorder.clear_up(session.trainer, tested)
        _count(session, row.get("train_loss"))
    call.epoch_began = time.perf_counter()
    session.settle(step)
    if training:
        session.at_rest()
    if session.trainer.show and (unknown := unknown_in(session.trainer.show, row)):
        session.recorder.warn_once("show", unknown)
    # The values of a validation at the last step stand in the line before.
    seen = session.seen if training and session.seen is not None and session.seen["step"] == step else None
    title = session.title if training else f"{session.title} test"
    return epoch_line(title, row, speed, session.trainer.show, seen)


def _count(session: Session, train_loss: float | None) -> None:
    """An epoch is done: step the scheduler, unless it is stepped each batch, and count."""
    trainer, call = session.trainer, session.call
    if trainer.scheduler is not None and not trainer.scheduler_step_on_batch:
        step_scheduler(trainer.scheduler, call.tested_loss if session.valid_sets else train_loss)
        call.tested_loss = None
    session.recorder.counters.update_epoch()
    _close(session)


def _close(session: Session) -> None:
    session.opened, session.border = None, Trained(session.trainer.model, session.trainer.optimizer)


def _end_of_nothing(session: Session) -> str:
    """The loader gave no batch."""
    warn("the loader gave no batch, so nothing was done; the run ends here")
    session.call.stop_reason = reason = "the loader gave no batch"
    if session.trainer.mode == "train":
        _close(session)
        if session.step > session.budget.first_step:  # else nothing is there to be kept
            session.at_rest()
    return reason
