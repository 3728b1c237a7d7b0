"""What a run shows before its first epoch and after its last.

The trainer is passed as Any, since its module imports this one.
"""

from __future__ import annotations

import math
from typing import Any

from torch.nn.parameter import is_lazy

from ..._version import __version__
from ...launch.forking import fork_fault
from ...logs.summary import advice, effort_lines, shares_of
from ..data.plan import BatchPlan
from ..records.usage import loader_facts, peak_memory

_PRECISIONS = {"no": "fp32"}


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
