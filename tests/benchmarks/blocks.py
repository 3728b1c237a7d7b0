"""Blocks of work that are timed in turn, so that a noisy machine disturbs all of them alike, and their table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Block:
    """A line of a table.

    Attributes
    ----------
    name : str
    run : callable
        Does the work once, and returns the seconds that a step (or whatever else is counted) took.
    against : str
        The name of the block that it is compared with.
    """

    name: str
    run: Callable[[], float]
    against: str


@dataclass(frozen=True)
class Comparison:
    """The seconds of a block in each repetition, and those of the block it is against."""

    name: str
    against: str
    seconds: list[float]
    reference: list[float]

    @property
    def ratios(self) -> list[float]:
        """This block's time over the other's, of each repetition."""
        return [own / other for own, other in zip(self.seconds, self.reference, strict=True)]

    @property
    def extra(self) -> list[float]:
        """The seconds that this block takes beyond the other, of each repetition."""
        return [own - other for own, other in zip(self.seconds, self.reference, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for a JSON file: medians, quartiles, and the seconds of each repetition."""
        return {
            "row": self.name,
            "against": self.against,
            "us": median(self.seconds) * 1e6,
            "us_quartiles": [1e6 * q for q in quartiles(self.seconds)],
            "ratio": median(self.ratios),
            "ratio_quartiles": list(quartiles(self.ratios)),
            "extra_us": median(self.extra) * 1e6,
            "seconds_by_repetition": self.seconds,
        }


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile; of a single value, that one twice."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third


def alternate(blocks: Sequence[Block], repetitions: int) -> list[Comparison]:
    """Run every block once a repetition, beginning with another one each time, after one round that does not count."""
    seconds: dict[str, list[float]] = {block.name: [] for block in blocks}
    for block in blocks:
        block.run()
    for repetition in range(repetitions):
        first = repetition % len(blocks)
        for block in (*blocks[first:], *blocks[:first]):
            seconds[block.name].append(block.run())
    return [Comparison(b.name, b.against, seconds[b.name], seconds[b.against]) for b in blocks]


def format_table(title: str, rows: Sequence[dict[str, Any]], counted: str = "step") -> str:
    """Lay out what `Comparison.as_dict` returned, with the quartiles beside the medians."""
    width = max(len(row["row"]) for row in rows)
    head = f"µs a {counted}"
    lines = [
        f"{title}\n",
        f"{'row':<{width}}  {head:>12}  {'quartiles':>19}  {'ratio':>6}  {'quartiles':>11}  {'extra µs':>10}  against",
    ]
    for row in rows:
        low, high = row["us_quartiles"]
        less, more = row["ratio_quartiles"]
        lines.append(
            f"{row['row']:<{width}}  {row['us']:>12,.1f}  {f'{low:,.1f} – {high:,.1f}':>19}  {row['ratio']:>6.3f}"
            f"  {f'{less:.2f} – {more:.2f}':>11}  {row['extra_us']:>10,.1f}  {row['against']}"
        )
    return "\n".join(lines)


def beside(found: Sequence[Comparison], name: str, against: str) -> Comparison:
    """Compare two of the blocks that were run, whatever they were against."""
    by_name = {comparison.name: comparison for comparison in found}
    return Comparison(name, against, by_name[name].seconds, by_name[against].seconds)


def parse(
    name: str, description: str | None, repetitions: int, arguments: list[str] | None = None
) -> argparse.Namespace:
    """Return the options that every command of this kind has: ``repetitions``, ``quick`` and ``json``."""
    return settle(make_parser(name, description, repetitions).parse_args(arguments))


def make_parser(name: str, description: str | None, repetitions: int) -> argparse.ArgumentParser:
    """Return the parser of these options, for a command that adds some of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.benchmarks.{name}", description=description)
    parser.add_argument("--repetitions", type=int, default=repetitions, help="runs of each row")
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it works; no figures to report"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return parser


def settle(options: argparse.Namespace) -> argparse.Namespace:
    """A quick run runs once."""
    if options.quick:
        options.repetitions = 1
    return options


def keep(found: Any, file: Path | None) -> None:
    """Write the figures, when a file is given."""
    if file is not None:
        file.write_text(json.dumps(found, indent=2), encoding="utf-8")
