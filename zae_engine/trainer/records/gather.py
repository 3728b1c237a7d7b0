"""What several processes have found of one epoch, put together as one process would have found it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from ..nested_values import join
from ..processes.group import Processes
from .columns import Series
from .epoch_log import EpochLog

_NOTHING = (0.0, 0.0)  # before the first value


def put_together(log: EpochLog, processes: Processes, everything: bool) -> None:
    """Give every process the whole epoch's log, with one exchange; nothing on one process.

    Parameters
    ----------
    log : EpochLog
        Of this process's shares of the batches; changed in place.
    processes : Processes
    everything : bool
        Exchange the values that are not scalars, too. Otherwise each process keeps its own ones.
    """
    if processes.count == 1:
        return
    parts = processes.gather(log.parts(everything))
    names = dict.fromkeys(key for part in parts for key in part["scalars"])
    scalars = {key: mean_series([part["scalars"][key] for part in parts if key in part["scalars"]]) for key in names}
    names = dict.fromkeys(key for part in parts for key in part["other"])
    log.put_together(
        scalars, {key: _joined(key, [p["other"][key] for p in parts if key in p["other"]]) for key in names}
    )


def log_state(log: EpochLog, processes: Processes, everything: bool) -> dict[str, Any]:
    """What this process has of the running epoch, as plain values, arrays and tensors."""
    parts = log.parts(everything)
    if log.is_whole and not processes.first:  # process 0 has all of it
        parts |= {"scalars": {}, "other": {}}
    kinds = log.kinds()
    scalars = {k: {"places": s.places, "values": s.values, "weights": s.weights, "kind": kinds[k],
                   "before": list(s.before)}
               for k, s in parts["scalars"].items()}  # fmt: skip
    return {"batches": parts["batches"], "scalars": scalars, "other": parts["other"]}


def restore_log(log: EpochLog, states: list[dict[str, Any]], batches: int) -> None:
    """Go on after so many batches with what one process had, or with what several had, of whose values they are made.

    A process that was not there before has nothing of them, and counts on from them all the same.
    """
    scalars = dict[str, tuple[Series, str]]()
    for key in dict.fromkeys(key for state in states for key in state["scalars"]):
        having = [state["scalars"][key] for state in states if key in state["scalars"]]
        parts = [
            Series(part["places"], part["values"], part["weights"], part.get("before", _NOTHING)) for part in having
        ]
        scalars[key] = (mean_series(parts) if len(parts) > 1 else parts[0]), having[0]["kind"]
    other = dict[str, Any]()
    for key in dict.fromkeys(key for state in states for key in state["other"]):
        values = [state["other"][key] for state in states if key in state["other"]]
        other[key] = _joined(key, values) if len(values) > 1 else values[0]
    log.restore(batches, scalars, other)


def mean_series(parts: list[Series]) -> Series:
    """The weighted mean of each batch over its parts, and its whole weight."""
    places = np.concatenate([np.frombuffer(part.places, dtype=np.int64) for part in parts])
    values = np.concatenate([np.frombuffer(part.values) for part in parts])
    weights = np.concatenate([np.frombuffer(part.weights) for part in parts])
    there, batch = np.unique(places, return_inverse=True)
    total = np.bincount(batch, weights)
    count = np.bincount(batch)
    plain = np.bincount(batch, values) / count  # of parts without any item, which count for nothing
    # What has one part is that part, to the bit, so that means can be taken again after a checkpoint.
    several = (total != 0) & (count > 1)
    mean = np.divide(np.bincount(batch, values * weights), total, out=plain, where=several)
    before = [sum(column) for column in zip(*(part.before for part in parts), strict=True)]
    return Series(there.tolist(), mean.tolist(), total.tolist(), (before[0], before[1]))


def _joined(key: str, parts: list[tuple[list[int], list[Any]]]) -> tuple[list[int], list[Any]]:
    """The batches' numbers and values in order, each joined from its parts."""
    batches: dict[int, list[Any]] = defaultdict(list)
    for places, values in parts:
        for place, value in zip(places, values, strict=True):
            batches[place].append(value)
    whole = [([sum(batches[n])] if key == "num_items" else joined(batches[n]), n) for n in sorted(batches)]
    return [n for values, n in whole for _ in values], [value for values, _ in whole for value in values]


def joined(parts: list[Any]) -> list[Any]:
    """One batch's output from its parts; the parts one by one when they do not fit together."""
    try:
        return [join(parts)]
    except RuntimeError:  # padded to other lengths, say
        return parts
