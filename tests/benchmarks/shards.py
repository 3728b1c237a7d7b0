"""What the bit-identical mode costs: ``shards=8`` and ``shards=4`` beside the plain trainer, on 1 and 2 processes.

Run as ``python -m tests.benchmarks.shards``; ``--help`` lists the options.

A batch of 32 samples is one forward and backward a process for the plain trainer, and as many of them as it has shards
for the bit-identical one. ``micro-batches`` are as many forwards and backwards without the fixed tree of sums, through
``gradient_accumulation_steps``, so the difference between the two is what the mode itself costs.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from . import blocks, group
from .blocks import Block
from .shares import Rows, sizes, train_zae

PROCESSES = (1, 2)
SHARDS = (4, 8)


def measure(quick: bool, repetitions: int) -> dict[str, list[dict[str, Any]]]:
    """Measure both models (the tiny one only when it is to be quick); what process 0 returns is the result."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    found: dict[str, list[dict[str, Any]]] = {}
    for size in sizes(quick)[: 1 if quick else None]:
        run = Rows(size)
        rows = [Block("plain", run.block("plain", train_zae), "plain")]
        pairs = {f"shards={shards}": f"{shards // count} micro-batches" for shards in SHARDS}
        for shards, (name, pieces) in zip(SHARDS, pairs.items(), strict=True):
            cut = partial(train_zae, gradient_accumulation_steps=shards // count)
            rows.append(Block(pieces, run.block(pieces, cut), "plain"))
            rows.append(Block(name, run.block(name, partial(train_zae, shards=shards)), "plain"))
        measured = blocks.alternate(rows, repetitions)
        measured += [blocks.beside(measured, *pair) for pair in pairs.items()]
        found[size.name] = [comparison.as_dict() for comparison in measured]
    return found


def main() -> None:
    """Print a table for each model and number of processes."""
    options = blocks.parse("shards", __doc__, repetitions=11)
    found = {}
    for count in PROCESSES:
        on = f"{count} process{'es' if count > 1 else ''}"
        found[on] = group.start(f"{__package__}.shards", count, quick=options.quick, repetitions=options.repetitions)
        for model, rows in found[on].items():
            title = f"MLP {model}, {on}, {options.repetitions} repetitions"
            print(f"{blocks.format_table(title, rows)}\n", flush=True)
    blocks.keep(found, options.json)


if __name__ == "__main__":
    main()
