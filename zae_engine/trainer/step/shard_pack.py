"""What a shard leaves behind, its gradients and its buffers' movements: taken, sent as flat tensors, and put back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce
from itertools import chain, islice, repeat
from operator import attrgetter, is_not, or_
from typing import TypeVar

import torch
from torch import Tensor, nn

# Tensors by their number type, since a list of one type is added at once: the gradients, then the movements.
Node = list[list[Tensor]]
T = TypeVar("T", bound=Tensor)

_GRAD = attrgetter("grad")
_ALIGNED = 64  # bytes; kernels sum in another order from an address that is not, which a tensor of its own never has


class ShardPack:
    """The gradients and the buffers of a model in one step.

    Parameters
    ----------
    parameters : list of Parameter
        Those that are frozen are left out.
    buffers : list of Tensor
        They begin each shard as they are now.
    """

    def __init__(self, parameters: list[nn.Parameter], buffers: list[Tensor]) -> None:
        self._groups = _by_type([p for p in parameters if p.requires_grad])
        self._parameters = [p for group in self._groups for p in group]
        self._buffers = _by_type(buffers)
        self._before = [[b.detach().clone() for b in group] for group in self._buffers]
        kinds = [b.dtype for b in buffers if b.dtype.is_floating_point]
        self._wide = reduce(torch.promote_types, kinds, torch.float32)
        self._has = [False] * len(self._parameters)

    def take(self, weight: float) -> Node:
        """What one shard has left, which is cleared: its gradients, and its buffers' movements times `weight`."""
        gradients = list(map(_GRAD, self._parameters))
        there = list(map(is_not, gradients, repeat(None)))
        if not all(there):
            gradients = [_zeros(p) if p.grad is None else p.grad for p in self._parameters]
            there = list(map(or_, self._has, there))
        self._has = there
        for parameter in self._parameters:
            parameter.grad = None
        # In the order in which other processes send them, too: norms are summed in that of the memory.
        gradients = list(map(Tensor.contiguous, gradients))
        node = [gradients] if len(self._groups) == 1 else _parted(gradients, self._groups)
        if self._buffers:
            node.append([moved for buffers in self._moved(weight) for moved in buffers])
        return node

    def _moved(self, weight: float) -> Node:
        found = Node()
        for buffers, before in zip(self._buffers, self._before, strict=True):
            moved = list(torch._foreach_sub(buffers, before))
            moved = moved if buffers[0].dtype == self._wide else [m.to(self._wide) for m in moved]
            torch._foreach_mul_(moved, weight)
            torch._foreach_copy_(buffers, before)
            found.append(moved)
        return found

    def put(self, node: Node, has: Tensor | None = None) -> None:
        """Set the gradients, and move the buffers.

        Parameters
        ----------
        node : list
            The sum over the shards.
        has : Tensor, optional
            How many processes have each gradient, if there are other processes.
        """
        # Where one shard had all gradients, all are there. To look at the sum would wait for the device.
        there = self._has if has is None or all(self._has) else has.bool().tolist()
        gradients = chain.from_iterable(node[: len(self._groups)])
        for parameter, gradient, exists in zip(self._parameters, gradients, there, strict=True):
            parameter.grad = gradient if exists else None
        for buffers, moved in zip(self._buffers, _parted(node[-1], self._buffers), strict=True):
            if not buffers[0].dtype.is_floating_point:
                torch._foreach_round_(moved)  # a counter counts the same in every shard
            torch._foreach_add_(buffers, [m.to(buffers[0].dtype) for m in moved])

    # ------------------------------------------------------------------ over the processes

    def flat(self, node: Node) -> list[Tensor]:
        """The node as one tensor a number type, and behind its numbers which gradients this process has."""
        has = torch.tensor(self._has, dtype=torch.float32, device=node[0][0].device)
        return [_joined(group) for group in _by_type([t for group in node for t in group] + [has])]

    def apart(self, flat: list[Tensor], like: Node) -> tuple[Node, Tensor]:
        """The node that `flat` gave, or a sum of such ones, and how many processes have each gradient."""
        shapes = [t for group in like for t in group] + [torch.empty(len(self._has))]
        pieces = {id(t): piece for group, whole in zip(_by_type(shapes), flat, strict=True)
                  for t, piece in zip(group, _split(whole, group), strict=True)}  # fmt: skip
        return [[pieces[id(t)] for t in group] for group in like], pieces[id(shapes[-1])]


def add_into(left: Node, right: Node) -> Node:
    """Add the right one to the left one, in place."""
    for one, other in zip(left, right, strict=True):
        torch._foreach_add_(one, other)
    return left


def _zeros(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter, memory_format=torch.contiguous_format)


def _parted(tensors: list[Tensor], like: Sequence[Sequence[Tensor]]) -> Node:
    """The tensors in lists as long as those of `like`."""
    rest = iter(tensors)
    return [list(islice(rest, len(group))) for group in like]


def _by_type(tensors: list[T]) -> list[list[T]]:
    found: dict[torch.dtype, list[T]] = defaultdict(list)
    for tensor in tensors:
        found[tensor.dtype].append(tensor)
    return list(found.values())


def _lengths(tensors: list[Tensor]) -> list[int]:
    """How many numbers each takes, up to the next address that is aligned."""
    step = max(_ALIGNED // tensors[0].element_size(), 1)
    return [-(-t.numel() // step) * step for t in tensors]


def _joined(tensors: list[Tensor]) -> Tensor:
    lengths = _lengths(tensors)
    whole = tensors[0].new_zeros(sum(lengths))
    torch._foreach_copy_(_split(whole, tensors, lengths), tensors)
    return whole


def _split(whole: Tensor, like: list[Tensor], lengths: list[int] | None = None) -> list[Tensor]:
    parts = torch.split(whole, lengths or _lengths(like))
    return [part[: t.numel()].view(t.shape) for part, t in zip(parts, like, strict=True)]
