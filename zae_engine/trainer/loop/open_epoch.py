"""Places in the middle of an epoch: the one that is running, and one that is to be gone on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..data.plan import BatchPlan


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
    generators: list[Tensor]
    drawn: list[Tensor]
    streams: dict[str, Any] | None
    logs: list[dict[str, Any]]
    measures: list[dict[str, Any]]
    again: Callable[[], None] | None = None


@dataclass
class Open:
    """The training epoch that is running."""

    plan: BatchPlan
    generators: list[Tensor] = field(default_factory=list)
    streams: dict[str, Any] | None = None  # those of a checkpoint, until they are put back
    paused: bool = True


@dataclass
class Loaded:
    """What a checkpoint says of where the run was; the next one goes on from there.

    Attributes
    ----------
    position : mapping
        As `position_of` gave it.
    midway : Midway or None
        The epoch that was running.
    finishes : bool
        Whether the next call of `run` is the one that was interrupted, so that its limits count from where it began.
    """

    position: Mapping[str, Any]
    midway: Midway | None
    finishes: bool = False

    def begun(self, done: tuple[int, int]) -> tuple[int, int, tuple[int, int, int]]:
        """Epochs and steps done when the call began that goes on; and those done now, with the batches."""
        first_epoch, first_step = self.position["began"] if self.finishes else done
        return first_epoch, first_step, (*done, self.midway.batch if self.midway else 0)
