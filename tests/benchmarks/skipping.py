"""How long it takes to begin an epoch in its middle: until the ids of batch number 1,000,000 are there.

Run as ``python -m tests.benchmarks.skipping``; ``--help`` lists the options.

The time is taken from asking the plan for its first batch until the dataset is asked for that batch's first sample. The
dataset holds nothing, notes what it is asked for, and refuses more samples than that one batch has; what it was asked
for is compared with the sampler's own order. ``order`` is what a shuffled epoch costs wherever it begins: the
permutation of all ids, ``torch.randperm``. ``from 0`` is the plan at the epoch's beginning, and ``skip_first_batches``
is Accelerate's way to the same batch.
"""

from __future__ import annotations

import gc
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from accelerate import skip_first_batches
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from zae_engine.trainer.data.layout import Start
from zae_engine.trainer.data.plan import BatchPlan

from . import blocks
from .blocks import Block

START, BATCHES = 1_000_000, 1_100_000
QUICK_START, QUICK_BATCHES = 10_000, 11_000
SEED = 5


class Watched(Dataset[int]):
    """Samples that are their own ids; it notes what it is asked for, and when it was asked first.

    Parameters
    ----------
    size : int
        Samples.
    allowed : int
        How many of them may be asked for; one more is a RuntimeError.
    """

    def __init__(self, size: int, allowed: int) -> None:
        self.size, self.allowed = size, allowed
        self.asked: list[int] = []
        self.when = 0.0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, sample: int) -> int:
        if not self.asked:
            self.when = perf_counter()
        if len(self.asked) == self.allowed:
            raise RuntimeError(f"sample {sample} was loaded beyond the batch that was wanted")
        self.asked.append(sample)
        return sample


def make_loader(batch_size: int, batches: int, shuffled: bool) -> DataLoader[int]:
    """Return a fresh loader over ``batch_size * batches`` samples."""
    data = Watched(batch_size * batches, batch_size)
    generator = torch.Generator().manual_seed(SEED)
    sampler = RandomSampler(data, generator=generator) if shuffled else SequentialSampler(data)
    return DataLoader(data, batch_size=batch_size, sampler=sampler)


def expected(batch_size: int, batches: int, shuffled: bool, start: int) -> list[int]:
    """The ids of batch number `start`, in the order that torch's own sampler gives."""
    ids = range(start * batch_size, (start + 1) * batch_size)
    if not shuffled:
        return list(ids)
    order = torch.randperm(batch_size * batches, generator=torch.Generator().manual_seed(SEED))
    return [int(i) for i in order[ids.start : ids.stop]]


def first_batch(walk: Any, loader: Any, wanted: list[int]) -> float:
    """Seconds until the ids of the first batch of ``walk(loader)`` are there; refuse other ids than `wanted`."""
    data = loader.dataset
    gc.collect()
    begin = perf_counter()
    next(iter(walk(loader)))
    if data.asked != wanted:
        raise RuntimeError(f"samples {data.asked[:4]} … were loaded instead of {wanted[:4]} …")
    return float(data.when - begin)


def draw(size: int) -> float:
    """Seconds that the permutation of `size` ids takes."""
    generator = torch.Generator().manual_seed(SEED)
    gc.collect()
    begin = perf_counter()
    torch.randperm(size, generator=generator)
    return perf_counter() - begin


def measure(batch_size: int, shuffled: bool, quick: bool, repetitions: int, skip: bool) -> list[dict[str, Any]]:
    """Measure one loader.

    Parameters
    ----------
    skip : bool
        Measure Accelerate's way, too.
    """
    start, batches = (QUICK_START, QUICK_BATCHES) if quick else (START, BATCHES)
    case = (batch_size, batches, shuffled)
    there, zero = expected(*case, start), expected(*case, 0)

    def run(walk: Any, wanted: list[int]) -> float:
        return first_batch(walk, make_loader(*case), wanted)

    rows = [Block("from 0", partial(run, BatchPlan, zero), "from 0")]
    rows.append(Block(f"from {start:,}", partial(run, partial(BatchPlan, start=Start(start)), there), "from 0"))
    if shuffled:
        rows.append(Block("order", partial(draw, batch_size * batches), "from 0"))
    if skip:
        ahead = partial(skip_first_batches, num_batches=start)
        rows.append(Block("skip_first_batches", partial(run, ahead, there), "from 0"))
    found = blocks.alternate(rows, repetitions)
    figures = [comparison.as_dict() for comparison in found]
    order = found[2].seconds if shuffled else [0.0] * repetitions
    for figure, comparison in zip(figures, found, strict=True):
        beyond = [own - drawn for own, drawn in zip(comparison.seconds, order, strict=True)]
        figure["beyond_order_ms"] = 1e3 * median(beyond)
        figure["beyond_order_ms_quartiles"] = [1e3 * q for q in blocks.quartiles(beyond)]
    return figures


def format_table(title: str, rows: list[dict[str, Any]]) -> str:
    """Lay out the milliseconds until the first batch, and those beyond drawing the order."""
    width = max(len(row["row"]) for row in rows)
    lines = [f"{title}\n", f"{'':<{width}}  {'ms':>9}  {'quartiles':>19}  {'beyond the order':>16}  {'quartiles':>19}"]
    for row in rows:
        low, high = (us / 1e3 for us in row["us_quartiles"])
        less, more = row["beyond_order_ms_quartiles"]
        lines.append(
            f"{row['row']:<{width}}  {row['us'] / 1e3:>9,.2f}  {f'{low:,.2f} – {high:,.2f}':>19}"
            f"  {row['beyond_order_ms']:>16,.2f}  {f'{less:,.2f} – {more:,.2f}':>19}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print a table for each loader."""
    options = blocks.parse("skipping", __doc__, repetitions=7)
    torch.set_num_threads(1)
    found = {}
    for batch_size in (1, 32):
        for shuffled in (False, True):
            title = f"{'shuffled' if shuffled else 'in order'}, batches of {batch_size}"
            found[title] = measure(batch_size, shuffled, options.quick, options.repetitions, skip=True)
            print(f"{format_table(title, found[title])}\n", flush=True)
    blocks.keep(found, options.json)


if __name__ == "__main__":
    main()
