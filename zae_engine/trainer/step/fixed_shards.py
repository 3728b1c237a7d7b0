"""The bit-identical mode: gradients of fixed shards, summed in one fixed tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..data.random_streams import set_streams
from ..processes.group import Processes
from .shard_pack import Node, ShardPack, add_into
from .tree_sum import Tree, tree_sum

if TYPE_CHECKING:
    from ..data.window import Micro, Window


def check_shards(shards: int | None, micro_batches: int | None = None, split_batches: bool = True) -> int | None:
    """Return `shards`; refuse what is no number of them, and what has no meaning beside them."""
    if shards is None:
        return None
    if not isinstance(shards, int) or isinstance(shards, bool) or shards < 1:
        raise ValueError(f"shards={shards!r} is not accepted; write a whole number of at least 1, or None")
    if not split_batches:
        raise ValueError(
            f"shards={shards} are pieces of a global batch that is the same for any number of processes, which"
            " split_batches=False is not; leave one of the two out"
        )
    if micro_batches is not None and micro_batches > 1:
        raise ValueError(
            f"shards={shards} are computed one by one, which needs no more memory than as many micro-batches; leave"
            f" gradient_accumulation_steps={micro_batches} out"
        )
    return shards


def check_divides(shards: int | None, processes: int) -> None:
    """Refuse a number of processes that does not divide the shards."""
    if shards is not None and shards % processes:
        fitting = ", ".join(str(n) for n in range(1, shards + 1) if shards % n == 0)
        raise ValueError(
            f"shards={shards} cannot be shared out evenly over {processes} processes; start {fitting} of them, or"
            " choose shards= as a multiple of every number that you will train on"
        )


def check_dense(model: nn.Module) -> None:
    """Refuse layers whose gradients are sparse."""
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) is True:
            raise ValueError(
                f"shards= sums whole gradients, but those of {name or type(module).__name__!r}, which has sparse=True,"
                " are sparse; leave sparse=True out there, or shards= here"
            )


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute with one thread inside: launchers give processes other numbers of threads, and these change the bits."""
    before = torch.get_num_threads()
    try:
        if wanted:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


class ShardSum:
    """Collects the gradients of this process's shards, and gives every process the sum over all of them.

    The sums of neighbouring shards that lie on one process are made there; the rest of the same tree is made on every
    process from what they send. Random streams are set from (seed, step, shard). Buffers, such as BatchNorm's running
    mean, begin each shard as they were before the step; afterwards each has moved by the mean of its shards' movements.

    Parameters
    ----------
    model : nn.Module
    processes : Processes
    shards : int
        Of a global batch, over all processes.
    device : torch.device
    seed : int
    step : callable
        Returns the number of the optimizer step.
    """

    def __init__(
        self,
        model: nn.Module,
        processes: Processes,
        shards: int,
        device: torch.device,
        seed: int,
        step: Callable[[], int],
    ) -> None:
        check_dense(model)
        self._model, self._processes, self._device, self.seed, self._step = model, processes, device, seed, step
        self._per_process = shards // processes.count
        self._first = self._per_process * processes.index
        # Sums of so many shards, a power of two, are whole branches of the tree for any number of processes.
        self._branch = self._per_process & -self._per_process

    def micros(self, window: Window, parameters: list[nn.Parameter]) -> Iterator[Micro]:
        """The shards that have samples, each to be followed by its backward; then set the gradients of all."""
        buffers = [b for b in self._model.buffers() if b.dtype != torch.bool and not b.is_complex()]
        pack, branches = ShardPack(parameters, buffers), list[Node]()
        branch, step = Tree(add_into), self._step()
        for micro in window.micros:
            if micro.samples:
                set_streams(self._device, self.seed, "shard", step, self._first + micro.number)
                yield micro
            branch.take(pack.take(micro.samples / max(window.samples, 1)))
            if branch[0][0] == self._branch:
                branches.append(branch.total())
        if self._processes.count == 1:
            pack.put(tree_sum(branches, add_into))
        else:
            pack.put(*self._exchanged(pack, branches))

    def _exchanged(self, pack: ShardPack, branches: list[Node]) -> tuple[Node, Tensor]:
        """The sum over the branches of all processes, and how many of them have each gradient."""
        flat = [pack.flat(branch) for branch in branches]
        columns = [self._processes.stack(torch.stack(column)) for column in zip(*flat, strict=True)]
        # Not in place, which would keep what every process has sent as long as the gradients.
        return pack.apart([tree_sum(column.unbind(), torch.add) for column in columns], branches[0])
