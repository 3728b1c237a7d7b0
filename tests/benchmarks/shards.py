"""What micro-batches and the bit-identical mode cost, on 1 and 2 processes: beside loops by hand that accumulate.

Run as ``python -m tests.benchmarks.shards``; ``--help`` lists the options.

A batch of 32 samples is one forward and backward a process for the plain trainer, and as many of them as it has pieces
for the others. ``by hand`` is a plain loop over pieces (with DistributedDataParallel, and no_sync before the last one,
on several processes), ``micro-batches`` is ``gradient_accumulation_steps``, which gets the batch and cuts it itself,
and ``shards`` sums the gradients in one fixed tree.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from . import blocks, group
from .blocks import Block
from .shares import QUICK_TINY, TINY, WIDE, Rows, train_by_hand, train_zae

PROCESSES = (1, 2)
SHARDS = (4, 8)


def measure(quick: bool, repetitions: int) -> dict[str, list[dict[str, Any]]]:
    """Measure both models (a tiny one only when it is to be quick); what process 0 returns is the result."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    found: dict[str, list[dict[str, Any]]] = {}
    for size in (QUICK_TINY,) if quick else (TINY, WIDE):
        run = Rows(size)
        rows, pairs = [Block("plain", run.block("plain", train_zae), "plain")], list[tuple[str, str]]()
        for shards in SHARDS:
            pieces = shards // count
            by_hand, cut, summed = f"by hand, {pieces} pieces", f"{pieces} micro-batches", f"shards={shards}"
            ways = {
                by_hand: partial(train_by_hand, pieces=pieces),
                cut: partial(train_zae, gradient_accumulation_steps=pieces),
                summed: partial(train_zae, shards=shards),
            }
            rows += [Block(name, run.block(name, train), "plain") for name, train in ways.items()]
            pairs += [(cut, by_hand), (summed, by_hand), (summed, cut)]
        measured = blocks.alternate(rows, repetitions)
        measured += [blocks.beside(measured, *pair) for pair in pairs]
        found[size.name] = [comparison.as_dict() for comparison in measured]
    return found


def measure_all(quick: bool, repetitions: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Measure on each number of processes, and print a table for each of them and each model."""
    found = {}
    for count in PROCESSES:
        on = f"{count} process{'es' if count > 1 else ''}"
        found[on] = group.start(f"{__package__}.shards", count, quick=quick, repetitions=repetitions)
        for model, rows in found[on].items():
            print(f"{blocks.format_table(f'MLP {model}, {on}, {repetitions} repetitions', rows)}\n", flush=True)
    return found


def main() -> None:
    """Print the tables."""
    options = blocks.parse("shards", __doc__, repetitions=11)
    blocks.keep(measure_all(options.quick, options.repetitions), options.json)


if __name__ == "__main__":
    main()
