"""What several processes have found of one epoch, put together as one process would have found it."""

from __future__ import annotations

from array import array
from collections import defaultdict
from typing import Any

import numpy as np

from .batch import join
from .history import EpochLog, Series
from .processes import Processes


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


def mean_series(parts: list[Series]) -> Series:
    """The weighted mean of each batch over its parts, and its whole weight."""
    places = np.concatenate([np.frombuffer(part.places, dtype=np.int64) for part in parts])
    values = np.concatenate([np.frombuffer(part.values) for part in parts])
    weights = np.concatenate([np.frombuffer(part.weights) for part in parts])
    there, batch = np.unique(places, return_inverse=True)
    total = np.bincount(batch, weights)
    plain = np.bincount(batch, values) / np.bincount(batch)  # of parts without any item, which count for nothing
    mean = np.divide(np.bincount(batch, values * weights), total, out=plain, where=total != 0)
    whole = Series()
    whole.places, whole.values, whole.weights = array("q", there), array("d", mean), array("d", total)
    return whole


def _joined(key: str, parts: list[tuple[list[int], list[Any]]]) -> list[Any]:
    """The batches' values in order, each joined from its parts."""
    batches: dict[int, list[Any]] = defaultdict(list)
    for places, values in parts:
        for place, value in zip(places, values, strict=True):
            batches[place].append(value)
    whole = (batches[place] for place in sorted(batches))
    return [value for batch in whole for value in ([sum(batch)] if key == "num_items" else joined(batch))]


def joined(parts: list[Any]) -> list[Any]:
    """One batch's output from its parts; the parts one by one when they do not fit together."""
    try:
        return [join(parts)]
    except RuntimeError:  # padded to other lengths, say
        return parts
