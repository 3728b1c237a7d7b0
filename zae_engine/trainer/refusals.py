"""What is refused, and in which words: what came, what is accepted, what to write instead."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import Dataset

from ..suggestions import nearest
from .compose import Seams, options_of, refuse_unknown
from .limits import Budget, Duration, refuse_short
from .nested_values import is_scalar
from .several_optimizers import Schedulers, optimizers_of

T = TypeVar("T")
MODES = ("train", "test")
CORRECT_LENGTH = "correct its __len__, which bars and schedules count by"


def shortly(value: Any) -> str:
    """How a value is written in a sentence: its repr, or its type when that is long."""
    text = repr(value)
    if isinstance(value, (list, tuple, set)) and (len(text) > 60 or "\n" in text):
        kinds = list(dict.fromkeys(type(each).__name__ for each in value))
        return f"a {type(value).__name__} of {len(value)} ({', '.join(kinds[:3])}{', ...' if len(kinds) > 3 else ''})"
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of `choices`."""
    if value not in choices:
        near = nearest(str(value), choices, 0.7)  # of few and short ones
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(f"{name}={shortly(value)} is not known; write one of {', '.join(map(repr, choices))}{hint}")


def check_number(name: str, value: Any, least: float, whole: bool = False) -> None:
    """Refuse what is not a number of at least `least`."""
    kind = "whole number" if whole else "number"
    right = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not right or not value >= least:
        raise ValueError(f"{name}={shortly(value)} is not accepted; write a {kind} of at least {least:g}")


def check_seed(seed: Any) -> int:
    """Refuse what is not a whole number from 0 on."""
    check_number("seed", seed, 0, whole=True)
    return int(seed)


def check_parts(model: Any, mode: str, optimizer: Any, scheduler: Any, on_batch: bool) -> None:
    """Refuse parts of a trainer that do not fit together."""
    check_choice("mode", mode, MODES)
    if not isinstance(model, nn.Module):
        hint = "; create it first: model=Net()" if isinstance(model, type) else ""
        raise TypeError(f"model={shortly(model)} is not a torch.nn.Module{hint}")
    check_optimizer(optimizer, model, mode)
    check_scheduler(scheduler, optimizer, on_batch)


def check_steps(trainer: Seams, trains: bool, tests: bool) -> None:
    """Refuse a trainer without the step that is needed, and a step that cannot be called with a batch alone."""
    for name, needed in (("train_step", trains), ("test_step", tests)):
        step = getattr(trainer, name)
        if not getattr(step, "missing", False):
            _check_signature(trainer, name, step, (None,), "the batch and nothing else", _STEP_INSTEAD.format(name))
        elif needed:
            raise missing_step(trainer, name)
    _check_signature(trainer, _METRICS, getattr(trainer, _METRICS), (), "nothing", _METRICS_INSTEAD)


def to_be_written(step: T) -> T:
    """Mark a step of `Trainer` as one that the user has not written."""
    step.missing = True  # type: ignore[attr-defined]
    return step


def missing_step(trainer: Seams, name: str) -> TypeError:
    """What to say when there is no such step."""
    way = "write train_step(self, batch), which returns {'loss': loss}"
    if name == "test_step":
        way = "write test_step(self, batch), or test_step = train_step in the class when both are the same"
    purpose = "train" if name == "train_step" else "evaluate"
    return TypeError(f"{type(trainer).__name__} has no {name}, which is needed to {purpose}; {way}")


_STEP_INSTEAD = "{}(self, batch) (the step's number is self.progress_checker.get_step())"
_METRICS = "metric_on_epoch_end"
_METRICS_INSTEAD = f"{_METRICS}(self) (self.log_train and self.log_test hold what the steps returned)"


def _check_signature(trainer: Seams, name: str, method: Any, given: tuple[Any, ...], gets: str, instead: str) -> None:
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # something callable that does not tell
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        raise TypeError(
            f"{name}{signature} of {type(trainer).__name__} cannot be called, since it gets {gets}; write {instead}"
        ) from error


def check_optimizer(optimizer: Any, model: nn.Module, mode: str) -> None:
    """Refuse an optimizer that cannot train the model."""
    if optimizer is None:
        if mode == "train":
            raise ValueError("mode='train' needs an optimizer; give optimizer=..., or mode='test' to evaluate only")
        return
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer={shortly(optimizer)} is not a torch.optim.Optimizer; {_instead_of(optimizer)}")
    parts = optimizers_of(optimizer)
    for part in parts.values():
        closure = inspect.signature(part.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"{type(part).__name__} computes the loss several times a step (its step() needs a closure), which"
                " this trainer does not; take an optimizer whose step() needs none"
            )
    own = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if len(parts) > 1:
        _check_apart(parts, model)
    foreign = sum(id(p) not in own for p in held)
    if foreign:
        raise ValueError(
            f"{foreign} of the optimizer's {len(held)} parameters are not the model's; build the optimizer over"
            " model.parameters() of the very model that the trainer gets (a criterion with parameters of its own has to"
            " be a submodule of the model)"
        )


def _check_apart(parts: dict[str, Any], model: nn.Module) -> None:
    """Refuse several optimizers that hold the same parameter."""
    names = {id(p): name for name, p in model.named_parameters()}
    owner = dict[int, str]()
    for part, each in parts.items():
        for p in (p for group in each.param_groups for p in group["params"]):
            if owner.setdefault(id(p), part) != part:
                raise ValueError(
                    f"the optimizers {owner[id(p)]!r} and {part!r} both hold {names.get(id(p), 'a parameter')!r}; build"
                    " each over parameters of its own"
                )


def _instead_of(optimizer: Any) -> str:
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        return f"create it first: optimizer={optimizer.__name__}(model.parameters(), lr=...)"
    if isinstance(optimizer, (list, tuple, dict)):
        return "give several as a dict by name, or as a list, of at least one: {'g': Adam(...), 'd': Adam(...)}"
    return "give one of torch.optim, over model.parameters()"


def check_scheduler(scheduler: Any, optimizer: Optimizer | None, on_batch: bool) -> None:
    """Refuse a scheduler that would not move this optimizer's learning rate."""
    if scheduler is None:
        return
    if isinstance(scheduler, Schedulers):
        for name, part in scheduler.parts.items():
            check_scheduler(part, optimizers_of(optimizer).get(name), on_batch)
        return
    if not callable(getattr(scheduler, "step", None)):
        several = isinstance(scheduler, (list, tuple))
        hint = "one, several in a row by SequentialLR" if several else "one of torch.optim.lr_scheduler, or None"
        raise TypeError(f"scheduler={shortly(scheduler)} has no step(); give {hint}")
    if isinstance(scheduler, type):
        name = scheduler.__name__
        raise TypeError(f"scheduler={name} is a class; create it first: scheduler={name}(optimizer, ...)")
    inner = getattr(optimizer, "optimizer", optimizer)  # of one that Accelerate has prepared
    if getattr(scheduler, "optimizer", optimizer) not in (optimizer, inner):
        raise ValueError(
            f"the scheduler ({type(scheduler).__name__}) belongs to another optimizer; build it over the optimizer that"
            " the trainer gets"
        )
    if on_batch and isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "ReduceLROnPlateau waits for an epoch's loss; leave scheduler_step_on_batch=True out, or take another one"
        )


def read_limits(n_epoch: Any, max_steps: Any, max_time: Any, mode: str) -> list[Duration]:
    """Return what ends a run; refuse a run without an end."""
    if mode == "test" and (max_steps is not None or max_time is not None):
        raise ValueError("max_steps and max_time end a training; in mode 'test', give n_epoch= or nothing")
    limits = []
    if n_epoch is not None:
        limits.append(Duration.parse(n_epoch, "n_epoch", least=0))  # 0, of a computed number, is a run of nothing
    if max_steps is not None:
        limits.append(Duration.parse(max_steps, "max_steps", bare="st"))
    if max_time is not None:
        limits.append(Duration.parse(max_time, "max_time", bare=None))
    if not limits and mode == "train":
        raise ValueError("run() does not say when to end; give n_epoch=, max_steps= or max_time=")
    return limits or [Duration(1, "ep")]


def check_loader(loader: Any, name: str) -> None:
    """Refuse what is no loader."""
    if isinstance(loader, Dataset):
        raise TypeError(
            f"{name} is a {type(loader).__name__}, a dataset; wrap it: DataLoader(dataset, batch_size=32), or"
            " batch_size=None if its items are batches"
        )
    walkable = isinstance(loader, Iterable) or hasattr(loader, "__getitem__")
    if not walkable or isinstance(loader, (str, bytes, Mapping, Tensor)):
        raise TypeError(f"{name}={shortly(loader)} cannot be walked; give a DataLoader, or any iterable of batches")


def check_run(loader: Any, valid_loaders: dict[str, Any], budget: Budget, within_epoch: bool) -> None:
    """Refuse, before the first batch, loaders that cannot be walked as often as the run needs."""
    for name, value in {"loader": loader, **{f"valid_loader {k!r}" if k else "valid_loader": v
                                             for k, v in valid_loaders.items()}}.items():  # fmt: skip
        check_loader(value, name)
        epochs = budget.epochs_needed(None)
        if isinstance(value, Iterator) and name != "loader" and within_epoch:
            raise ValueError(
                f"{name} is a {type(value).__name__}, which can be walked once, but valid_every= asks for more within"
                " an epoch; give an iterable that starts anew each time, such as a DataLoader or a list"
            )
        if isinstance(value, Iterator) and epochs > 1:
            raise ValueError(
                f"{name} is a {type(value).__name__}, which can be walked once, but the run takes {_many(epochs)}"
                " epochs; give n_epoch=1, or an iterable that starts anew each time, such as a DataLoader or a list"
            )


def check_lasts(scheduler: Any, on_batch: bool, batches: int | None, budget: Budget) -> None:
    """Refuse, before the first batch, a schedule that ends before the run does."""
    needed = budget.steps(batches) if on_batch else budget.epochs_needed(batches)
    refuse_short(scheduler, needed, "optimizer step" if on_batch else "epoch")


def beyond(name: str, batches: int, length: int) -> str:
    """What to say of a loader that gives more than its length."""
    return f"{name} gives more batches than its length says: len() is {length}, and this is number {batches}"


def check_lasts_beyond(scheduler: Any, left: float, words: str) -> None:
    """Refuse a schedule by steps that ends before the run does, since the loader gives more than it has said."""
    try:
        refuse_short(scheduler, left, "optimizer step")
    except ValueError as error:
        raise ValueError(f"{words}; correct its __len__. With so many, {error}") from None


def _many(count: float) -> str:
    return f"{count:g}" if count < float("inf") else "any number of"


def check_run_options(cls: type, names: Iterable[str]) -> None:
    """Refuse options of `run` that no override of a loop method takes."""
    options = dict.fromkeys(("max_steps", "max_time", "valid_every", "n_epoch", "loader", "valid_loader"), "run")
    takes_any = False
    for owner in cls.__mro__:
        if "run" in vars(owner) and "resume" in inspect.signature(vars(owner)["run"]).parameters:
            options["resume"] = owner.__name__
        if issubclass(owner, Seams) and not owner.__module__.startswith("zae_engine.trainer."):
            for method in ("run", "run_epoch", "run_batch"):
                if method in owner.__dict__:
                    parameters = inspect.signature(owner.__dict__[method]).parameters.values()
                    takes_any |= any(p.kind is p.VAR_KEYWORD for p in parameters)
                    options.update((p.name, owner.__name__) for p in parameters if p.name != "self")
    unknown = [n for n in names if n not in options]
    if "resume" in unknown:
        raise TypeError(
            f"{cls.__name__}.run() got resume=, which goes on from a checkpoint; write add_on(StateManagerAddon) and"
            " give the trainer save_path='runs/first'"
        )
    if takes_any:  # an override's **kwargs may mean anything but a misspelt option
        unknown = [n for n in unknown if nearest(n, options)]
    made = dict.fromkeys(options_of(cls), "belongs to the trainer: give it when that is made")
    refuse_unknown(unknown, f"{cls.__name__}.run()", options, made)


def check_step(values: Any, name: str, parameters: Sequence[Tensor] = ()) -> Tensor:
    """Return the loss out of what the training step returned, or say what is wrong with it.

    Parameters
    ----------
    values : dict
        What the step returned.
    name : str
        The step's name, for the message.
    parameters : sequence of Tensor
        Parameters whose gradients have to be empty still; given at the first step of a run, where all is looked at.

    Raises
    ------
    TypeError, KeyError, ValueError
        For a step without a ``"loss"`` that can be differentiated, or one that called ``backward()`` itself.
    """
    loss = values.get("loss") if isinstance(values, dict) and not parameters else None
    if isinstance(loss, Tensor) and loss.requires_grad and (not loss.ndim or loss.numel() == 1):
        return loss
    return _look_closely(values, name, parameters)


def check_named(values: Mapping[str, Any], several: bool) -> tuple[()]:
    """Refuse a step that names the optimizer that it is for, when there is only one; the first step is looked at."""
    if not several and isinstance(name := values.get("optimizer"), str):
        raise ValueError(
            f"train_step returned 'optimizer': {name!r}, but the trainer has one optimizer; give several by name:"
            f" optimizer={{{name!r}: ..., ...}}, or leave it out"
        )
    return ()


def _look_closely(values: Any, name: str, parameters: Sequence[Tensor]) -> Tensor:
    loss = check_values(values, name)["loss"]
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name} returned a loss of type {type(loss).__name__}; return the tensor, without .item()")
    if loss.ndim and loss.numel() != 1:
        raise ValueError(
            f"{name} returned a loss of shape {tuple(loss.shape)}; return one number: reduce it, with loss.mean() say"
        )
    if "num_items" in values:
        check_items(values["num_items"], name)
    if any(p.grad is not None for p in parameters):
        raise ValueError(f"{name} called loss.backward(); return the loss only, the trainer does the rest")
    if not loss.requires_grad:
        raise ValueError(
            f"{name} returned a loss without a graph, so nothing can be learned from it; take away .detach(), .item(),"
            " .data or torch.no_grad(), and see that some parameter of the model requires a gradient"
        )
    return loss


def check_items(items: Any, name: str) -> None:
    """Refuse a ``"num_items"`` that is not one number."""
    if not is_scalar(items) or (isinstance(items, Real) and items < 0):
        raise ValueError(
            f"{name} returned num_items={shortly(items)}; return how many items the loss is the mean of, as one number"
            " (mask.sum(), say)"
        )


def check_test(values: Any, name: str, closely: bool = True) -> dict[str, Any]:
    """Return what the test step returned, or say what is wrong with it; all is looked at when it is asked `closely`."""
    usual = not closely and isinstance(values, dict) and "num_items" not in values
    loss = values.get("loss") if usual else None
    if isinstance(loss, Tensor) and (not loss.ndim or loss.numel() == 1):
        return values  # type: ignore[no-any-return]  # a dict
    loss = check_values(values, name)["loss"]
    if not is_scalar(loss) and not (isinstance(loss, Tensor) and loss.numel() == 1):
        got = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"of type {type(loss).__name__}"
        raise ValueError(f"{name} returned a loss {got}; return one number: reduce it, with loss.mean() say")
    if "num_items" in values:
        check_items(values["num_items"], name)
    return values  # type: ignore[no-any-return]  # checked to be a dict


def check_values(values: Any, name: str) -> dict[str, Any]:
    """Return what a step returned, or say that it is no dict with a ``"loss"``."""
    if not isinstance(values, dict):
        raise TypeError(f"{name} returned a {type(values).__name__}; return a dict with 'loss', as {{'loss': loss}}")
    for key in values:
        if not isinstance(key, str):
            raise TypeError(f"{name} returned the key {key!r}; name each value by a string, as {{'loss': loss}}")
    if "loss" not in values:
        near = next((key for key in values if "loss" in key.lower()), None) or nearest("loss", values, 0.7)
        had = ", ".join(map(repr, values)) or "nothing"
        raise KeyError(f"{name} returned no 'loss' but {had}" + (f"; rename {near!r} to 'loss'" if near else ""))
    return values


def check_output(values: Any) -> Any:
    """Return the ``"output"`` of a step, or say that there is none."""
    if not isinstance(values, dict) or "output" not in values:
        had = ", ".join(map(repr, values)) if isinstance(values, dict) else f"a {type(values).__name__}"
        raise KeyError(
            f"test_step returned no 'output' but {had}; inference() needs it: {{'loss': loss, 'output': out}}"
        )
    return values["output"]


def unknown_monitor(monitor: str, names: Iterable[str], split: str) -> str:
    """Say that there is no such metric, and which there are."""
    there = [name.removeprefix(f"{split}_") for name in names if name.startswith(f"{split}_")]
    near = nearest(monitor.removeprefix(f"{split}_"), there)
    hint = f"did you mean {near!r}?" if near else f"there are {', '.join(map(repr, there))}"
    return f"monitor={monitor!r} is not among the metrics; {hint} Without it, no weights are kept as the best."
