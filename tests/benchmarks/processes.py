"""What zae-engine costs on two processes, beside a hand-written loop with DistributedDataParallel, and beside others.

Run as ``python -m tests.benchmarks.processes``; ``--help`` lists the options. Peers that are not installed are left
out.

All rows live in the same two processes on the CPU (gloo), and train in turn on the same shares of the same batches of
32. A step is timed from its forward to the next one's, within one epoch, so that set-up does not count. ``ddp again``
is ``ddp`` a second time: how far its ratio is from 1 is the machine's noise. The processor's time of a step leaves out
what a process waits for the other one, and is less disturbed by what else runs on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any

from accelerate.utils import DataLoaderConfiguration

from . import blocks, group, loops
from .blocks import Block
from .output import discarded
from .shares import Problem, Rows, sizes, train_by_hand, train_zae
from .task import MAX_NORM

PROCESSES = 2
PEERS = {
    "lightning": "ddp_lightning",
    "transformers": "ddp_transformers",
    "pytorch-accelerated": "ddp_pytorch_accelerated",
    "ignite": "ddp_ignite",
    "torchtnt": "ddp_torchtnt",
    "composer": "ddp_composer",
}


def train_accelerate(problem: Problem) -> None:
    """Train with Accelerate, whose processes share each of the loader's batches."""
    loops.train_accelerate(problem, dataloader_config=DataLoaderConfiguration(split_batches=True))


def load_rows() -> tuple[dict[str, tuple[Callable[[Problem], None], str]], dict[str, str]]:
    """Import the peers.

    Returns
    -------
    tuple
        How each row trains and what it is against, and for each peer that cannot be imported the reason.
    """
    rows: dict[str, tuple[Callable[[Problem], None], str]] = {
        "ddp": (train_by_hand, "ddp"),
        "zae-engine": (train_zae, "ddp"),
        "ddp again": (train_by_hand, "ddp"),
        "ddp+clip": (partial(train_by_hand, max_norm=MAX_NORM), "ddp"),
        "zae-engine+clip": (partial(train_zae, gradient_clip=MAX_NORM), "ddp+clip"),
        "accelerate": (train_accelerate, "ddp"),
    }
    skipped: dict[str, str] = {}
    for peer, module in PEERS.items():
        try:
            with discarded("file"):
                rows[peer] = import_module(f"{__package__}.peers.{module}").train, "ddp"
        except ImportError as error:
            skipped[peer] = str(error)
    return rows, skipped


def measure(
    quick: bool, repetitions: int, peers: bool, only: Sequence[str] = (), models: int | None = None
) -> dict[str, Any]:
    """Measure every row, in each of the processes; what process 0 returns is the result.

    Parameters
    ----------
    quick : bool
    repetitions : int
    peers : bool
        Whether the other trainers' rows are measured, too.
    only : sequence of str
        The rows to measure; all by default.
    models : int
        How many of the models, the tiny one first; all by default.

    Returns
    -------
    dict
        What was skipped, and for each model what the rows took.
    """
    rows, skipped = load_rows()
    if not peers:
        rows = {name: row for name, row in rows.items() if name not in PEERS}
    if only:
        rows = {name: row for name, row in rows.items() if name in only}
    found: dict[str, Any] = {"skipped": skipped, "models": {}}
    for size in sizes(quick)[:models]:
        run = Rows(size)
        table = [Block(name, run.block(name, train), against) for name, (train, against) in rows.items()]
        figures = [comparison.as_dict() for comparison in blocks.alternate(table, repetitions)]
        for figure in figures:
            own, other = run.cpu[figure["row"]][1:], run.cpu[figure["against"]][1:]
            figure["cpu_us"] = median(own) * 1e6
            figure["cpu_ratio"] = median(a / b for a, b in zip(own, other, strict=True))
            # Clipping rightly ends elsewhere.
            like = figure["against"] if ("clip" in figure["row"]) == ("clip" in figure["against"]) else figure["row"]
            figure["weight_difference"] = run.difference(figure["row"], like)
        found["models"][size.name] = figures
    return found


def main() -> None:
    """Measure in two processes, and print a table for each model."""
    options = blocks.parse("processes", __doc__, repetitions=31)
    settings = {"quick": options.quick, "repetitions": options.repetitions, "peers": not options.quick}
    found = group.start(f"{__package__}.processes", PROCESSES, **settings)
    for name, reason in found["skipped"].items():
        print(f"skipped {name}: {reason}")
    for model, rows in found["models"].items():
        print(blocks.format_table(f"MLP {model}, {PROCESSES} processes, {options.repetitions} repetitions", rows))
        print("\nthe processor's time:")
        for row in rows:
            print(
                f"{row['row']:<16} {row['cpu_us']:>10,.1f} µs a step, ratio {row['cpu_ratio']:.3f} to {row['against']}"
            )
            if row["weight_difference"] > 1e-4:
                print(f"note: {row['row']} ended {row['weight_difference']:.1e} from the weights of {row['against']}")
        print(flush=True)
    blocks.keep(found, options.json)


if __name__ == "__main__":
    main()
