"""What a step costs on a GPU: the trainer beside a loop written by hand, in the same run.

Run as ``python -m tests.benchmarks.gpu``; ``--help`` lists the options. It needs torch and Accelerate, nothing that is
installed beside them, and takes less than 8 minutes.

Three models train in bf16, as they are and compiled. Each row makes the same steps on the same batches, which lie in
pinned memory. Rows are run in turn, and each is compared with the row that it is against: ``of against`` is its
throughput over that row's, by the medians of the repetitions. "by hand, once more" is the same loop again, which shows
the noise. ``idle`` is the share of the time in which the GPU does nothing, ``waits`` how often in a step the host waits
for the GPU: by torch's own word, and by the profiler. ``MB`` is the most memory, ``bits`` whether the weights are those
of the row that it is against, after as many steps. Convolutions and embeddings need not give the same bits twice on a
GPU, by hand either.

The last table is how long the loop stands still for a checkpoint; see ``tests.benchmarks.saving``.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .. import blocks, saving
from . import rows as table
from .workloads import CARD, TRY, Workload

SECONDS = 420  # of all parts together
SAVING = 45  # of the last one
SAVED = 0.10  # of torch.save's pause is wanted
NO_GPU = (
    "there is no GPU here (torch.cuda.is_available() is False); write --device cpu to try the script with small sizes"
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a try, with small sizes")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; no figures to report")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what does not fit in this time is left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(NO_GPU)
    options.quick |= options.device == "cpu"
    return options


def card(device: torch.device) -> dict[str, Any]:
    """What it is run on."""
    found: dict[str, Any] = {
        "device": platform.processor() or "CPU",
        "torch": torch.__version__,
        "accelerate": version("accelerate"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"device": about.name, "memory": f"{about.total_memory / 2**30:.0f} GiB"}
        found |= {"multiprocessors": about.multi_processor_count, "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
    return found


class Budget:
    """The time that is left, and what was left out for lack of it.

    Parameters
    ----------
    seconds : float
    """

    def __init__(self, seconds: float) -> None:
        self._ends = perf_counter() + seconds
        self.skipped: list[str] = []

    def allows(self, title: str, seconds: float) -> bool:
        """Whether a part that takes so long may begin; else that is noted, and said."""
        left = self._ends - perf_counter()
        if left >= seconds:
            return True
        self.skip(title, f"it takes about {seconds:.0f} s, and {max(left, 0):.0f} s are left (--seconds)")
        return False

    def skip(self, title: str, why: str) -> None:
        """Note, and say, what is left out."""
        self.skipped.append(f"{title}: {why}")
        print(f"left out: {title}: {why}\n", flush=True)


def measure(workload: Workload, compiled: bool, device: torch.device, budget: Budget, quick: bool) -> list[Any]:
    """Print the table of a workload; none if there is no time, or nothing that compiles."""
    title = f"{workload.name}, bf16, {'torch.compile' if compiled else 'eager'}"
    seconds = 0 if quick else workload.seconds * (1 + compiled)
    if not budget.allows(title, seconds):
        return []
    try:
        found = table.rows_of(workload, compiled, device, seconds)
    except Exception as error:
        if not compiled:
            raise
        # Without a compiler for the host, or Triton, the other rows still say something.
        budget.skip(title, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        return []
    finally:
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"{table.format_rows(title, found)}\n", flush=True)
    return found


def measure_saves(device: torch.device, budget: Budget, quick: bool) -> dict[str, Any]:
    """Print how long the loop stands still for a checkpoint."""
    tables: dict[str, Any] = {}
    for case in saving.QUICK if quick else saving.CASES[:2]:
        title = f"Saving, {case.title}"
        if budget.allows(title, 0 if quick else SAVING / 2):
            with tempfile.TemporaryDirectory() as parent:
                found = saving.measure(case, 3 if quick else 5, 1, Path(parent), device=device.type)
            tables[case.title] = saving.figures(found)
            print(f"{saving.format_table(title, tables[case.title])}\n", flush=True)
    return tables


def missed(found: dict[str, list[Any]], saves: dict[str, Any]) -> list[str]:
    """The limits that are missed, in words."""
    said = [
        f"{title}, {row['row']}: {words}"
        for title, rows in found.items()
        for row in rows
        for words in table.missed(row)
    ]
    for title, rows in saves.items():
        ratio = next(row["ratio"] for row in rows if row["row"] == "checkpoint, asynchronous")
        if ratio > SAVED:
            said.append(
                f"Saving, {title}: the loop stands still {ratio:.2f} as long as for torch.save (wanted: {SAVED})"
            )
    return said


def main() -> None:
    """Print all tables, and the limits that are missed."""
    options = parse_arguments()
    device, began = torch.device(options.device), perf_counter()
    if device.type == "cpu":
        torch.set_num_threads(1)
    about, budget = card(device), Budget(options.seconds)
    print("  ".join(f"{name}: {value}" for name, value in about.items()), end="\n\n", flush=True)
    found: dict[str, list[Any]] = {}
    for compiled in (False, True):
        for workload in TRY if options.quick else CARD:
            title = f"{workload.name}{', compiled' * compiled}"
            found[title] = measure(workload, compiled, device, budget, options.quick)
    saves = measure_saves(device, budget, options.quick)
    not_met = missed(found, saves)
    print("\n".join(f"missed: {words}" for words in not_met) or "No limit is missed.")
    if options.quick:
        print("These sizes are for a try: the figures say nothing.")
    print(f"{perf_counter() - began:.0f} s")
    kept = {"card": about, "rows": found, "saving": saves, "left out": budget.skipped, "missed": not_met}
    blocks.keep(kept, options.json)


if __name__ == "__main__":
    main()
