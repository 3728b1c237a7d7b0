"""Where a run is, as plain values, arrays and tensors; and how a trainer gets there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..data.plan import named
from ..data.random_streams import loader_states, put_loader_states, streams_of
from ..interface import Face
from ..loop.open_epoch import Loaded, Midway, Open
from ..processes.group import Processes
from ..records.gather import log_state
from ..records.losses import Losses
from ..records.recorder import Recorder, reads_logs

Nest = dict[str, Any]


def position_of(trainer: Face, recorder: Recorder, opened: Open | None) -> Nest:
    """Where the run is: what is the same on all processes."""
    call, log, step = recorder.training, recorder.log_train, recorder.counters.get_step() - 1
    sets, losses, tested = named(trainer.valid_loader), log.losses, recorder.log_test.losses
    return {
        "began": [call.budget.first_epoch, call.budget.first_step],
        "batch": opened.plan.position if opened else 0,
        "ids": (opened.plan.last_ids or opened.plan.start.before) if opened else "",
        "midway": opened is not None,
        "paused": opened is None or opened.paused,
        "generators": opened.generators if opened else loader_states(trainer.loader),
        "drawn": loader_states(trainer.loader) if opened and call.stop_reason else [],
        "valid_generators": {name: loader_states(loader) for name, loader in sets.items()},
        "stop": call.lasting_stop(step),
        "seconds": time.perf_counter() - call.epoch_began,
        "tested": [call.tested_step, call.tested_loss],
        "rows_before": call.rows_before,
        "rows": [dict(row) for row in recorder.history.rows],
        "metrics": [dict(recorder.train_metrics), dict(recorder.test_metrics)],
        "losses": [losses.until(log.epoch_begins if opened else losses.count), tested.values[:]],
        "losses_before": [losses.before, tested.before],
    }


def own_part(trainer: Face, recorder: Recorder, opened: Open | None, processes: Processes) -> Nest:
    """What only this process has: its random streams, and of a running epoch its log and its metrics."""
    if opened is None:
        return {}
    return {
        "streams": opened.streams or streams_of(trainer.device),
        "log": log_state(recorder.log_train, processes, reads_logs(trainer)),
        "measures": recorder.measures["train"].state(),
    }


def go_to(recorder: Recorder, position: Mapping[str, Any], parts: list[Nest], streams: Nest | None) -> Loaded:
    """Take the history and the values of a position; return what the next run goes on from.

    Parameters
    ----------
    recorder : Recorder
    position : mapping
        What `position_of` gave.
    parts : list of dict
        What `own_part` gave, of the processes whose values this one goes on with.
    streams : dict or None
        This process's random streams; None makes new ones.
    """
    recorder.history.rows[:] = [dict(row) for row in position["rows"]]
    metrics = (recorder.train_metrics, recorder.test_metrics)
    for mine, then in zip(metrics, position["metrics"], strict=True):
        mine.clear()
        mine.update(then)
    before = position.get("losses_before", (0, 0))
    for log, losses, count in zip((recorder.log_train, recorder.log_test), position["losses"], before, strict=True):
        log.clear()
        log.losses = Losses(losses, count)
        log.clear()
    midway = None
    if position["midway"]:
        logs, measures = [part["log"] for part in parts], [part["measures"] for part in parts]
        keys = ("batch", "ids", "paused", "generators", "drawn")
        midway = Midway(**{k: position[k] for k in keys}, streams=streams, logs=logs, measures=measures)
    return Loaded(dict(position), midway)


def conclude(trainer: Face, recorder: Recorder, loaded: Loaded, loader: Any, valid_loader: Any) -> None:
    """Leave what a call of `run` leaves whose end has been loaded; the next one begins a call of its own."""
    position, call = loaded.position, recorder.training
    trainer.loader, trainer.valid_loader = loader, valid_loader
    put_loader_states(loader, position["generators"])
    for name, states in position["valid_generators"].items():
        put_loader_states(named(valid_loader).get(name), states)
    step = recorder.counters.get_step() - 1
    call.stop_reason = position["stop"] or call.budget.spent(step)
    recorder.call = call
