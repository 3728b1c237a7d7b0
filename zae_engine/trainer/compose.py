"""Stacking add-ons onto a trainer class: the seams, the checks, and pickling. Knows no torch."""

from __future__ import annotations

import copyreg
import inspect
from abc import ABCMeta
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..suggestions import nearest
from . import hints

if TYPE_CHECKING:
    from typing_extensions import Self

C = TypeVar("C", bound="Seams")


def add_ons_of(cls: type) -> tuple[type, ...]:
    """The add-ons in `cls`, innermost first."""
    recorded: tuple[type, ...] = getattr(cls, "_add_ons", ())
    mixed_in = [c for c in reversed(cls.__mro__) if _is_add_on(c)]
    return tuple(dict.fromkeys((*recorded, *mixed_in)))


def _is_add_on(cls: type) -> bool:
    """An add-on is a mixin; a trainer with add-ons mixed in is a trainer."""
    return issubclass(cls, AddOnBase) and cls is not AddOnBase and not hasattr(cls, "add_on")


def _refuse_repeated(base: type, add_on: type) -> None:
    if add_on in add_ons_of(base):
        raise TypeError(f"{add_on.__name__} is in {base.__name__} already; name each add-on once in add_on(...)")


def check_stack(cls: type) -> None:
    """Refuse a stack whose order cannot work, whether it comes from `compose` or from a class statement.

    Raises
    ------
    TypeError
        When an add-on stands behind the trainer that it should wrap, or before one that it requires.
    """
    if not hasattr(cls, "add_on"):
        return
    mro = cls.__mro__
    for add_on in filter(_is_add_on, mro):
        if not _wraps(add_on, mro):
            trainer = next(c for c in mro[1:] if hasattr(c, "add_on"))
            raise TypeError(
                f"in {cls.__name__}, {add_on.__name__} stands behind {trainer.__name__} and would never be called;"
                f" write class {cls.__name__}({add_on.__name__}, {trainer.__name__})"
            )
    present = add_ons_of(cls)
    for position, add_on in enumerate(present):
        for needed in getattr(add_on, "requires", ()):
            _check_requirement(cls, add_on, needed, present, position)


def _wraps(add_on: type, mro: tuple[type, ...]) -> bool:
    """Whether some trainer class stands behind `add_on`, so that its ``super()`` reaches it first."""
    behind = mro[mro.index(add_on) + 1 :]
    return any("train_step" in c.__dict__ and hasattr(c, "add_on") for c in behind)


def _check_requirement(cls: type, add_on: type, needed: type, present: tuple[type, ...], position: int) -> None:
    if any(issubclass(p, needed) for p in present[:position]):
        return
    problem = "comes after it" if any(issubclass(p, needed) for p in present) else "is not there"
    raise TypeError(
        f"{add_on.__name__} in {cls.__name__} requires {needed.__name__}, which {problem};"
        f" write add_on({needed.__name__}, {add_on.__name__})"
    )


class ComposableMeta(ABCMeta):
    """Metaclass of trainers and add-ons, by which `_reduce_class` below can pickle a stack as its recipe."""


class Seams(metaclass=ComposableMeta):
    """The methods that an add-on may override, each calling ``super()``. This list is frozen.

    `Trainer` implements them. An add-on that wraps any other method relies on something that may change. What it may
    read are the attributes below; what it may call besides is `stop`.
    """

    seams: ClassVar[tuple[str, ...]] = (
        "run",
        "run_epoch",
        "run_batch",
        "optimize",
        "logging",
        "metric_on_epoch_end",
        "check_better",
        "save_model",
        "apply_weights",
        "state_dict",
        "load_state_dict",
    )

    mode: str
    monitor: str
    monitor_mode: str | None
    history: Any
    progress_checker: Any
    accelerator: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A stack that cannot work is refused when it is defined, and a method that nobody would call."""
        super().__init_subclass__(**kwargs)
        check_stack(cls)
        hints.check_methods(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Options that are not the add-on's own go on to the next class."""
        super().__init__(*args, **kwargs)

    def run(self, n_epoch: Any = None, loader: Any = None, valid_loader: Any = None, **options: Any) -> Any:
        """Train (or evaluate) for some epochs; return the history."""

    def run_epoch(self, loader: Any, **kwargs: Any) -> Any:
        """Walk one loader once, in the current mode."""

    def run_batch(self, batch: Any, **kwargs: Any) -> Any:
        """One batch as the loader gave it: place, optimize or evaluate, log."""

    def optimize(self, window: Any) -> Any:
        """One optimizer step over the window's micro-batches."""

    def logging(self, step_dict: Any) -> Any:
        """Take the (detached) values of one batch."""

    def metric_on_epoch_end(self) -> Any:
        """Further metrics, computed from the epoch's logs."""

    def check_better(self, cur_epoch: int, cur_loss: float) -> Any:
        """Whether the monitored value is the best so far; if so, keep the weights."""

    def save_model(self, filename: Any) -> Any:
        """Write the model's weights to a file."""

    def apply_weights(self, filename: Any = None, strict: bool = True) -> Any:
        """Put weights into the model: the best, or a file's."""

    def state_dict(self) -> Any:
        """What has to be kept for the run to go on; an add-on adds its own under its class name."""

    def load_state_dict(self, state: Any) -> Any:
        """Take back what `state_dict` gave."""

    def stop(self, reason: str) -> None:
        """Ask the run to end after the current step."""


class AddOnBase(Seams):
    """Base class of add-ons: a mixin that overrides some of the `Seams` and calls ``super()``.

    Attributes
    ----------
    requires : tuple of type
        Add-ons that have to come before this one in ``add_on(...)``.

    Examples
    --------
    >>> class ShoutAddon(AddOnBase):
    ...     def __init__(self, *args, shout="!", **kwargs):
    ...         super().__init__(*args, **kwargs)
    ...         self.shout = shout
    ...
    ...     def check_better(self, cur_epoch, cur_loss):
    ...         better = super().check_better(cur_epoch, cur_loss)
    ...         if better:
    ...             print(f"better in epoch {cur_epoch}{self.shout}")
    ...         return better
    >>> Loud = MyTrainer.add_on(ShoutAddon)
    """

    requires: ClassVar[tuple[type, ...]] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """An add-on alone has nothing to add to."""
        if not hasattr(cls, "add_on"):
            name = cls.__name__
            raise TypeError(
                f"{name} is an add-on, and no trainer by itself; write MyTrainer.add_on({name})(model, ...)"
            )
        return super().__new__(cls)

    @classmethod
    def apply(cls, base_cls: type[C]) -> type[C]:
        """Return `base_cls` with this add-on on top.

        Add-ons written for 0.7.6 override this and return a subclass of `base_cls`; they are stacked as they are.
        """
        stacked: type[C] = type(base_cls)(  # type: ignore[misc]  # the metaclass, called as `type` is
            f"{base_cls.__name__}+{cls.__name__}", (cls, base_cls), {"__module__": base_cls.__module__}
        )
        return stacked


def compose(base: type[C], *add_ons: type[AddOnBase]) -> type[C]:
    """Stack `add_ons` onto `base`, the last one outermost.

    ``compose(M, A, B)`` is ``class X(B, A, M)``. The same stack is the same class object every time.

    Raises
    ------
    TypeError
        For something that is no add-on, a repeated add-on, or one that comes before an add-on it requires.
    """
    for add_on in add_ons:
        if not (isinstance(add_on, type) and issubclass(add_on, AddOnBase)):
            got = add_on.__name__ if isinstance(add_on, type) else repr(add_on)
            raise TypeError(
                f"{got} is not an add-on; add_on() takes classes that inherit from AddOnBase, EarlyStoppingAddon say"
            )
        base = _stacked(base, add_on)
    return base


def _stacked(base: type[C], add_on: type[AddOnBase]) -> type[C]:
    known: dict[type, type[C]]
    if "_stacks" not in base.__dict__:
        base._stacks = {}  # type: ignore[attr-defined]  # kept on the class, so that it lives as long as the class
    known = base.__dict__["_stacks"]
    if add_on not in known:
        _refuse_repeated(base, add_on)
        stacked = add_on.apply(base)
        stacked._recipe = (base, add_on)  # type: ignore[attr-defined]
        stacked._add_ons = (*add_ons_of(base), add_on)  # type: ignore[attr-defined]
        check_stack(stacked)
        known[add_on] = stacked
    return known[add_on]


def options_of(cls: type) -> dict[str, str]:
    """Every keyword option that the constructors of `cls` name, and the class that it belongs to."""
    options: dict[str, str] = {}
    for owner in cls.__mro__:
        if "__init__" in owner.__dict__ and owner is not object:
            for name, parameter in inspect.signature(owner.__dict__["__init__"]).parameters.items():
                if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                    options.setdefault(name, owner.__name__)
    return options


# The options of add-ons, for whoever gives one without its add-on.
ADD_ONS = {
    **dict.fromkeys(("patience", "min_delta"), "is EarlyStoppingAddon's: write add_on(EarlyStoppingAddon)"),
    **dict.fromkeys(
        ("save_path", "save_format", "save_every", "keep_last", "keep_best", "save_async", "save_required"),
        "is StateManagerAddon's: write add_on(StateManagerAddon)",
    ),
    **dict.fromkeys(
        ("web_logger", "log_every"), "is the loggers' add-ons': write add_on(TensorBoardLoggerAddon), or another's"
    ),
    "log_with": "is TrackerAddon's: write add_on(TrackerAddon)",
}

RUNS = dict.fromkeys(
    ("n_epoch", "loader", "valid_loader", "max_steps", "max_time", "valid_every", "resume"),
    "belongs to run(): give it there",
)


def refuse_unknown(
    unknown: Iterable[str], owner: str, options: dict[str, str], elsewhere: dict[str, str] | None = None
) -> None:
    """Raise for options that nobody took, naming the near miss.

    Parameters
    ----------
    unknown : iterable of str
        What is left over; nothing happens when it is empty.
    owner : str
        Who was called, for the message.
    options : dict
        The options there are, and whose they are.
    elsewhere : dict, optional
        Options that somebody else takes, and the words for it: ``"belongs to run(): ..."``.
    """
    for name in unknown:
        places = {**ADD_ONS, **(elsewhere or {}), **dict.fromkeys(options, "")}
        near = name if name in places else hints.renamed(name, places) or nearest(name, places)
        if near is None:
            hint = f"there are {', '.join(sorted(options))}"
        elif near in options:
            hint = f"did you mean {near!r} (of {options[near]})?"
        else:
            hint = f"it {places[near]}" if near == name else f"did you mean {near!r}? It {places[near]}"
        raise TypeError(f"{owner} has no option {name!r}; {hint}")


def _reduce_class(cls: ComposableMeta) -> Any:
    recipe = cls.__dict__.get("_recipe")
    # A string tells pickle to look the class up by its name, as for any class.
    return cls.__qualname__ if recipe is None else (compose, recipe)


copyreg.pickle(ComposableMeta, _reduce_class)
