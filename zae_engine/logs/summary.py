"""``summary.json``: what came out of a run, where its time went, and what to try when it waited for data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..checkpoint.disk import write_json
from .listing import SUMMARY, entry_of
from .reading import Run, read_run

_WAITED = 5.0  # seconds of waiting for data that are worth a word: a first batch always takes a while
_LARGE = 0.1  # of the time
_VERSIONS = ("zae-engine", "python", "torch", "accelerate", "numpy")
PARTS = {"compute": "computing", "data": "waiting for data", "evaluation": "evaluation", "saving": "saving",
          "logging": "logging"}  # fmt: skip


def write_summary(run: Run | str | os.PathLike[str]) -> dict[str, Any]:
    """Write a run's ``summary.json`` into its folder, whole or not at all; return what is in it, but for lists of runs.

    Parameters
    ----------
    run : Run or path-like
        A run, or its folder.

    Raises
    ------
    RunFolderError
        When there is no run.
    """
    run = run if isinstance(run, Run) else read_run(run)
    summary = summarize(run)
    write_json(run.folder / SUMMARY, summary | entry_of(run))
    return summary


def summarize(run: Run) -> dict[str, Any]:
    """Tell what came out of a run.

    Returns
    -------
    dict
        Plain values: ``status`` and ``reason``; ``best`` (name, mode, value, epoch, step, and within the folder, where
        it is saved) or None, and then the column that was ``never_finite``, if that is why; ``epochs``, ``steps``;
        ``seconds`` over all ``attempts``; ``samples`` and ``samples_per_second``; ``shares`` of the time (compute,
        data, evaluation, saving, logging; together 1); the ``loader``'s settings and ``advice``, or None; peak
        ``memory`` in bytes (host, device); ``processes``, ``device``, ``versions`` and ``git``. What the run folder
        does not tell is None.
    """
    end, started = run.end or {}, run.started[-1] if run.started else {}
    facts = _mapping(started.get("circumstances"))
    loader, device = end.get("loader"), facts.get("device")
    shares = shares_of(run.spent)
    cores = loader.get("cores") if isinstance(loader, dict) else None
    return {
        "format": 1,
        "run": run.name,
        "status": end.get("status") or run.status,
        "reason": end.get("reason") or None,
        "best": _best(run),
        "never_finite": run.never_finite,
        "epochs": run.epoch,
        "steps": run.step,
        "seconds": round(run.seconds, 3),
        "attempts": max(len(run.attempts), 1),
        "samples": run.samples or None,
        "samples_per_second": run.samples_per_second,
        "shares": shares,
        "loader": loader,
        "advice": advice((shares or {}).get("data", 0.0), loader, cores, device, run.spent.get("data", 0.0)),
        "memory": {name: _mapping(end.get("memory")).get(name) for name in ("host", "device")},
        "processes": started.get("processes"),
        "device": device,
        "versions": {name: facts[name] for name in _VERSIONS if name in facts} or None,
        "git": facts.get("git"),
    }


def shares_of(spent: Mapping[str, float]) -> dict[str, float] | None:
    """Seconds by part, as shares of their sum; None where nothing is known."""
    total = sum(spent.values())
    return {name: round(spent.get(name, 0.0) / total, 4) for name in PARTS} if total > 0 else None


def _best(run: Run) -> dict[str, Any] | None:
    best = run.best
    names = ("name", "mode", "value", "epoch", "step", "saved")
    return None if best is None else {name: getattr(best, name) for name in names}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# ---------------------------------------------------------------------- waiting for data


def advice(
    share: float,
    loader: Mapping[str, Any] | None = None,
    cores: int | None = None,
    device: str | None = None,
    seconds: float = _WAITED,
) -> str | None:
    """Say what to try when a run waited for data.

    Parameters
    ----------
    share : float
        Of the whole time, from 0 to 1.
    loader : mapping, optional
        ``num_workers``, ``prefetch_factor``, ``pin_memory``, ``persistent_workers``; none of a loader that is no
        DataLoader.
    cores : int, optional
        CPU cores that one process of the training has for itself and its workers.
    device : str, optional
        ``'cuda'``, ``'cpu'``, …
    seconds : float
        How long it waited.

    Returns
    -------
    str or None
        None when that is little: up to a tenth of the time, or less than five seconds.
    """
    if share <= _LARGE or seconds < _WAITED:
        return None
    said = f"{share:.0%} of the time went to waiting for data."
    if device not in (None, "cpu"):  # steps are queued there, so that waiting for a batch need not be idle time
        said += " The device may have been computing meanwhile, so this is the most that can be gained."
    if not loader or not isinstance(loader.get("num_workers"), int):
        return f"{said} The loader is no DataLoader; let it make its batches ahead, in processes of its own."
    settings = {name: loader.get(name) for name in ("num_workers", "prefetch_factor", "pin_memory",
                                                    "persistent_workers")}  # fmt: skip
    has = ", ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
    tries = _tries(settings, cores, device)
    return f"{said} The loader has {has}. Try {_listed(tries)}, and measure again."


def _tries(loader: Mapping[str, Any], cores: int | None, device: str | None) -> list[str]:
    workers = int(loader["num_workers"])
    wanted = min(max(2 * workers, 2), max(cores - 1, 0) if cores else 8)  # the training needs a core, too
    tries = []
    if wanted > workers:
        tries.append(f"num_workers={wanted}" + (f" (of {cores} cores)" if cores else ""))
    else:
        tries.append("cheaper transforms or data that are stored as they are used, since no core is free")
    if workers and (loader.get("prefetch_factor") or 2) < 4:
        tries.append("prefetch_factor=4")
    if max(workers, wanted) and not loader.get("persistent_workers"):
        tries.append("persistent_workers=True")
    if device == "cuda" and not loader.get("pin_memory"):
        tries.append("pin_memory=True")
    return tries


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# ---------------------------------------------------------------------- for the terminal


def effort_lines(summary: Mapping[str, Any]) -> list[str]:
    """Tell in up to three lines what the run took: time, where it went, memory; advice when data were slow.

    Parameters
    ----------
    summary : mapping
        As `summarize` returns it; of it ``samples_per_second``, ``shares``, ``memory`` and ``advice`` are used.
    """
    lines = [_speed(summary), _memory(summary), summary.get("advice")]
    return [line for line in lines if line]


def _speed(summary: Mapping[str, Any]) -> str:
    rate, shares = summary.get("samples_per_second"), summary.get("shares")
    said = [f"{_rounded(rate)} samples/s"] if rate else []
    if shares:
        told = [f"{words} {shares[name]:.0%}" for name, words in PARTS.items()
                if round(100 * shares.get(name, 0.0)) or name == "data"]  # fmt: skip
        said.append(f"time: {', '.join(told)}")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _memory(summary: Mapping[str, Any]) -> str:
    memory = _mapping(summary.get("memory"))
    names = {"host": "this process", "device": "the device"}
    said = [f"{in_units(memory[key])} of {name}" for key, name in names.items() if memory.get(key)]
    return f"Peak memory: {', '.join(said)}." if said else ""


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def duration(seconds: float) -> str:
    """``'0.8 s'``, ``'3 min 20 s'``, ``'2 h 5 min'``, ``'3 d 4 h'``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    left, parts = round(seconds), list[tuple[int, str]]()
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number or parts:
            parts.append((number, name))
    return " ".join(f"{number} {name}" for number, name in parts[:2] if number)


def in_units(size: float) -> str:
    """Bytes as people say them: ``'912 MB'``, ``'3.2 GB'``; a MB is a million bytes."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if size < 99.95 else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
