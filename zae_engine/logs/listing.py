"""A run as one line of a list: made of its history, and kept in ``summary.json`` for as long as the history is that.

A run that has ended says in its summary what ``zae runs`` shows of it, and of which history. Whoever lists a thousand
runs reads a thousand small files then, in place of histories of any length. A history that has another size, or was
written later than the summary, is read itself. Imports no torch.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import read_json
from .outcome import ENDS, is_count, is_held, is_number
from .reading import FILES, Run, glance

SUMMARY = "summary.json"
_LISTED = "listed"
_TEXTS = ("status", "best_name", "started")
_NUMBERS = ("best", "duration", "samples/s")
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True)
class Listed:
    """What a list shows of a run.

    Attributes
    ----------
    values : dict
        ``status``, ``epochs``, ``steps``, ``best``, ``best_name``, ``duration`` (in seconds), ``started``,
        ``samples/s``; None where nothing is known.
    last : dict of str to float
        The last value of each column of the history.
    """

    values: dict[str, Any]
    last: dict[str, float] = field(default_factory=dict)


def listed(folder: Path) -> Listed:
    """What a list shows of a run: by its summary, if that is of the history as it is now, else by the history itself.

    Raises
    ------
    RunFolderError
        As `read_run` does.
    """
    return _kept(folder) or listed_of(glance(folder))


def listed_of(run: Run) -> Listed:
    """What a list shows of a run."""
    values = {
        "status": run.status,
        "epochs": run.epoch,
        "steps": run.step,
        "best": run.best.value if run.best else None,
        "best_name": run.best.name if run.best else run.never_finite,
        "duration": run.seconds,
        "started": run.begun,
        "samples/s": run.samples_per_second,
    }
    last = {name: value for row in run.rows for name, value in row.items() if isinstance(value, (int, float))}
    return Listed(values, last)


# ---------------------------------------------------------------------- in the summary


def entry_of(run: Run) -> dict[str, Any]:
    """What a summary keeps for a list; nothing of a run whose end is unknown, which may go on."""
    if run.end is None or run.end.get("status") not in ENDS:
        return {}
    found = listed_of(run)
    values = found.values | {"status": run.end["status"]}  # while a summary is written, the run has its lock
    last = {name: value if math.isfinite(value) else str(value) for name, value in found.last.items()}
    return {_LISTED: {"of": run.sizes, "values": values, "last": last}}


def without_entry(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary as it is read, without what it keeps for a list."""
    return {name: value for name, value in summary.items() if name != _LISTED}


def _kept(folder: Path) -> Listed | None:
    """By the summary; None if there is none of the files as they are, or the run goes on."""
    try:
        entry = read_json(folder / SUMMARY)[_LISTED]
        values, last = dict(entry["values"]), {name: _NOT_FINITE.get(v, v) for name, v in entry["last"].items()}
        if not _is_of(folder, entry["of"]) or values["status"] not in ENDS or is_held(folder):
            return None
        counts, numbers = [values["epochs"], values["steps"]], [*(values[name] for name in _NUMBERS), *last.values()]
        sound = all(map(is_count, counts)) and all(map(is_number, numbers)) and None not in last.values()
        texts = all(isinstance(values[name], (str, type(None))) for name in _TEXTS)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return Listed(values, last) if sound and texts else None


def _is_of(folder: Path, sizes: dict[str, int]) -> bool:
    """Whether files have these sizes, and were not written after the summary was."""
    place, found = (
        os.path.join(folder, ""),
        dict[str, int](),
    )  # `Path` would take a third of the time
    written = os.lstat(place + SUMMARY).st_mtime_ns
    for name in FILES:
        with suppress(FileNotFoundError):
            file = os.lstat(place + name)
            found[name] = file.st_size if file.st_mtime_ns <= written else -1
    return found == sizes
