"""The constructor's options as attributes: assigned later, they are checked and take effect, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from accelerate.utils import DistributedType
from torch import nn

from . import refusals
from .compose import Seams
from .console.values import check_show
from .interface import Face
from .processes.device import resolve_accumulation
from .several_optimizers import as_one, schedulers_as_one
from .step.fixed_shards import check_shards

Check = Callable[[Any, Any], Any]  # of trainer and value; returns the value to keep


class Setting:
    """An option that the trainer has as an attribute.

    It has no ``__get__``, so that to read it is to read any attribute of the trainer.

    Parameters
    ----------
    check : callable or str, optional
        Gets the trainer and the value; returns what to keep, or raises. A string names a method of a part of the
        trainer: ``'_recorder.measure_by'``.
    effect : str
        The method of a part that is told, and gets the trainer; empty for none.
    """

    def __init__(self, check: Check | str | None = None, effect: str = "") -> None:
        self._check, self._effect, self.name = check, effect, ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __set__(self, trainer: Seams, value: Any) -> None:
        own = vars(trainer)
        if not own.get("_made"):  # the constructors have checks of their own
            own[self.name] = value
            return
        before, check = own.get(self.name), self._check
        if isinstance(check, str):
            check = attrgetter(check)(trainer)
        own[self.name] = value if check is None else check(trainer, value)
        if self._effect and own[self.name] is not before:
            attrgetter(self._effect)(trainer)(trainer)


class Fixed(Setting):
    """An option that is decided once, when the trainer is made."""

    def __set__(self, trainer: Seams, value: Any) -> None:
        own = vars(trainer)
        if own.get("_made") and self.name in own:  # an add-on sets its own after the trainer is made
            if value is own[self.name] or str(value) == str(own[self.name]):
                return
            kind = type(trainer).__name__
            raise AttributeError(
                f"{self.name}={value!r} cannot be assigned, since {self.name} is decided when the trainer is made;"
                f" write {kind}(..., {self.name}={value!r})"
            )
        own[self.name] = value


def setting(check: Check | str | None = None, effect: str = "") -> Any:
    """A `Setting`, for type checkers that see an attribute."""
    return Setting(check, effect)


def fixed() -> Any:
    """A `Fixed`, for type checkers that see an attribute."""
    return Fixed()


def of_part(path: str, settable: bool = True) -> Any:
    """An attribute that a part of the trainer has: ``'_recorder.history'``; to read it costs no call in Python."""

    def put(trainer: Seams, value: Any) -> None:
        setattr(attrgetter(part)(trainer), name, value)

    part, _, name = path.rpartition(".")
    return property(attrgetter(path), put if settable else None)


# ---------------------------------------------------------------------- checks of single options


def number(name: str, least: float, whole: bool = False) -> Check:
    """Accepts a number of at least `least`."""

    def check(trainer: Seams, value: Any) -> Any:
        refusals.check_number(name, value, least, whole)
        return value

    return check


def choice(name: str, *choices: str) -> Check:
    """Accepts one of some words."""

    def check(trainer: Seams, value: Any) -> Any:
        refusals.check_choice(name, value, choices)
        return value

    return check


def module(trainer: Face, model: Any) -> nn.Module:
    """Accepts a module."""
    if not isinstance(model, nn.Module):
        refusals.check_parts(model, "test", None, None, False)
    return model  # type: ignore[no-any-return]  # checked


def optimizer(trainer: Face, given: Any) -> Any:
    """Accepts an optimizer, or several."""
    return as_one(given)


def scheduler(trainer: Face, given: Any) -> Any:
    """Accepts a scheduler, or one for each of several optimizers."""
    return schedulers_as_one(given, trainer.optimizer)


def clip(trainer: Face, norm: Any) -> float:
    """Accepts a norm to clip to, where it can still be changed."""
    refusals.check_number("gradient_clip", norm, 0)
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED and norm != trainer.gradient_clip:
        raise AttributeError(
            f"gradient_clip={norm!r} cannot be assigned under DeepSpeed, whose engine is told when the trainer is made;"
            f" write {type(trainer).__name__}(..., gradient_clip={norm!r})"
        )
    return norm  # type: ignore[no-any-return]  # checked


def micro_batches(trainer: Face, count: Any) -> int:
    """Accepts a number of micro-batches."""
    count = resolve_accumulation(count)
    check_shards(trainer.shards, count, trainer.split_batches)
    return int(count)


def seed(trainer: Face, given: Any) -> int:
    """Accepts a seed."""
    return refusals.check_seed(given)


def shown(trainer: Face, show: Any) -> tuple[str, ...] | None:
    """Accepts the names of values to be shown."""
    return check_show(show)
