"""A script's ``run.log(..., commit=False)``: as W&B means it, a part of the next row, which is the trainer's record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

Gives = Callable[[dict[str, Any]], Any]


def join_rows(run: Any, gives: Gives) -> None:
    """Have what a script logs to a run without committing it come with the trainer's record of the step.

    The record is logged by another thread, at a time of its own: without this, one such row is overwritten by the next.

    Parameters
    ----------
    run : wandb.Run
        Its method `log` is replaced.
    gives : callable
        Takes the values to the run's history, as `Trainer.log` does.
    """
    import wandb

    before = run.log
    run.log = partial(_log, before, gives)
    if getattr(wandb, "log", None) == before:  # it is that of the process's first run
        wandb.log = run.log


def _log(before: Callable[..., Any], gives: Gives, data: Any, step: Any = None, commit: Any = None) -> Any:
    if commit is not False or step is not None or not isinstance(data, Mapping):
        return before(data, step=step, commit=commit)
    plain = {name: value for name, value in data.items() if _is_plain(value)}
    if plain:
        gives(plain)
    if rest := {name: value for name, value in data.items() if name not in plain}:
        before(rest)  # what only W&B has, a table say, is a row of its own
    return None


def _is_plain(value: Any) -> bool:
    """Whether the history can hold it: a number, a text or a picture, and none of W&B's own kinds but its images."""
    kind = type(value)
    return not kind.__module__.startswith("wandb.") or kind.__name__ == "Image"
