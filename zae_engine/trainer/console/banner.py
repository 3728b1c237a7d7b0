"""The lines that a run shows before, between and after its epochs.

The trainer is passed as Any, since its module imports this one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.nn.parameter import is_lazy

from ..._version import __version__
from ...launch.forking import fork_fault
from ...logs.panels import part_of
from ...logs.summary import advice, effort_lines, shares_of
from ...near import nearest
from ..data.plan import BatchPlan
from ..journal.machine import loader_facts, peak_memory
from ..records.history import Row
from ..step.trained import rates_in_words

_PRECISIONS = {"no": "fp32"}
_MANY = 10  # values in one line


def banner(trainer: Any) -> str:
    """What is going to run: device, precision, parameters, batch layout, seed."""
    parameters = list(trainer.model.parameters())
    known = [p for p in parameters if not is_lazy(p)]
    total = sum(p.numel() for p in known)
    trained = sum(p.numel() for p in known if p.requires_grad)
    size = f"{total:,} parameters" + (" and lazy ones" if len(known) < len(parameters) else "")
    size += f" ({trained:,} trained)" if trained != total else ""
    precision = trainer.accelerator.mixed_precision
    plan: BatchPlan = trainer._plan(trainer.loader)
    length = f" · {plan.batches:,} batches an epoch" if plan.batches is not None else ""
    seed = f"seed {trainer.seed}" + ("" if trainer.seed_was_given else " (drawn)")
    fault = fork_fault() if trainer._processes.count > 1 else None
    return (
        f"zae-engine {__version__} · {type(trainer).__name__} · {trainer.mode} on {trainer.device} ·"
        f" {_PRECISIONS.get(precision, precision)} · {size}\n{plan.describe()}{length} · {seed}"
        + (f"\n{fault}" if fault else "")
    )


def check_show(show: Any) -> tuple[str, ...] | None:
    """Return the names of values that are shown; refuse what are none."""
    names = (show,) if isinstance(show, str) else show
    if names is None or (isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)):
        return None if names is None else tuple(names)
    raise TypeError(f"show={show!r} is not accepted; write the names of values: show=['loss', 'test_acc']")


def is_shown(name: str, quantity: str, show: Sequence[str] | None) -> bool:
    """Whether a value is among those that ``show=`` names, by its own name or by its quantity's."""
    return show is None or name in show or quantity in show


def unknown_in(show: Sequence[str], row: Row) -> str:
    """A sentence about a name that no value of a row has; of a set that was not validated, its quantity counts."""
    quantities = {part_of(name, row)[0] for name in row if name.startswith(("train_", "test_"))}
    missing = [name for name in show if name not in row and part_of(name, row)[0] not in quantities]
    if not missing:
        return ""
    near = nearest(missing[0], quantities)
    there = f"did you mean {near!r}?" if near else f"there are {', '.join(map(repr, sorted(quantities)))}"
    return f"show= names {missing[0]!r}, but no value has that name; {there}"


def epoch_line(title: str, row: Row, speed: float, show: Sequence[str] | None = None, seen: Row | None = None) -> str:
    """One line for an epoch that is done, or a validation within it; many values get a line for each set.

    Parameters
    ----------
    title : str
    row : dict
        Of the history.
    speed : float
        Samples a second.
    show : sequence of str, optional
        Names of the values that are shown, such as ``'test_acc'``, or ``'acc'`` for all sets; by default all are.
    seen : dict, optional
        What of the row has been shown already.
    """
    parts = {name: part_of(name, row) for name in row if name.startswith(("train_", "test_"))}
    names = [name for name, (quantity, _) in parts.items() if is_shown(name, quantity, show)]
    names = [name for name in names if seen is None or seen.get(name) != row[name]]
    rest = f"lr {rates_in_words(row, 2)}  {speed:,.0f} samples/s  {row['seconds']:.1f} s"
    if len(names) <= _MANY:
        return " | ".join([title, *(["  ".join(f"{n} {row[n]:.4g}" for n in names)] if names else []), rest])
    sets: dict[str, list[str]] = {}
    for name in names:
        quantity, kind = parts[name]
        sets.setdefault(kind, []).append(f"{quantity} {row[name]:.4g}")
    width = max(map(len, sets))
    lines = [f"  {kind if not i else '':{width}} | {'  '.join(values[i : i + _MANY])}"
             for kind, values in sets.items() for i in range(0, len(values), _MANY)]  # fmt: skip
    return "\n".join([f"{title} | {rest}", *lines])


def farewell(trainer: Any) -> str:
    """Why the run ended, what its best weights are, and what it took, unless a folder's summary will tell."""
    effort = [] if trainer._lines_wanted or trainer.mode == "test" else effort_lines(_effort(trainer))
    return "\n".join([_outcome(trainer), *effort])


def _outcome(trainer: Any) -> str:
    # Nothing of the reason is made a capital: it may begin with a metric's name, or with the user's own words.
    how = f"Stopped: {trainer.stop_reason}." if trainer.stop_reason else "Done."
    if trainer.mode == "train" and trainer._spent.samples == trainer._spent_before[1]:
        return f"{how[:-1]}: nothing was trained in this call."
    if trainer.mode == "test":
        return how
    if trainer.weight_buffer["epoch"] and math.isfinite(trainer.loss_buffer):
        best = f"{trainer.monitor} {trainer.loss_buffer:.4g} in epoch {trainer.weight_buffer['epoch'][-1] + 1}"
        return f"{how} Best: {best}; apply_weights() puts its weights back."
    never = trainer._monitor.never_finite(trainer.history.rows)
    return f"{how} No best weights: {never}." if never else how


def _effort(trainer: Any) -> dict[str, Any]:
    """Of this call of `run`, what a summary has of a whole run."""
    spent, (before, samples) = trainer._spent.now(), trainer._spent_before
    took = {part: spent[part] - before[part] for part in spent}
    whole = took.pop("all")
    shares = shares_of({"compute": max(whole - sum(took.values()), 0.0), **took}) or {}
    loader = loader_facts(trainer.loader)
    return {
        "samples_per_second": (trainer._spent.samples - samples) / whole if whole else None,
        "shares": shares,
        "memory": peak_memory(trainer.device),
        "advice": advice(shares.get("data", 0.0), loader, loader.get("cores"), trainer.device.type, took["data"]),
    }
