"""Nests of tensors: place them on a device, compare them, put results together again.

A nest is a tensor, or a dict, tuple, list, named tuple or dataclass of nests. Whatever else it holds (strings,
numbers, objects) passes through; an object with a ``to(device)`` method is placed through that method.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import math
from collections import UserDict
from collections.abc import Callable, Iterator, MutableMapping
from functools import cache, partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence


def is_nest(value: Any) -> bool:
    """Whether `value` is one of the forms that this module looks into."""
    if isinstance(value, (tuple, list)):
        return not hasattr(value, "to")  # a packed sequence is a named tuple, but no nest
    return isinstance(value, MutableMapping) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def map_nest(function: Callable[[Any], Any], nest: Any) -> Any:
    """Apply `function` to every leaf of `nest` and keep its form."""
    return rebuild(nest, partial(map_nest, function)) if is_nest(nest) else function(nest)


def rebuild(nest: Any, function: Callable[[Any], Any]) -> Any:
    """Return a nest of the same form whose children, in order, went through `function`."""
    if isinstance(nest, MutableMapping):
        return _like_mapping(nest, {k: function(v) for k, v in nest.items()})
    if isinstance(nest, (tuple, list)):
        items = [function(v) for v in nest]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    return _like_dataclass(nest, {f.name: function(getattr(nest, f.name)) for f in dataclasses.fields(nest)})


def _like_mapping(nest: MutableMapping[Any, Any], values: dict[Any, Any]) -> Any:
    if type(nest) is dict:
        return values
    like = copy.copy(nest)  # keeps a defaultdict's factory, and whatever else a subclass carries
    if not isinstance(nest, (dict, UserDict)):
        # A mapping of another kind keeps its values in some dict of its own, which the copy must not share.
        for name, value in getattr(like, "__dict__", {}).items():
            if isinstance(value, dict):
                setattr(like, name, copy.copy(value))
    for key, value in values.items():
        like[key] = value
    return like


def _like_dataclass(nest: Any, values: dict[str, Any]) -> Any:
    """A copy with other values, also for frozen classes and fields that the constructor does not take."""
    like = copy.copy(nest)
    for name, value in values.items():
        object.__setattr__(like, name, value)
    return like


def leaves(nest: Any) -> Iterator[Any]:
    """Every leaf of `nest`, in order."""
    if not is_nest(nest):
        yield nest
    elif isinstance(nest, MutableMapping):
        for value in nest.values():
            yield from leaves(value)
    elif isinstance(nest, (tuple, list)):
        for value in nest:
            yield from leaves(value)
    else:
        for field in dataclasses.fields(nest):
            yield from leaves(getattr(nest, field.name))


def place(nest: Any, device: torch.device, non_blocking: bool = False) -> Any:
    """Return `nest` with its tensors on `device`. Nothing is copied that is there already."""
    if isinstance(nest, Tensor):
        return nest.to(device, non_blocking=non_blocking)
    if callable(to := getattr(nest, "to", None)):  # a packed sequence, a tokenizer's encoding, an object of the user's
        waits = not (non_blocking and _need_not_wait(type(nest)))  # type: ignore[arg-type]  # a class can be hashed
        return to(device) if waits else to(device, non_blocking=True)
    if is_nest(nest):
        return rebuild(nest, lambda child: place(child, device, non_blocking))
    return nest


@cache
def _need_not_wait(kind: type) -> bool:
    """Whether the ``to`` of such objects says that it takes ``non_blocking``."""
    if issubclass(kind, PackedSequence):  # whose takes anything, and hands it on to its tensors
        return True
    try:
        return "non_blocking" in inspect.signature(kind.to).parameters  # type: ignore[attr-defined]  # it has one
    except (AttributeError, TypeError, ValueError):  # an object that has it by itself, or does not tell
        return False


def _in_memory(leaf: Any) -> Any:
    """The tensors that hold what a tensor of another layout means."""
    if not isinstance(leaf, Tensor):
        return leaf
    if is_lazy(leaf):
        return "lazy"
    if leaf.is_nested:
        return list(leaf.unbind())
    if leaf.layout == torch.sparse_coo:
        whole = leaf.coalesce()
        return [whole.indices(), whole.values()]
    return leaf if leaf.layout == torch.strided else leaf.to_dense()


def fingerprint(nest: Any) -> str:
    """A hash of a batch's content; of objects other than tensors, arrays, numbers and strings only the type counts."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in (held for whole in leaves(nest) for held in leaves(_in_memory(whole))):
        if isinstance(leaf, Tensor):
            own = leaf.detach().cpu().clone(memory_format=torch.contiguous_format)
            content = own.flatten().view(torch.uint8).numpy().tobytes()
            digest.update(str(leaf.shape).encode() + content)
        elif isinstance(leaf, np.ndarray):
            digest.update(str(leaf.shape).encode() + leaf.tobytes())
        else:
            digest.update(repr(leaf if isinstance(leaf, (Real, str, bytes)) else type(leaf)).encode())
    return digest.hexdigest()


def is_scalar(value: Any) -> bool:
    """Whether `value` is a real number: Python's, numpy's, or a tensor without dimensions."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex()
    return isinstance(value, (Real, np.bool_))


def as_float(value: Any) -> float:
    """One number as a float; an integer that is too large for that is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def to_cpu(value: Any) -> Any:
    """Return a tensor on the CPU, without its graph; anything else as it is."""
    return value.detach().cpu() if isinstance(value, Tensor) else value


def snapshot(value: Any) -> Any:
    """Return a tensor as it is now, without its graph, since a logged graph is a leak; so it is with those in a nest.

    A scalar that no operation has just made may be a parameter or a view of one, which the next step changes: it is
    copied.
    """
    if not isinstance(value, Tensor):
        return map_nest(snapshot, value) if isinstance(value, (dict, list, tuple)) else value
    fresh = value.ndim or (value.grad_fn is not None and not value._is_view())
    return value.detach() if fresh else value.detach().clone()


def snapshots(values: dict[str, Any]) -> dict[str, Any]:
    """The `snapshot` of each value that a step returned."""
    found = {}
    for key, value in values.items():
        # The usual value, a loss that was just computed, without a call.
        if type(value) is Tensor and value.grad_fn is not None and not value._is_view():
            found[key] = value.detach()
        else:
            found[key] = snapshot(value)
    return found


def merge(results: list[dict[str, Any]], weights: list[Any]) -> dict[str, Any]:
    """Put the values of several micro-batches together as if one batch had returned them.

    Parameters
    ----------
    results : list of dict
        What the step returned for each micro-batch.
    weights : list of float or Tensor
        Items in each micro-batch.

    Returns
    -------
    dict
        Scalars are weighted means, tensors and lists are joined along dimension 0, ``"num_items"`` is summed;
        of anything else the last value stays.
    """
    if len(results) == 1:
        return results[0]
    keys = dict.fromkeys(key for result in results for key in result)
    return {key: _merge_key(key, [r[key] for r in results if key in r], weights) for key in keys}


def _merge_key(key: str, values: list[Any], weights: list[Any]) -> Any:
    if key == "num_items":
        return sum(values)
    if key == "loss":
        values = [v.reshape(()) if isinstance(v, Tensor) else v for v in values]
    if len(values) == len(weights) and all(map(is_scalar, values)):
        total = sum(weights)
        weighted = sum([v * w for v, w in zip(values, weights, strict=True)])
        plain = sum(values) / len(values)  # of parts without any item, which count for nothing
        if isinstance(total, Tensor):
            return torch.where(total == 0, plain, weighted / total)
        return weighted / total if total else plain
    return join(values)


def join(parts: list[Any]) -> Any:
    """Put the parts of one batch's output together again: tensors and lists along their first dimension.

    Of what cannot be joined, such as strings, the last value stays.

    Raises
    ------
    RuntimeError
        When tensors differ in more than their first dimension.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if all(isinstance(v, Tensor) and v.ndim for v in parts):
        return torch.cat(parts)
    if all(type(v) is list for v in parts):
        return [item for value in parts for item in value]
    if isinstance(first, MutableMapping):
        return _like_mapping(first, {key: join([part[key] for part in parts]) for key in first})
    if isinstance(first, tuple) and is_nest(first):
        items = [join(list(column)) for column in zip(*parts, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return parts[-1]
