"""What users of other trainers write out of habit, and what is written here instead. Knows no torch."""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any, NoReturn

from ..suggestions import nearest

_STEP = "train_step(self, batch), which returns {'loss': loss}"
_TEST = "test_step(self, batch), which returns {'loss': loss}"
_PREDICT = "test_step(self, batch), which returns {'loss': loss, 'output': out}; inference(loader) gathers it"
_RUN = "an override of run() that calls super().run(...)"
_EPOCH = "an override of run_epoch(loader) that calls super().run_epoch(loader); self.mode tells 'train' from 'test'"
_BATCH = "an override of run_batch(batch) that calls super().run_batch(batch); self.mode tells 'train' from 'test'"
_OPTIMIZE = "an override of optimize(window) that calls super().optimize(window)"
_METRIC = "metric_on_epoch_end(self), which returns a dict of numbers; self.mode tells 'train' from 'test'"
_STATE = "overrides of state_dict() and load_state_dict(state) that call super()'s"
_LOADERS = "no such method: give loader= and valid_loader= to run()"

# Methods that other trainers call by themselves. Here nobody would call them, in silence.
METHODS = {
    "training_step": _STEP,
    "validation_step": _TEST,
    **dict.fromkeys(("predict_step", "prediction_step"), _PREDICT),
    "configure_optimizers": "no such method: give optimizer= and scheduler= when the trainer is made",
    **dict.fromkeys(("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"), _LOADERS),
    **dict.fromkeys(("on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_train_begin"), _RUN),
    **dict.fromkeys(("on_train_epoch_start", "on_epoch_start", "on_epoch_begin", "on_validation_start"), _EPOCH),
    **dict.fromkeys(("on_validation_epoch_start", "on_test_start", "on_test_begin", "on_evaluate"), _EPOCH),
    **dict.fromkeys(("on_train_epoch_end", "on_validation_epoch_end", "on_validation_end", "on_epoch_end"), _METRIC),
    **dict.fromkeys(("training_epoch_end", "validation_epoch_end", "on_test_epoch_end", "on_test_end"), _METRIC),
    **dict.fromkeys(("on_train_batch_start", "on_train_batch_end", "on_batch_begin", "on_batch_end"), _BATCH),
    **dict.fromkeys(("on_validation_batch_start", "on_validation_batch_end", "on_step_begin", "on_step_end"), _BATCH),
    **dict.fromkeys(("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"), _OPTIMIZE),
    **dict.fromkeys(("on_before_backward", "on_after_backward", "on_before_zero_grad"), _OPTIMIZE),
    **dict.fromkeys(("on_before_optimizer_step", "on_pre_optimizer_step", "on_optimizer_step"), _OPTIMIZE),
    "lr_scheduler_step": "a scheduler whose step() does it; scheduler_step_on_batch=True calls that after each batch",
    "on_log": "an override of logging(values) that calls super().logging(values)",
    **dict.fromkeys(("on_save_checkpoint", "on_load_checkpoint", "on_save"), _STATE),
}

# Attributes that other trainers have.
ATTRIBUTES = {
    "fit": "run(n_epoch=..., loader=..., valid_loader=...)",
    "train": "run(n_epoch=..., loader=..., valid_loader=...)",
    "test": "mode='test' when the trainer is made, and run(loader=...)",
    "validate": "valid_loader= in run(), or mode='test' when the trainer is made, and run(loader=...)",
    "evaluate": "valid_loader= in run(), or mode='test' when the trainer is made, and run(loader=...)",
    "predict": "inference(loader), which returns what test_step returns as 'output'",
    "current_epoch": "progress_checker.get_epoch(), which counts from 1",
    "global_step": "progress_checker.get_step(), which counts from 1",
    "max_epochs": "n_epoch= in run()",
    "callbacks": "add_on(...) of the class",
    "callback_metrics": "train_metrics, test_metrics or history",
    "logger": "add_on(...) with a logger's add-on, such as TensorBoardLoggerAddon",
    "log_dict": "the values in the dict that the step returns",
    "save_hyperparameters": "attributes of your own in __init__",
    "hparams": "attributes of your own in __init__",
    "manual_backward": "a step that only returns its loss: the trainer calls backward()",
    "automatic_optimization": "an override of optimize(window)",
    "optimizers": "optimizer",
    "lr_schedulers": "scheduler",
    "trainer": "self: the trainer is what you subclass",
    "save_checkpoint": "add_on(StateManagerAddon) with save_path='runs/first', or save_model(path) for the weights",
    "save_pretrained": "save_model(path)",
}

# Those that nobody would give to a trainer from outside, as he may a logger, say.
_SURE = {"current_epoch", "global_step", "log_dict", "save_hyperparameters", "manual_backward", "callback_metrics"}

# Options of other trainers' constructors and of their fit(), and which of them belongs to run() here.
OPTIONS = {
    **dict.fromkeys(("train_loader", "train_dataloader", "train_dataloaders", "dataloader", "loaders"), "loader"),
    **dict.fromkeys(("val_loader", "val_dataloader", "val_dataloaders", "eval_loader", "test_loader"), "valid_loader"),
    **dict.fromkeys(("validation_loader", "valid_dataloader", "eval_dataloader", "test_dataloader"), "valid_loader"),
    **dict.fromkeys(("epochs", "max_epochs", "num_epochs", "n_epochs", "num_train_epochs", "epoch"), "n_epoch"),
    **dict.fromkeys(("steps", "max_step", "total_steps", "num_steps"), "max_steps"),
    **dict.fromkeys(("check_val_every_n_epoch", "val_check_interval", "eval_steps", "eval_strategy"), "valid_every"),
    **dict.fromkeys(("gradient_clip_val", "max_grad_norm", "grad_clip", "clip_grad_norm"), "gradient_clip"),
    **dict.fromkeys(("accumulate_grad_batches", "accumulation_steps"), "gradient_accumulation_steps"),
    **dict.fromkeys(("optimizers", "optim"), "optimizer"),
    **dict.fromkeys(("lr_scheduler", "schedulers"), "scheduler"),
    **dict.fromkeys(("accelerator", "devices"), "device"),
    **dict.fromkeys(("ckpt_path", "resume_from_checkpoint"), "resume"),
    **dict.fromkeys(("default_root_dir", "output_dir", "save_dir"), "save_path"),
    "enable_progress_bar": "log_bar",
    "precision": "mixed_precision",
    "early_stopping_patience": "patience",
    "fp16": "mixed_precision",
    "bf16": "mixed_precision",
    "sync_bn": "sync_batchnorm",
}


def renamed(name: str, options: Iterable[str]) -> str | None:
    """The option that another trainer calls `name`, when it is among `options`."""
    own = OPTIONS.get(name)
    return own if own in set(options) else None


def check_methods(cls: type) -> None:
    """Refuse, when a class is defined, a method that another trainer would call and this one does not.

    Raises
    ------
    TypeError
        Unless some method of the class names it, and so may call it.
    """
    foreign = [name for name in vars(cls) if name in METHODS]
    if not foreign:
        return
    called = set().union(*(code.co_names for code in _codes_of(cls)))
    for name in foreign:
        if name not in called:
            raise TypeError(
                f"{cls.__name__} has {name}(), which nothing here would call; write {METHODS[name]}. (If it is your own"
                " helper, call it from a method of the class.)"
            )


def check_reads(cls: type) -> None:
    """Refuse, when a trainer is made, methods that read what another trainer would have, such as ``self.log_dict``.

    Raises
    ------
    AttributeError
        Unless the class has that attribute, or a method of it sets it.
    """
    read, written = dict[str, str](), set[str]()
    for code in _codes_of(cls):
        before = None
        for instruction in dis.get_instructions(code):
            if before == "self" and instruction.argval in _SURE:
                if instruction.opname.startswith("STORE"):
                    written.add(instruction.argval)
                else:
                    read.setdefault(instruction.argval, code.co_name)
            before = _loaded(instruction)
    for name, method in read.items():
        if name not in written and not _has(cls, name):
            raise AttributeError(f"{method}() of {cls.__name__} reads self.{name}; {_instead(name)}")


def missing(owner: Any, name: str) -> NoReturn:
    """Say that there is no such attribute, and what is meant when another trainer has it."""
    kind = type(owner).__name__
    known = f"; {_instead(name)}" if name in ATTRIBUTES else ""
    if _has(type(owner), name) and not vars(owner).get("_made"):
        known = "; it is there after super().__init__(...), so call that first"
    if not known and not name.startswith("_") and (near := nearest(name, dir(type(owner)) + list(vars(owner)))):
        known = f"; did you mean {near!r}?"
    raise AttributeError(f"{kind!r} object has no attribute {name!r}{known}")


def _instead(name: str) -> str:
    return f"there is no {name!r} here: write {ATTRIBUTES[name]}"


def _has(cls: type, name: str) -> bool:
    return any(name in vars(c) or name in vars(c).get("__annotations__", ()) for c in cls.__mro__)


def _loaded(instruction: dis.Instruction) -> Any:
    """The name of the local variable that an instruction puts on top of the stack."""
    if not instruction.opname.startswith("LOAD_FAST"):
        return None
    value = instruction.argval  # since Python 3.13, one instruction may load two
    return value[-1] if isinstance(value, tuple) else value


def _codes_of(cls: type) -> Iterator[CodeType]:
    """The code of every method of `cls` and its bases that is not this package's, with what is defined inside."""
    for owner in cls.__mro__:
        if owner.__module__.startswith("zae_engine."):
            continue
        for value in list(vars(owner).values()):
            for function in (value, getattr(value, "__func__", None), getattr(value, "fget", None)):
                if isinstance(function, FunctionType):
                    yield from _nested(function.__code__)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
