"""Several optimizers, and their schedulers, as one: stepped together, or one of them at a step, by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_PART = "optimizer"  # in a group: of which optimizer it is
State = dict[str, Any]


class Optimizers(Optimizer):
    """Several optimizers over different parameters, as one optimizer.

    Its groups are those of all, so that learning rates, checkpoints and whatever else asks an optimizer for its groups
    sees each of them; their dicts are the parts' own. A group without a name is called as its optimizer is.

    Parameters
    ----------
    parts : mapping of str to Optimizer, or sequence of Optimizer
        Those that have names can be stepped one at a time.

    Attributes
    ----------
    parts : dict of str to Optimizer
    named : bool
        Whether they were given by name.
    chosen : str or None
        The only one that is stepped; None steps all.

    Examples
    --------
    >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> both = Optimizers({"a": torch.optim.SGD(a.parameters(), lr=0.1), "b": torch.optim.Adam(b.parameters())})
    >>> [(group["name"], group["lr"]) for group in both.param_groups]
    [('a', 0.1), ('b', 0.001)]
    """

    def __init__(self, parts: Mapping[str, Optimizer] | Sequence[Optimizer]) -> None:
        # Not torch's own, whose groups and hooks are of one optimizer.
        self.named = isinstance(parts, Mapping)
        given = parts.items() if isinstance(parts, Mapping) else ((str(n), part) for n, part in enumerate(parts))
        self.parts, self.defaults = dict(given), State()
        self.chosen: str | None = None

    def __getitem__(self, name: str) -> Optimizer:
        return self.parts[name]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.parts!r})"

    def __getstate__(self) -> State:
        return dict(vars(self))

    def __setstate__(self, state: State) -> None:
        vars(self).update(state)

    @property
    def param_groups(self) -> list[State]:  # type: ignore[override]  # torch's is an attribute
        """The groups of all, each with its optimizer's name; to add one, ask its optimizer."""
        found = []
        for name, part in self.parts.items():
            for number, group in enumerate(part.param_groups):
                if group.get(_PART) != name:
                    group[_PART] = name
                    group.setdefault("name", name if len(part.param_groups) == 1 else f"{name}/{number}")
                found.append(group)
        return found

    @property
    def state(self) -> dict[Tensor, Any]:  # type: ignore[override]
        """The states of all, by parameter."""
        return {parameter: state for part in self.parts.values() for parameter, state in part.state.items()}

    def choose(self, names: Sequence[Any]) -> str | None:
        """Have that one stepped next which all of `names` are; all of them, when there is none."""
        found = set(names) or {None}
        if len(found) > 1:
            words = " and ".join(sorted(repr(name) for name in found))
            raise ValueError(
                f"train_step named the optimizers {words} for parts of one batch; name one a step, by its number:"
                " self.turn('d', 'g')"
            )
        (name,) = found
        if name is not None and (not self.named or name not in self.parts):
            how = (
                f"one of {', '.join(map(repr, self.parts))}" if self.named else "none, since they were given as a list"
            )
            raise ValueError(f"train_step returned 'optimizer': {name!r}; name {how}")
        self.chosen = name
        return self.chosen

    def held(self) -> list[Tensor]:
        """The parameters of those that are stepped next."""
        parts = self.parts.values() if self.chosen is None else [self.parts[self.chosen]]
        return [parameter for part in parts for group in part.param_groups for parameter in group["params"]]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step the one that is chosen, or all."""
        for part in self.parts.values() if self.chosen is None else [self.parts[self.chosen]]:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def add_param_group(self, param_group: State) -> None:
        """Add a group to the optimizer that it names: ``{"params": [...], "optimizer": "g"}``."""
        name = param_group.get(_PART)
        if name not in self.parts:
            raise ValueError(
                f"of {', '.join(map(repr, self.parts))}, a group's optimizer= has to name one; or add it to that one:"
                f" trainer.optimizer[{next(iter(self.parts))!r}].add_param_group(...)"
            )
        self.parts[name].add_param_group({k: v for k, v in param_group.items() if k != _PART})

    def state_dict(self) -> State:
        """The state of all as that of one optimizer: numbers go on from one part to the next."""
        _ = self.param_groups  # gives names to new ones
        states, groups, first = State(), list[State](), 0
        for part in self.parts.values():
            own = part.state_dict()
            states |= {_moved(key, first): state for key, state in own["state"].items()}
            groups += [group | {"params": [n + first for n in group["params"]]} for group in own["param_groups"]]
            first += sum(len(group["params"]) for group in own["param_groups"])
        return {"state": states, "param_groups": groups}

    def load_state_dict(self, state_dict: State) -> None:
        """Take back what `state_dict` gave."""
        groups = state_dict["param_groups"]
        if [group.get(_PART) for group in groups] != [group[_PART] for group in self.param_groups]:
            then = dict.fromkeys(str(group.get(_PART)) for group in groups)
            raise ValueError(f"the state is of the optimizers {', '.join(then)}; these are {', '.join(self.parts)}")
        for name, part in self.parts.items():
            own = [group for group in groups if group[_PART] == name]
            numbers = [n for group in own for n in group["params"]]
            first = numbers[0] if numbers else 0
            there = set(numbers)
            states = {_moved(key, -first): state for key, state in state_dict["state"].items()
                      if not isinstance(key, int) or key in there}  # fmt: skip
            own = [group | {"params": [n - first for n in group["params"]]} for group in own]
            part.load_state_dict({"state": states, "param_groups": own})


def _moved(key: Any, by: int) -> Any:
    return key + by if isinstance(key, int) else key


class Schedulers:
    """The schedulers of several optimizers as one.

    Parameters
    ----------
    parts : mapping of str to scheduler
        By the names of their optimizers.
    optimizer : Optimizers
    """

    def __init__(self, parts: Mapping[str, Any], optimizer: Optimizers) -> None:
        self.parts, self.optimizer = dict(parts), optimizer

    def __getitem__(self, name: str) -> Any:
        return self.parts[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts.values())

    def step(self) -> None:
        """Step those whose optimizers have just been stepped."""
        chosen = self.optimizer.chosen
        for name, part in self.parts.items():
            if chosen in (None, name):
                part.step()

    def state_dict(self) -> State:
        """The states by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        if state.keys() != self.parts.keys():
            raise ValueError(f"the state is of the schedulers {', '.join(state)}; these are {', '.join(self.parts)}")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def as_one(optimizer: Any) -> Any:
    """Several optimizers as one; anything else as it is."""
    several = isinstance(optimizer, (Mapping, list, tuple)) and len(optimizer) > 0
    return Optimizers(optimizer) if several and _all_optimizers(optimizer) else optimizer


def _all_optimizers(given: Any) -> bool:
    parts = given.values() if isinstance(given, Mapping) else given
    return all(isinstance(part, Optimizer) and not isinstance(part, Optimizers) for part in parts)


def schedulers_as_one(scheduler: Any, optimizer: Any) -> Any:
    """Schedulers of several optimizers as one; anything else as it is."""
    if not isinstance(optimizer, Optimizers) or not isinstance(scheduler, (Mapping, list, tuple)):
        return scheduler
    by_name = scheduler if isinstance(scheduler, Mapping) else dict(zip(optimizer.parts, scheduler, strict=False))
    kept = {str(name): part for name, part in by_name.items() if part is not None}
    fits = len(by_name) == len(scheduler) and kept.keys() <= optimizer.parts.keys()
    if not fits:
        raise ValueError(
            f"scheduler={shown(scheduler)} does not fit the optimizers {', '.join(map(repr, optimizer.parts))}; give"
            " each its own by the optimizer's name, or None"
        )
    return Schedulers(kept, optimizer) if kept else None


def shown(several: Any) -> str:
    """Classes by name."""
    if isinstance(several, Mapping):
        return "{" + ", ".join(f"{name!r}: {type(part).__name__}" for name, part in several.items()) + "}"
    return "[" + ", ".join(type(part).__name__ for part in several) + "]"


def is_named(optimizer: Any) -> bool:
    """Whether a step may be for one of several optimizers, and so give the others' parameters no gradients."""
    return isinstance(optimizer, Optimizers) and optimizer.named


def optimizers_of(optimizer: Any) -> dict[str, Any]:
    """The optimizers that one is, by name; of a single one the name is empty."""
    inner = getattr(optimizer, "optimizer", optimizer)  # of one that Accelerate has prepared
    return inner.parts if isinstance(inner, Optimizers) else {"": inner}


def schedulers_of(scheduler: Any) -> dict[str, Any]:
    """The schedulers that one is, by the names of their optimizers."""
    return scheduler.parts if isinstance(scheduler, Schedulers) else {"": scheduler}
