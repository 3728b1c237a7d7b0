"""How a global batch is shared out over processes and micro-batches, and where in an epoch a walk begins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from .cut import even_edges


@dataclass(frozen=True)
class Layout:
    """How a global batch is shared out.

    Attributes
    ----------
    processes, index : int
        How many there are, and which one this is.
    micro_batches : int
        Into how many pieces a process cuts its share.
    shards : int or None
        Into how many pieces the global batch is cut, whatever the number of processes; None for no such pieces.
    split_batches : bool
        The loader's batch is the global batch; False: it is one process's.
    """

    processes: int = 1
    index: int = 0
    micro_batches: int = 1
    shards: int | None = None
    split_batches: bool = True

    @cached_property
    def alone(self) -> bool:
        """Whether a batch is taken as the loader gives it."""
        return self.processes == 1 and self.shards is None

    @cached_property
    def cuts(self) -> bool:
        """Whether a process's share is cut into pieces."""
        return self.micro_batches > 1 or self.shards is not None

    @property
    def loader_batches(self) -> int:
        """How many of the loader's batches make a global one."""
        return 1 if self.split_batches else self.processes

    def mine(self, samples: int) -> tuple[int, int]:
        """Where this process's share of a global batch begins and ends."""
        per_process = (self.shards or self.processes) // self.processes
        edges = even_edges(samples, self.processes * per_process)
        return edges[self.index * per_process], edges[(self.index + 1) * per_process]

    def pieces(self, samples: int, here: int) -> list[int]:
        """The samples in each of this process's micro-batches; every process has as many micro-batches.

        Parameters
        ----------
        samples, here : int
            In the global batch, and in this process's share.
        """
        if self.shards:
            edges, per_process = even_edges(samples, self.shards), self.shards // self.processes
            edges = edges[self.index * per_process : (self.index + 1) * per_process + 1]
        else:
            edges = even_edges(here, max(1, min(self.micro_batches, -(-samples // self.processes))))
        return [stop - start for start, stop in pairwise(edges)]


class Share(NamedTuple):
    """What one process has of a global batch.

    Attributes
    ----------
    samples, here : int
        In the global batch, and loaded by this process; with ``here`` 0, the batch is a stand-in of weight 0.
    ids : list
        Of the global batch, a list for each of the loader's batches that it is made of.
    """

    samples: int
    here: int
    ids: Sequence[list[Any]] = ()


@dataclass
class Start:
    """Where in an epoch a walk over a loader begins.

    Attributes
    ----------
    batch : int
        The number of the first global batch to give.
    before : str
        The `ids_hash` of the batch before it, empty when that is not known; the order has to be the same again.
    began : callable, optional
        Called once, when the loader's order is drawn, before the first sample is loaded.
    """

    batch: int = 0
    before: str = ""
    began: Callable[[], None] | None = None

    def call(self) -> None:
        """Call `began`, if that has not been done yet."""
        began, self.began = self.began, None
        if began is not None:
            began()


def nothing() -> None:
    """What is done before an order is drawn, usually."""


def ids_hash(ids: Sequence[list[Any]]) -> str:
    """A hash of a batch's ids; empty where there are none."""
    return hashlib.blake2b(repr(ids).encode(), digest_size=16).hexdigest() if ids else ""
