"""The constructor's options as attributes: assigned later, they are checked and take effect, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accelerate.utils import DistributedType
from torch import nn

from . import checks
from .compose import Seams
from .console.values import check_show
from .processes.device import resolve_accumulation
from .records.metrics import Measures, check_metrics
from .step.shards import check_shards
from .step.update import NoUpdate

Check = Callable[[Any, Any], Any]  # of trainer and value; returns the value to keep


class Setting:
    """An option that the trainer has as an attribute.

    It has no ``__get__``, so that to read it is to read any attribute of the trainer.

    Parameters
    ----------
    check : callable, optional
        Gets the trainer and the value; returns what to keep, or raises.
    effect : callable, optional
        Gets the trainer and what was kept.
    """

    def __init__(self, check: Check | None = None, effect: Callable[[Any, Any], None] | None = None) -> None:
        self._check, self._effect, self.name = check, effect, ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __set__(self, trainer: Any, value: Any) -> None:
        own = vars(trainer)
        if not own.get("_made"):  # the constructors have checks of their own
            own[self.name] = value
            return
        before = own.get(self.name)
        own[self.name] = value if self._check is None else self._check(trainer, value)
        if self._effect is not None and (own[self.name] is not before or isinstance(before, dict)):
            self._effect(trainer, own[self.name])


class Fixed(Setting):
    """An option that is decided once, when the trainer is made."""

    def __set__(self, trainer: Any, value: Any) -> None:
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


def setting(check: Check | None = None, effect: Callable[[Any, Any], None] | None = None) -> Any:
    """A `Setting`, for type checkers that see an attribute."""
    return Setting(check, effect)


def fixed() -> Any:
    """A `Fixed`, for type checkers that see an attribute."""
    return Fixed()


def number(name: str, least: float, whole: bool = False) -> Check:
    """Accepts a number of at least `least`."""

    def check(trainer: Any, value: Any) -> Any:
        checks.check_number(name, value, least, whole)
        return value

    return check


def choice(name: str, *choices: str) -> Check:
    """Accepts one of some words."""

    def check(trainer: Any, value: Any) -> Any:
        checks.check_choice(name, value, choices)
        return value

    return check


# ---------------------------------------------------------------------- the trainer's


def _module(trainer: Any, model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        checks.check_parts(model, "test", None, None, False)
    return model  # type: ignore[no-any-return]  # checked


def _awaits_epoch(trainer: Any, _: Any) -> None:
    """What was prepared is of another one, until an epoch or a run begins, or it is put back."""
    if trainer._prepared_for == (trainer.model, trainer.optimizer):
        trainer._make_update()
        return
    trainer._update = NoUpdate(
        "another model or optimizer was assigned in the middle of an epoch; assign it before run(), or in run_epoch"
        " before super().run_epoch(...), where the trainer prepares it"
    )


def _clip(trainer: Any, norm: Any) -> Any:
    checks.check_number("gradient_clip", norm, 0)
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED and norm != trainer.gradient_clip:
        raise AttributeError(
            f"gradient_clip={norm!r} cannot be assigned under DeepSpeed, whose engine is told when the trainer is made;"
            f" write {type(trainer).__name__}(..., gradient_clip={norm!r})"
        )
    return norm


def _clip_now(trainer: Any, norm: float) -> None:
    trainer._update.max_norm = norm


def _micro_batches(trainer: Any, count: Any) -> int:
    count = resolve_accumulation(count)
    check_shards(trainer.shards, count, trainer.split_batches)
    return int(count)


def _lay_out(trainer: Any, count: int) -> None:
    trainer._layout = replace(trainer._layout, micro_batches=count)


def _seed(trainer: Any, seed: Any) -> int:
    checks.check_number("seed", seed, 0, whole=True)
    return int(seed)


def _seed_now(trainer: Any, seed: int) -> None:
    trainer.seed_was_given = True
    if trainer._update.shards is not None:
        trainer._update.shards.seed = seed


def _watch(trainer: Any, on_nan: str) -> None:
    for log in (trainer.log_train, trainer.log_test):
        log.watch = on_nan == "stop"


def _show(trainer: Any, show: Any) -> tuple[str, ...] | None:
    return check_show(show)


def _metrics(trainer: Any, metrics: Any) -> dict[str, Any]:
    found, routes = check_metrics(metrics)
    known = {name for name, metric in found.items() if metrics[name] is trainer.metrics.get(name)}
    trainer._routes = {name: trainer._routes[name] if name in known else route for name, route in routes.items()}
    return found


def _measure(trainer: Any, metrics: dict[str, Any]) -> None:
    trainer._watch_for(lambda monitor: monitor.measure(metrics))
    for mode in checks.MODES:
        trainer._measures[mode].exchange(Measures(metrics, trainer._routes, trainer.device, trainer._processes))


class Settings(Seams):
    """What of the trainer's options can be assigned later, and what cannot."""

    model: nn.Module = setting(_module, _awaits_epoch)
    optimizer: Any = setting(effect=_awaits_epoch)
    mode: str = setting(choice("mode", *checks.MODES))
    gradient_clip: float = setting(_clip, _clip_now)
    gradient_accumulation_steps: int = setting(_micro_batches, _lay_out)
    seed: int = setting(_seed, _seed_now)
    on_nan: str = setting(choice("on_nan", "warn", "stop"), _watch)
    show: tuple[str, ...] | None = setting(_show)
    metrics: dict[str, Any] = setting(_metrics, _measure)
    device: Any = fixed()
    mixed_precision: str = fixed()
    split_batches: bool = fixed()
    seeded_samples: bool = fixed()
    shards: int | None = fixed()
    sync_batchnorm: bool = fixed()
    kwargs_handlers: Any = fixed()
    max_wait: float | None = fixed()
    _made = False  # whether the constructor is done

    def _decide(self, **values: Any) -> None:
        """Set what the trainer itself decides, or has loaded."""
        vars(self).update(values)
