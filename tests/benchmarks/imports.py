"""Import time in fresh interpreters, and what an import drags in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("wandb", "neptune", "matplotlib")


def time_import(module: str) -> float:
    """Return the seconds that a fresh interpreter takes to import `module` and leave."""
    begin = perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"import {module}"], cwd=ROOT, check=True)
    return perf_counter() - begin


def loaded_by(module: str) -> dict[str, str]:
    """Return for each optional package whether importing `module` imports it too."""
    code = f"import sys, json, {module}; print(json.dumps([m for m in {OPTIONAL!r} if m in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    loaded = json.loads(output)
    absent = [name for name in OPTIONAL if find_spec(name) is None]
    return {
        name: "imported" if name in loaded else "not installed" if name in absent else "not imported"
        for name in OPTIONAL
    }


def alternate_imports(modules: Sequence[str], repetitions: int, warm: bool = True) -> dict[str, list[float]]:
    """Return the seconds of each module's imports, which take turns; if `warm`, after one that does not count."""
    for module in modules if warm else ():
        time_import(module)  # writes the byte code, reads the files into the cache
    seconds: dict[str, list[float]] = {module: [] for module in modules}
    for _ in range(repetitions):
        for module in modules:
            seconds[module].append(time_import(module))
    return seconds


def measure_imports(repetitions: int) -> dict[str, Any]:
    """Import zae-engine and Accelerate in turn.

    Returns
    -------
    dict
        The median seconds of each, the median ratio of neighbours, and what became of the optional packages.
    """
    accelerate, own = alternate_imports(("accelerate", "zae_engine.trainer"), repetitions).values()
    return {
        "accelerate_seconds": median(accelerate),
        "zae_engine_seconds": median(own),
        "ratio": median(o / a for o, a in zip(own, accelerate, strict=True)),
        "optional": loaded_by("zae_engine.trainer"),
    }
