"""What a run shows before its first epoch and after its last."""

from __future__ import annotations

import math
from typing import Any

from torch.nn.parameter import is_lazy

from ..._version import __version__
from ...launch.fork_fault import fork_fault
from ...logs.summary import advice, effort_lines, shares_of
from ..loop.session import Session
from ..records.time_and_memory import loader_facts, peak_memory

_PRECISIONS = {"no": "fp32"}


def banner(session: Session) -> str:
    """What is going to run: device, precision, parameters, batch layout, seed."""
    trainer = session.trainer
    parameters = list(trainer.model.parameters())
    known = [p for p in parameters if not is_lazy(p)]
    total = sum(p.numel() for p in known)
    trained = sum(p.numel() for p in known if p.requires_grad)
    size = f"{total:,} parameters" + (" and lazy ones" if len(known) < len(parameters) else "")
    size += f" ({trained:,} trained)" if trained != total else ""
    precision = trainer.accelerator.mixed_precision
    plan = session.plan(trainer.loader)
    length = f" · {plan.batches:,} batches an epoch" if plan.batches is not None else ""
    seed = f"seed {trainer.seed}" + ("" if trainer.seed_was_given else " (drawn)")
    fault = fork_fault() if session.place.processes.count > 1 else None
    return (
        f"zae-engine {__version__} · {type(trainer).__name__} · {trainer.mode} on {trainer.device} ·"
        f" {_PRECISIONS.get(precision, precision)} · {size}\n{plan.describe()}{length} · {seed}"
        + (f"\n{fault}" if fault else "")
    )


def farewell(session: Session) -> str:
    """Why the run ended, what its best weights are, and what it took, unless a folder's summary will tell."""
    told = session.recorder.keeps_lines or session.trainer.mode == "test"
    return "\n".join([_outcome(session), *([] if told else effort_lines(_effort(session)))])


def _outcome(session: Session) -> str:
    recorder, mode = session.recorder, session.trainer.mode
    # Nothing of the reason is made a capital: it may begin with a metric's name, or with the user's own words.
    how = f"Stopped: {recorder.stop_reason}." if recorder.stop_reason else "Done."
    if mode == "train" and recorder.usage.samples == session.call.samples_before:
        return f"{how[:-1]}: nothing was trained in this call."
    if mode == "test":
        return how
    best = recorder.best
    if best.weights["epoch"] and math.isfinite(best.value):
        which = f"{best.name} {best.value:.4g} in epoch {best.weights['epoch'][-1] + 1}"
        return f"{how} Best: {which}; apply_weights() puts its weights back."
    never = best.monitor.never_finite(recorder.history.rows)
    return f"{how} No best weights: {never}." if never else how


def _effort(session: Session) -> dict[str, Any]:
    """Of this call of `run`, what a summary has of a whole run."""
    usage, call, device = session.recorder.usage, session.call, session.place.device
    spent = usage.now()
    took = {part: spent[part] - call.seconds_before[part] for part in spent}
    whole = took.pop("all")
    shares = shares_of({"compute": max(whole - sum(took.values()), 0.0), **took}) or {}
    loader = loader_facts(session.trainer.loader)
    return {
        "samples_per_second": (usage.samples - call.samples_before) / whole if whole else None,
        "shares": shares,
        "memory": peak_memory(device),
        "advice": advice(shares.get("data", 0.0), loader, loader.get("cores"), device.type, took["data"]),
    }
