"""The bit-identical mode: gradients of fixed shards, summed in one fixed tree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..data.random_streams import set_streams
from ..processes.group import Processes

if TYPE_CHECKING:
    from ..data.window import Micro, Window

Node = list[Tensor]


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


def tree_sum(nodes: Iterable[Node]) -> Node:
    """Sum neighbours, then neighbouring sums, and so on; which additions are made depends on the number of nodes only.

    Parameters
    ----------
    nodes : iterable of lists of tensors
        Read one by one, so that few of them are held at a time.
    """
    return _fold(_push(nodes))


def _push(nodes: Iterable[Node]) -> list[tuple[int, Node]]:
    """Sums over powers of two of nodes, as the digits of a binary counter: the largest first."""
    digits: list[tuple[int, Node]] = []
    for node in nodes:
        size = 1
        while digits and digits[-1][0] == size:
            size, node = size * 2, _add(digits.pop()[1], node)
        digits.append((size, node))
    return digits


def _fold(digits: list[tuple[int, Node]]) -> Node:
    node = digits.pop()[1]
    while digits:
        node = _add(digits.pop()[1], node)
    return node


def _add(left: Node, right: Node) -> Node:
    return [one + other for one, other in zip(left, right, strict=True)]


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
        self._model, self._processes, self._device, self.seed, self._step = model, processes, device, seed, step
        self._per_process = shards // processes.count
        self._first = self._per_process * processes.index
        # Sums of so many shards, a power of two, are whole branches of the tree for any number of processes.
        self._branch = self._per_process & -self._per_process

    def micros(self, window: Window, parameters: list[nn.Parameter]) -> Iterator[Micro]:
        """The shards that have samples, each to be followed by its backward; then set the gradients of all."""
        pack = _Pack(parameters, [b for b in self._model.buffers() if b.dtype != torch.bool and not b.is_complex()])
        branches, branch = list[Node](), list[Node]()
        for micro in window.micros:
            if micro.samples:
                set_streams(self._device, self.seed, "shard", self._step(), self._first + micro.number)
                yield micro
            branch.append(pack.take(micro.samples / max(window.samples, 1)))
            if len(branch) == self._branch:
                branches.append(tree_sum(branch))
                branch = []
        pack.put(tree_sum(self._exchanged(branches)))

    def _exchanged(self, branches: list[Node]) -> Iterable[Node]:
        if self._processes.count == 1:
            return branches
        columns = [self._processes.stack(torch.stack(column)) for column in zip(*branches, strict=True)]
        return [list(node) for node in zip(*columns, strict=True)]


class _Pack:
    """Gradients as one flat tensor a number type, then which there are, then the movements of the buffers."""

    def __init__(self, parameters: list[nn.Parameter], buffers: list[Tensor]) -> None:
        self._groups: dict[torch.dtype, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            if parameter.requires_grad:
                self._groups[parameter.dtype].append(parameter)
        self._parameters = [p for group in self._groups.values() for p in group]
        self._buffers, self._before = buffers, [b.detach().clone() for b in buffers]
        kinds = [b.dtype for b in buffers if b.dtype.is_floating_point]
        self._wide = reduce(torch.promote_types, kinds, torch.float32)
        self._complete = False

    def take(self, weight: float) -> Node:
        """What one shard has left, which is cleared: its gradients, and its buffers' movements times `weight`."""
        there = [p.grad is not None for p in self._parameters]
        self._complete = self._complete or all(there)
        node = [torch.cat([_gradient(p).flatten() for p in group]) for group in self._groups.values()]
        node.append(torch.tensor(there, dtype=torch.float32, device=node[0].device))
        moved = [(b - s).flatten().to(self._wide) * weight for b, s in zip(self._buffers, self._before, strict=True)]
        node.append(torch.cat(moved) if moved else node[-1][:0])
        for parameter in self._parameters:
            parameter.grad = None
        for buffer, start in zip(self._buffers, self._before, strict=True):
            buffer.copy_(start)
        return node

    def put(self, node: Node) -> None:
        """Set the gradients, and move the buffers."""
        *flat, there, moved = node
        # Where one shard had all gradients, all are there. To look at the sum would wait for the device.
        has = [True] * len(self._parameters) if self._complete else there.bool().tolist()
        pieces = (piece for group, column in zip(self._groups.values(), flat, strict=True)
                  for piece in torch.split(column, [p.numel() for p in group]))  # fmt: skip
        for parameter, piece, exists in zip(self._parameters, pieces, has, strict=True):
            parameter.grad = piece.view_as(parameter) if exists else None
        movements = torch.split(moved, [b.numel() for b in self._buffers]) if self._buffers else ()
        for buffer, start, by in zip(self._buffers, self._before, movements, strict=True):
            by = by if start.dtype.is_floating_point else by.round()  # a counter counts the same in every shard
            buffer.copy_(start + by.view_as(start).to(start.dtype))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
