"""Run the rows in turn, and boil their times down to a table."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from .output import discarded
from .task import Batch, Row, Task, make_batches, make_model

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Figure:
    """The seconds a step of one row in each repetition, and those of the row it is against."""

    name: str
    against: str
    seconds: list[float]
    reference: list[float]

    @property
    def micros(self) -> float:
        """Median microseconds a step."""
        return median(self.seconds) * 1e6

    @property
    def ratio(self) -> float:
        """Median over the repetitions of this row's time over the other's in the same repetition."""
        return median(own / other for own, other in zip(self.seconds, self.reference, strict=True))

    @property
    def extra_micros(self) -> float:
        """Median over the repetitions of the microseconds that this row adds to a step of the other."""
        return median(own - other for own, other in zip(self.seconds, self.reference, strict=True)) * 1e6

    def as_dict(self) -> dict[str, object]:
        """Return the figures for a JSON file."""
        return {
            "row": self.name,
            "against": self.against,
            "us_per_step": self.micros,
            "ratio": self.ratio,
            "extra_us": self.extra_micros,
            "us_per_step_by_repetition": [s * 1e6 for s in self.seconds],
        }


def run_row(row: Row, batches: list[Batch], warmup: int, output: str) -> tuple[float, Weights]:
    """Run one row once, in silence.

    Returns
    -------
    tuple
        Seconds a step, and the weights that it ends with.
    """
    # A trainer may have changed this for the whole process.
    torch.set_num_threads(1)
    task = Task(make_model(), batches)
    gc.collect()
    with discarded(output):
        row.run(task)
    if len(task.stamps) != len(batches):
        raise RuntimeError(f"{row.name} took {len(task.stamps)} steps on {len(batches)} batches")
    weights = {name: value.detach().clone() for name, value in task.model.state_dict().items()}
    return task.seconds_per_step(warmup), weights


def with_references(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return the rows that `names` asks for (all if empty), and those that they are compared with."""
    if not names:
        return list(rows)
    unknown = set(names) - {row.name for row in rows}
    if unknown:
        raise SystemExit(f"no row {', '.join(sorted(unknown))}; there are {', '.join(r.name for r in rows)}")
    wanted = set(names)
    wanted |= {row.against for row in rows if row.name in wanted}
    wanted |= {row.against for row in rows if row.name in wanted}
    return [row for row in rows if row.name in wanted]


def measure(
    rows: Sequence[Row], steps: int, warmup: int, repetitions: int, output: str
) -> tuple[list[Figure], list[str]]:
    """Run every row once a repetition, beginning with another row each time.

    Returns
    -------
    tuple
        The figures, and the names of the rows that did not end with the weights of the row they are against.
    """
    batches = make_batches(warmup + steps)
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    weights: dict[str, Weights] = {}
    for repetition in range(repetitions):
        first = repetition % len(rows)
        for row in (*rows[first:], *rows[:first]):
            taken, weights[row.name] = run_row(row, batches, warmup, output)
            seconds[row.name].append(taken)
    figures = [Figure(row.name, row.against, seconds[row.name], seconds[row.against]) for row in rows]
    # "pytorch+clip" rightly ends elsewhere than "pytorch".
    comparable = [row for row in rows if ("clip" in row.name) == ("clip" in row.against)]
    differing = [row.name for row in comparable if not _same(weights[row.name], weights[row.against])]
    return figures, differing


def _same(one: Weights, other: Weights) -> bool:
    """Whether two rows did the same work, up to rounding."""
    return all(torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-4) for name in one)


def format_table(figures: Sequence[Figure]) -> str:
    """Lay the figures out."""
    width = max(len(figure.name) for figure in figures)
    lines = [f"{'row':<{width}}  {'µs a step':>10}  {'ratio':>6}  {'extra µs':>9}  against"]
    lines += [
        f"{f.name:<{width}}  {f.micros:>10.1f}  {f.ratio:>6.2f}  {f.extra_micros:>9.1f}  {f.against}" for f in figures
    ]
    return "\n".join(lines)
