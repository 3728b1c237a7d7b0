"""What the machine and the loader are like, for the end of a run."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """The most memory so far, in bytes: of this process, and of its GPU."""
    return {"host": _resident(), "device": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None}


def _resident() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def loader_facts(loader: Any) -> dict[str, Any]:
    """What of a loader decides how quickly its batches come."""
    names = ("num_workers", "prefetch_factor", "pin_memory", "persistent_workers")
    facts = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    return facts | {"cores": max(1, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))} if facts else {}


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
