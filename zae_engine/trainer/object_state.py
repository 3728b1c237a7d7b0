"""What a user's objects hold by themselves (counters, buffers, generators): found by walking from one to the next."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import random
import re
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .nested_values import fingerprint

_DEEPEST, _MOST, _ENTRIES, _NUMBERS = 8, 20_000, 100, 65_536
_FOREIGN = ("accelerate", "zae_engine", "tqdm", "logging", "threading", "multiprocessing", "concurrent", "weakref")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, np.generic, itertools.count)
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_OF_ANY_MODULE = frozenset(vars(nn.Module()))
_SHOWN = 60


class Root(NamedTuple):
    """Where a walk begins: what is held by it, in words, the object, and attributes to leave out."""

    kind: str
    held: Any
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class State:
    """The state of one thing that was found.

    Attributes
    ----------
    kind : str
        The root's.
    form : {'generator', 'tensor', 'value'}
        What it is.
    mark : str
        Equal for equal states.
    shown : str
        The state in words; empty where these would be too many.
    """

    kind: str
    form: str
    mark: str
    shown: str


def states_of(roots: Mapping[str, Root]) -> dict[str, State]:
    """The states of all that can be reached from `roots`, by path; the walk ends at 8 levels, or 20,000 things."""
    return {path: _state(kind, leaf) for path, kind, leaf in _walk(roots)}


def shake(roots: Mapping[str, Root]) -> None:
    """Seed anew, by chance, the generators that can be reached, but those that show that they were given a seed."""
    for _, _, leaf in _walk(roots):
        if isinstance(leaf, np.random.Generator):
            if _by_chance(leaf):
                leaf.bit_generator.state = type(leaf.bit_generator)().state
        elif isinstance(leaf, torch.Generator):
            if _by_chance(leaf):
                leaf.seed()
        elif isinstance(leaf, (np.random.RandomState, random.Random)):  # which do not tell
            leaf.seed()


class Generators:
    """The generators that can be reached from an object; inside ``with`` they may be used, and are put back."""

    def __init__(self, thing: Any) -> None:
        found = (leaf for _, _, leaf in _walk({"": Root("", thing)}) if isinstance(leaf, _GENERATORS))
        self._held = [g for g in found if not isinstance(g, random.SystemRandom)]
        self._before: list[Any] = []

    def __enter__(self) -> None:
        self._before = [copy.deepcopy(_position(generator)) for generator in self._held]

    def moved(self) -> bool:
        """Whether one of them has given something."""
        now = (fingerprint(_position(generator)) for generator in self._held)
        return any(fingerprint(then) != mark for then, mark in zip(self._before, now, strict=True))

    def __exit__(self, *exception: object) -> None:
        for generator, state in zip(self._held, self._before, strict=True):
            if isinstance(generator, np.random.Generator):
                generator.bit_generator.state = state
            elif isinstance(generator, (torch.Generator, np.random.RandomState)):
                generator.set_state(state)
            else:
                generator.setstate(state)


def trained_tensors(roots: Mapping[str, Root]) -> list[tuple[str, Tensor]]:
    """What can be trained of all that can be reached, by path; a parameter that is frozen now may be so for a while."""
    found = ((path, leaf) for path, _, leaf in _walk(roots) if isinstance(leaf, Tensor))
    return [
        (path, leaf) for path, leaf in found if isinstance(leaf, nn.Parameter) or (leaf.requires_grad and leaf.is_leaf)
    ]


def owned_by(cls: type, package: str) -> frozenset[str]:
    """The attributes that the classes of a package, among the bases of `cls`, use on themselves."""
    bases = (base for base in cls.__mro__ if base.__module__.partition(".")[0] == package)
    return frozenset[str]().union(*map(_used_by, bases))


@functools.cache
def _used_by(cls: type) -> frozenset[str]:
    try:
        return frozenset(re.findall(r"\bself\.(\w+)", inspect.getsource(cls)))
    except (OSError, TypeError):  # there is no source
        return frozenset()


def _by_chance(generator: Any) -> bool:
    """Whether a generator was seeded from the system: its seed is larger than one that somebody writes down."""
    if isinstance(generator, torch.Generator):
        seed = generator.initial_seed()
        return seed >= 1 << 32 and seed != torch.Generator().initial_seed()
    entropy = getattr(generator.bit_generator.seed_seq, "entropy", None)
    return isinstance(entropy, int) and entropy >= 1 << 64


# ---------------------------------------------------------------------- the walk


def _walk(roots: Mapping[str, Root]) -> Iterator[tuple[str, str, Any]]:
    """Path, kind of root and leaf, each object once, those nearest to the roots first."""
    queue = deque((path, root.kind, root.held, root.without, 0) for path, root in roots.items())
    seen, count = dict[int, Any](), 0
    while queue and count < _MOST:
        path, kind, thing, without, depth = queue.popleft()
        if isinstance(thing, _PLAIN + _GENERATORS + (Tensor, np.ndarray)):
            if isinstance(thing, _PLAIN) or id(thing) not in seen:
                count += 1
                yield path, kind, thing
        elif id(thing) not in seen and depth < _DEEPEST and not _is_foreign(thing):
            for name, child in _children(path, thing, without):
                queue.append((name, kind, child, frozenset(), depth + 1))
        seen[id(thing)] = thing  # kept, so that nothing else gets its id meanwhile


def _is_foreign(thing: Any) -> bool:
    cls = type(thing)
    return (
        isinstance(thing, (types.ModuleType, types.BuiltinFunctionType, type))
        or cls.__module__.partition(".")[0] in _FOREIGN
    )


def _children(path: str, thing: Any, without: frozenset[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, Mapping):
        yield f"len({path})", len(thing)
        yield from ((f"{path}[{key!r}]", value) for key, value in itertools.islice(thing.items(), _ENTRIES))
    elif isinstance(thing, (list, tuple, deque)):
        yield f"len({path})", len(thing)
        yield from ((f"{path}[{i}]", value) for i, value in enumerate(itertools.islice(thing, _ENTRIES)))
    elif isinstance(thing, (set, frozenset)):
        yield f"len({path})", len(thing)
    elif isinstance(thing, types.MethodType):
        yield path, thing.__self__
        yield path, thing.__func__
    elif isinstance(thing, types.FunctionType):
        yield from _around(path, thing)
    elif isinstance(thing, functools.partial):
        yield from ((f"{path}.{name}", getattr(thing, name)) for name in ("func", "args", "keywords"))
    else:
        yield from _attributes(path, thing, without)


def _attributes(path: str, thing: Any, without: frozenset[str]) -> Iterator[tuple[str, Any]]:
    own = dict(getattr(thing, "__dict__", {}))
    if isinstance(thing, nn.Module):
        for held in (thing._buffers, thing._parameters, thing._modules):
            yield from ((f"{path}.{name}", value) for name, value in held.items())
        without = _OF_ANY_MODULE
    elif isinstance(thing, Optimizer):
        without = frozenset(name for name in own if name.startswith("_")) | {"state", "param_groups", "defaults"}
    yield from ((f"{path}.{name}", value) for name, value in own.items() if name not in without)
    for cls in type(thing).__mro__:
        if _is_users(cls):
            yield from _of_class(cls)


def _of_class(cls: type) -> Iterator[tuple[str, Any]]:
    """What a user's class holds for all of its objects, and what its methods use from around them."""
    for name, value in vars(cls).items():
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        if isinstance(value, types.FunctionType):
            yield from _around(f"{cls.__name__}.{name}", value)
        elif not name.startswith("__") and not name.startswith("_abc"):
            yield f"{cls.__name__}.{name}", value


def _around(path: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The variables that a user's function takes from around it."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        if name != "__class__" and cell != types.CellType():
            yield f"{name} in {path}", cell.cell_contents
    if _is_users(function):
        around = function.__globals__
        yield from ((name, around[name]) for name in sorted(_names(code)) if name in around)


def _names(code: types.CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _is_users(thing: Any) -> bool:
    """Whether a class or a function is neither Python's nor a package's."""
    name = thing.__module__ or ""
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    top = name.partition(".")[0]
    return top not in (*sys.stdlib_module_names, *_FOREIGN) and not re.search(r"[\\/](site|dist)-packages[\\/]", file)


# ---------------------------------------------------------------------- one thing


def _state(kind: str, leaf: Any) -> State:
    if isinstance(leaf, _GENERATORS):
        return State(kind, "generator", fingerprint(_position(leaf)), "")
    if isinstance(leaf, Tensor) and is_lazy(leaf):
        return State(kind, "tensor", "lazy", "")
    if isinstance(leaf, (Tensor, np.ndarray)):
        shown = "" if leaf.ndim else repr(leaf.tolist())[:_SHOWN]
        return State(kind, "tensor", f"{tuple(leaf.shape)} {leaf.dtype} {_content(leaf)}", shown)
    text = repr(leaf)
    return State(kind, "value", text if len(text) < 1000 else fingerprint(text), text if len(text) < _SHOWN else "")


def _content(array: Any) -> str:
    """A hash of an array, of a large one of evenly spaced entries only."""
    try:
        flat = array.detach().reshape(-1) if isinstance(array, Tensor) else array.reshape(-1)
        return fingerprint(flat[:: max(1, len(flat) // _NUMBERS)])
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # sparse, lazy, quantised, of objects
        return ""


def _position(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    try:
        return generator.getstate()
    except NotImplementedError:  # the system's own
        return None
