"""What a run uses: where its time goes, as the host sees it, how much memory, and what its loader is like."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...logs.outcome import PARTS


class Usage:
    """Counts seconds by what they went to, and the samples that were trained meanwhile.

    Attributes
    ----------
    data, evaluation, saving, logging : float
        Seconds so far: waiting for the loader's next training batch, in validations, kept by checkpoints, by logs.
        What is left of the whole is the training itself.
    samples : int
        Trained so far, by all processes together.
    """

    def __init__(self) -> None:
        self.data = self.evaluation = self.saving = self.logging = 0.0
        self.samples = 0
        self._within = 0.0  # seconds of the parts inside of the present one
        self._began = time.perf_counter()

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Go through `batches`, counting the time that each takes to come."""
        clock, iterator = time.perf_counter, iter(batches)
        while True:
            start = clock()
            try:
                batch = next(iterator)
            except StopIteration:
                self.data += clock() - start
                return
            self.data += clock() - start
            yield batch

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count the time inside for a part; what counts for another part within it does not count twice."""
        start, before, self._within = time.perf_counter(), self._within, 0.0
        try:
            yield
        finally:
            took = time.perf_counter() - start
            setattr(self, part, getattr(self, part) + took - self._within)
            self._within = before + took

    def now(self) -> dict[str, float]:
        """Seconds by part, with ``all`` for the whole."""
        return {"all": time.perf_counter() - self._began, **{part: getattr(self, part) for part in PARTS}}


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """The most memory so far, in bytes: of this process, and of its GPU."""
    return {"host": _resident(), "device": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None}


def _resident() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def loader_facts(loader: Any) -> dict[str, Any]:
    """What of a loader decides how quickly its batches come."""
    names = ("num_workers", "prefetch_factor", "pin_memory", "persistent_workers")
    facts = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    return facts | {"cores": max(1, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))} if facts else {}


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
