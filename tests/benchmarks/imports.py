"""Import time in fresh interpreters, and what an import drags in.

All byte code is read from a folder of its own, which the first import fills: a checkout may not be allowed to keep any
(``PYTHONDONTWRITEBYTECODE``), and would be compiled anew each time beside a library that was compiled when it was
installed. Beside the wall clock stands the processor time of the interpreter, in which others have less of a say.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1.05
OPTIONAL = ("wandb", "neptune", "matplotlib")


def time_import(module: str, byte_code: str) -> tuple[float, float]:
    """The seconds, and those of the processor, that a fresh interpreter takes to import `module` and leave."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    used, begin = _used(), perf_counter()
    command = [sys.executable, "-W", "ignore", "-c", f"import {module}"]
    subprocess.run(command, cwd=ROOT, check=True, env=kept | {"PYTHONPYCACHEPREFIX": byte_code})
    return perf_counter() - begin, _used() - used


def _used() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


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


def alternate_imports(
    modules: Sequence[str], repetitions: int, warm: bool = True
) -> dict[str, list[tuple[float, float]]]:
    """Return what each module's imports take, by both clocks; they take turns, if `warm` after one that counts not."""
    seconds: dict[str, list[tuple[float, float]]] = {module: [] for module in modules}
    with tempfile.TemporaryDirectory() as byte_code:
        for module in modules if warm else ():
            time_import(module, byte_code)  # writes the byte code, reads the files into the cache
        for _ in range(repetitions):
            for module in modules:
                seconds[module].append(time_import(module, byte_code))
    return seconds


def measure_imports(repetitions: int) -> dict[str, Any]:
    """Import zae-engine and Accelerate in turn.

    Returns
    -------
    dict
        The median seconds of each, the median ratio of neighbours by the wall clock and by the processor's, and what
        became of the optional packages.
    """
    accelerate, own = alternate_imports(("accelerate", "zae_engine.trainer"), repetitions).values()
    wall, processor = (
        median(o / a for o, a in zip(ours, theirs, strict=True))
        for ours, theirs in zip(zip(*own, strict=True), zip(*accelerate, strict=True), strict=True)
    )
    return {
        "accelerate_seconds": median(seconds for seconds, _ in accelerate),
        "zae_engine_seconds": median(seconds for seconds, _ in own),
        "ratio": wall,
        "processor_ratio": processor,
        "optional": loaded_by("zae_engine.trainer"),
    }
