"""The weighted window: the micro-batches of one optimizer step, and what each of them weighs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..nested_values import merge
from ..processes.group import Processes

Items = int | float | Tensor


class Micro(NamedTuple):
    """A micro-batch on the device, its number of samples (0: a stand-in), and its number in the window."""

    batch: Any
    samples: int
    number: int = 0


class Counting:
    """Whether the step returns ``"num_items"``, which the processes have to know of each other: whoever counts, waits.

    They ask once, at an epoch's first window.
    """

    def __init__(self) -> None:
        self._found: bool | None = None

    def settle(self, processes: Processes | None, counted: bool) -> bool:
        """Whether the processes count items; refuse a step that begins to."""
        if processes is None or processes.count == 1:
            return False
        if self._found is None:
            self._found = any(processes.gather(counted))
        if counted and not self._found:
            raise ValueError(
                "train_step returned 'num_items' now, but did not in the epoch's first step; on several processes,"
                " return it in every step (0 where there is nothing to count)"
            )
        return self._found


class Window:
    """One optimizer step: this process's micro-batches of one global batch, and the share that each has of it.

    Parameters
    ----------
    micros : list of Micro
        This process's.
    samples : int
        In the whole global batch.
    processes : Processes, optional
        Over which the global batch is shared out.
    shards : bool
        Whether the micro-batches are shards, whose weights must not depend on the number of processes, to the bit.
    counting : Counting, optional
        The epoch's.

    Attributes
    ----------
    here : int
        Samples in this process's share.
    items : list
        Items of its micro-batches: samples, or the ``"num_items"`` that the step returned; 0 before it did.
    values : dict
        What the step returned, put together over the micro-batches; `Trainer.optimize` fills it in.
    stepped : bool
        Whether the optimizer stepped; fp16 leaves out a step whose gradients overflowed.
    """

    is_whole = False  # whether one micro-batch is all of it, so that nothing is weighed, nor asked of other processes

    def __init__(
        self,
        micros: list[Micro],
        samples: int,
        processes: Processes | None = None,
        shards: bool = False,
        counting: Counting | None = None,
    ) -> None:
        self.micros, self.samples, self._counting = micros, samples, counting
        self.here = sum([micro.samples for micro in micros])
        self.items: list[Items] = [0] * len(micros)
        self.values: dict[str, Any] = {}
        self.stepped = True
        self._processes, self._shards = processes, shards
        self._whole: Items | None = None
        self._counted = False

    def merged(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """What the step returned for the micro-batches that are no stand-ins, as if one batch had returned it."""
        weights = [self.items[m.number] for m in self.micros if m.samples or not self.samples]
        return merge(results, weights) if results else {}

    def share(self, items: Items | None, micro: Micro) -> Items | None:
        """Note a micro-batch's items (None: its samples), and return its weight, None for 1.

        The weight is its share of the window's items, times the number of processes, since they average their
        gradients. With ``"num_items"``, the window's total is known only after its last forward. Until then it is
        estimated from the first micro-batches, as if each sample had as many items; `correction` makes up for the
        difference.
        """
        self._counted, samples = self._counted or items is not None, micro.samples
        if self._processes is None and len(self.micros) == 1:
            self.items[0] = samples if items is None else items
            return None
        if (
            not self._shards
            and self._counting is not None
            and self._counting.settle(self._processes, items is not None)
        ):
            items = samples if items is None else items  # as the others, who wait for a number
        self.items[micro.number] = (samples if items is None else items) if samples else 0
        processes = 1 if self._processes is None or self._shards else self._processes.count
        if processes == 1 and len(self.micros) == 1 and not self._shards:
            return None
        if self._whole is None:
            self._whole = self.samples if items is None or self._shards else self._estimate(processes, samples)
        if items is None:  # of plain samples the shares are known, and often 1
            return None if samples * processes == self._whole else samples * processes / self._whole
        return _wide(self.items[micro.number]) * processes / self._whole

    def _estimate(self, processes: int, samples: int) -> Items:
        """The window's items, from the first micro-batch of every process; they are all of it if each has one only."""
        first, seen = _wide(self.items[0]), samples
        if self._processes is not None and processes > 1:
            sums = self._processes.sum([first, samples])
            first, seen = sums[0], sums[1]  # type: ignore[assignment]  # tensors, so that nothing waits for the device
            if len(self.micros) == 1:
                return torch.where(sums[0] == 0, 1.0, sums[0])
        whole = first * self.samples / seen
        return whole.clamp(min=1) if isinstance(whole, Tensor) else max(whole, 1)

    def correction(self) -> Items | None:
        """The factor that turns gradients under the estimated total into those under the real one; None for 1."""
        if self._shards:  # a process without samples has asked no step
            if self._counting is not None:
                self._counted = self._counting.settle(self._processes, self._counted) or self._counted
            self._whole = self.samples
        if not self._counted or self._whole is None:
            return None
        if self._processes is not None and self._processes.count > 1 and len(self.micros) == 1 and not self._shards:
            return None
        total = self._total()
        if isinstance(total, Tensor):
            return torch.where(total == 0, 1.0, self._whole / total)
        return None if total in (0, self._whole) else self._whole / total

    def _total(self) -> Items:
        if self._processes is None or (self._processes.count == 1 and not self._shards):
            return sum(map(_wide, self.items))
        if not self._shards:
            return self._processes.sum([sum(map(_wide, self.items))])[0]
        # Every shard's items in one order, so that the sum is the same to the bit for any number of processes.
        return self._processes.stack(self._processes.numbers(self.items)).sum()


class WholeWindow(Window):
    """A batch in one piece, which one process has alone: the usual one."""

    is_whole = True

    def __init__(self, batch: Any, samples: int) -> None:
        self.micros, self.samples, self.here = [Micro(batch, samples)], samples, samples
        self.values, self.stepped = {}, True

    def merged(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """What the step returned."""
        return results[0]

    def share(self, items: Items | None, micro: Micro) -> Items | None:
        """All of it."""
        return None

    def correction(self) -> Items | None:
        """Nothing was estimated."""
        return None


def _wide(items: Items) -> Items:
    """Items as they are divided: torch divides whole numbers in float32, too coarse beside a loss in float64."""
    if not isinstance(items, Tensor) or items.device.type == "mps":  # which has no float64
        return items
    return items.detach().to(torch.float64)
