"""``run.json``: of each attempt of a run, what it was started with. No secrets are in it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...checkpoint.disk import in_words, write_json
from ...checkpoint.errors import CheckpointError
from ...files import read_json, writable
from ...redaction import without_secrets
from ..interface import Face


def note_attempt(
    folder: Path, trainer: Face, processes: int, token: str, facts: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> dict[str, Any]:
    """Add an attempt to a run folder's ``run.json``, whole or not at all; return it.

    Parameters
    ----------
    folder : Path
    trainer : Trainer
    processes : int
        How many train.
    token : str
        Of this attempt alone.
    facts : (mapping, mapping)
        Its settings and its circumstances.
    """
    path = folder / "run.json"
    run = read_run_json(folder)
    there = run.get("attempts")
    attempts = there if isinstance(there, list) else []
    attempt: dict[str, Any] = {
        "attempt": len(attempts) + 1,
        "token": token,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": without_secrets(sys.orig_argv),
        "trainer": type(trainer).__name__,
        "seed": trainer.seed,
        "processes": processes,
        "launch": _launch(trainer.accelerator),
        "settings": dict(facts[0]),
        "circumstances": dict(facts[1]),
    }
    attempt = writable(attempt)
    try:
        write_json(path, {"format": 1, "attempts": [*attempts, attempt]})
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be written: {in_words(error, path)}") from error
    return attempt


def read_run_json(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says; empty where there is none, or none that can be read."""
    try:
        run = read_json(folder / "run.json")
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def _launch(accelerator: Any) -> dict[str, Any]:
    return {
        "distributed_type": str(accelerator.distributed_type.value),
        "device": str(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
    }
