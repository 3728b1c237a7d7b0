"""Which submodules train: each keeps the mode that the user has given it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from weakref import ref

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from ...checkpoint.parameter_names import own_name


class Modes:
    """Puts a model into train mode, but for the submodules that the user has put into ``eval()``.

    What stands in ``eval()`` at the start of an epoch is the user's choice, unless all of it does (a whole model that
    comes so from a hub, or was put so to sample from it, is trained as a whole), or its own ``train()`` left it so.

    Attributes
    ----------
    root : bool
        The mode of the model itself during training.
    """

    def __init__(self) -> None:
        self.root = True
        self._model: ref[nn.Module] | None = None
        self._chosen: frozenset[str] = frozenset()
        self._left: frozenset[str] = frozenset()
        self._said: set[str] = set()

    def train(self, model: nn.Module) -> None:
        """Begin (or go on) to train."""
        self.choose(model, self.chosen(model))

    def chosen(self, model: nn.Module) -> list[str]:
        """The names of the submodules that stay in ``eval()`` by the user's choice; the model's own is ''."""
        known = self._model is not None and self._model() is model
        names = dict(model.named_modules())
        still = [name for name, module in names.items() if not module.training]
        if len(still) == len(names):
            return [name for name in still if known and name in self._chosen]
        return [name for name in still if not (known and name in self._left)]

    def in_words(self, model: nn.Module) -> str | None:
        """The submodules that stay in ``eval()``, by the user's choice and not by the model's own ``train()``."""
        chosen = set(self.chosen(model))
        if not chosen:
            return None
        before = [(module, module.training) for module in model.modules()]
        model.train()
        still = {module for name, module in model.named_modules() if name in chosen and module.training}
        for module, training in before:
            module.training = training
        return ", ".join(_whole_ones(model, still)) or None

    def choose(self, model: nn.Module, names: Iterable[str]) -> None:
        """Train with these in ``eval()``; names that are not there are passed over."""
        self._model, self._chosen = ref(model), frozenset(names)
        model.train()
        self._left = frozenset(name for name, module in model.named_modules() if not module.training)
        for name, module in model.named_modules():
            if name in self._chosen:
                module.training = False  # not eval(), which would reach submodules that train
        self.root = model.training

    def news(self, model: nn.Module) -> Iterator[str]:
        """What the user may not have meant; each submodule is named once."""
        moving = [name for name, part in _topmost(model, _is_frozen) if any(map(_moves, part.modules()))]
        if new := self._unsaid(moving):
            yield (
                f"{_listed(new)} is frozen, but the running statistics of its BatchNorm layers move with every batch,"
                f" since it is in train mode; write {_spelt(new[0])}.eval() before run() to keep them: each submodule"
                " keeps the mode that you give it"
            )
        still = {module for name, module in model.named_modules() if name in self._chosen}
        resting = [name for name, part in _topmost(model, still.__contains__) if _is_trained_container(part)]
        if new := self._unsaid(resting):
            yield (
                f"{_listed(new)} is trained, but stays in eval() as it was given, so its Dropout and BatchNorm layers"
                f" work as in an evaluation; write {_spelt(new[0])}.train() before run() if that is not meant"
            )

    def _unsaid(self, names: list[str]) -> list[str]:
        new = [name for name in names if name not in self._said]
        self._said.update(new)
        return new


def _whole_ones(module: nn.Module, chosen: set[nn.Module], name: str = "") -> Iterator[str]:
    """Names for all of the chosen ones: of a part that is among them with all that is in it, the part's own."""
    inside = set(module.modules())
    if inside <= chosen:
        yield own_name(name)
        return
    if module in chosen:
        yield f"{own_name(name) or 'the model'} (itself)"
    for child_name, child in module.named_children() if inside & chosen else ():
        yield from _whole_ones(child, chosen, f"{name}.{child_name}".strip("."))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" (and {len(names) - 3} more)" if len(names) > 3 else "")


def _spelt(name: str) -> str:
    """How a submodule is written in a program."""
    return "model" + "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in name.split("."))


def _moves(module: nn.Module) -> bool:
    return isinstance(module, _NormBase) and module.training and module.running_mean is not None


def _is_trained_container(module: nn.Module) -> bool:
    """Whether it matters that it is in eval(); of a single layer it is surely meant."""
    parts = [part for part in module.modules() if part is not module]
    trained = any(p.requires_grad for p in module.parameters())
    return trained and any(isinstance(part, (_DropoutNd, _NormBase)) for part in parts)


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _topmost(model: nn.Module, test: Callable[[nn.Module], bool], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The submodules that pass a test, without those inside of such; the model itself is none."""
    for child_name, child in model.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if test(child):
            yield full, child
        else:
            yield from _topmost(child, test, full)
