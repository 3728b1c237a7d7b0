"""Which parameters are trained, and in which groups of the optimizer: noted, compared, and put back by their names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..processes.agreement import refuse_different
from ..processes.group import Processes
from ..several_optimizers import optimizers_of

Plain = Mapping[str, Any]
_SHOWN = 3  # names in a sentence


class Trained:
    """What of a model is trained at one moment; the parameters are held, so that no other ones get their place.

    Parameters
    ----------
    model : nn.Module
    optimizer : Optimizer or None

    Attributes
    ----------
    groups : list of list of str
        The parameters' names in each group of the optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self._parameters = [(name, p, p.requires_grad) for name, p in parameters_of(model)]
        names = {id(p): name for name, p, _ in self._parameters}
        held = optimizer.param_groups if optimizer is not None else []
        self.groups = [[names.get(id(p), f"#{n}") for n, p in enumerate(group["params"])] for group in held]

    def plain(self) -> dict[str, Any]:
        """The same as plain values, for a checkpoint."""
        return {"requires_grad": {name: trained for name, _, trained in self._parameters}, "groups": self.groups}

    def same_as(self, other: Trained) -> bool:
        """Whether the same parameters are trained, in the same groups."""
        mine, others = ([(id(p), trained) for _, p, trained in each._parameters] for each in (self, other))
        return mine == others and self.groups == other.groups

    def begun_since(self, before: Trained) -> list[str]:
        """The names of those that are trained, and were not before."""
        then = {id(p) for _, p, trained in before._parameters if trained}
        return [name for name, p, trained in self._parameters if trained and id(p) not in then]

    def new_since(self, before: Trained) -> list[nn.Parameter]:
        """Parameters that the model did not have before."""
        then = {id(p) for _, p, _ in before._parameters}
        return [p for _, p, _ in self._parameters if id(p) not in then]

    def agreed(self, processes: Processes, change: int) -> int:
        """The largest change that any process sees; refuse processes that train different parameters."""
        if processes.count == 1:
            return change
        mark = int.from_bytes(hashlib.sha256(repr(self.plain()).encode()).digest()[:6], "big")  # exact in a float64
        everyone = processes.stack(processes.numbers([change, mark])[None]).tolist()
        if any(other != everyone[0][1] for _, other in everyone):
            told = {f"whether {name!r} is trained": trained for name, _, trained in self._parameters}
            groups = {f"group {n} of the optimizer": names for n, names in enumerate(self.groups)}
            refuse_different(processes, {**told, **groups})
        return int(max(one for one, _ in everyone))


def parameters_of(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters by the names that they have when nothing is compiled."""
    return [(name.replace("_orig_mod.", ""), p) for name, p in model.named_parameters()]


def in_words(names: list[str]) -> str:
    """Some parameters' names, and how many more there are."""
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def put_trained(
    model: nn.Module, optimizer: Optimizer, saved: Plain, then: Plain, first: Plain, options: Any = None
) -> None:
    """Let the parameters be trained, and lie in groups, as it was noted, where that came about in the run.

    What was another from the start stays as it is: a script that freezes something else has its way.

    Parameters
    ----------
    model, optimizer
    saved : mapping
        What `Trained.plain` gave when it was saved.
    then, first : mapping
        What it gave when the trainer was made, that one and this one.
    options : list of dict, optional
        The groups' options, for those that have to be made: ``optimizer.state_dict()["param_groups"]``.
    """
    parameters = dict(parameters_of(model))
    if any(name not in parameters for name in saved["requires_grad"]):
        return  # it is another model, which whoever compares the weights can say better
    theirs, own = then.get("requires_grad", {}), first.get("requires_grad", {})
    for name, trained in saved["requires_grad"].items():
        parameter = parameters[name]
        if theirs.get(name) == own.get(name) and parameter.requires_grad != trained:
            parameter.requires_grad = trained  # the attribute, which a lazy one has, too
    known = all(name in parameters for names in saved["groups"] for name in names)
    if known and then.get("groups") == first.get("groups") and Trained(model, optimizer).groups != saved["groups"]:
        groups = [[parameters[name] for name in names] for names in saved["groups"]]
        for name, part in optimizers_of(optimizer).items():
            mine = [n for n in range(len(groups)) if not name or (options and options[n].get("optimizer") == name)]
            _put_groups(part, [groups[n] for n in mine], options and [options[n] for n in mine])


def _put_groups(optimizer: Optimizer, groups: list[list[nn.Parameter]], options: Any) -> None:
    there = optimizer.param_groups
    kept = {id(parameter) for parameters in groups for parameter in parameters}
    for group in there[len(groups) :]:
        for parameter in group["params"]:
            if id(parameter) not in kept:  # it may have come out of another group
                optimizer.state.pop(parameter, None)
    del there[len(groups) :]
    # All of the old ones first: a parameter may have gone from one to another.
    for number, (group, parameters) in enumerate(zip(there, groups, strict=False)):
        group["params"] = list(parameters)
        if options and "param_names" in options[number]:
            group["param_names"] = list(options[number]["param_names"])
    for number in range(len(there), len(groups)):
        own = dict(options[number]) if options and number < len(options) else {}
        names = own.pop("param_names", None)
        held: list[Any] = list(zip(names, groups[number], strict=True)) if names else list(groups[number])
        optimizer.add_param_group({**own, "params": held})
