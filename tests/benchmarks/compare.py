"""zae-engine beside other trainers: one run, one table in Markdown.

Run as ``python -m tests.benchmarks.compare``; ``--help`` lists the options. Peers that are not installed are left out;
``pip install lightning transformers pytorch-accelerated pytorch-ignite torchtnt keras 'setuptools<81'`` gets them (the
last one is for torchtnt). Composer, ``mosaicml``, asks for an older torch, and so for an environment of its own.

Every time but the import's is a ratio to the same work written by hand with PyTorch alone: the median over the
repetitions, in which the trainers take turns. ``the same loop again`` tells by how far it is from 1 how
noisy the machine was.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

import zae_engine

from . import accumulation, blocks, group, imports, loops, micro_batches, peers, processes, zae
from .measure import measure
from .task import Row

HAND, AGAIN = "pytorch", "again"


@dataclass(frozen=True)
class Trainer:
    """A row of the table.

    Attributes
    ----------
    name : str
        What the other benchmarks call it.
    label : str
        With braces where the version goes.
    module : str
        What its user imports.
    package : str
        Whose version is shown.
    """

    name: str
    label: str
    module: str
    package: str

    def __str__(self) -> str:
        number = zae_engine.__version__ if self.package == "zae-engine" else version(self.package)
        return self.label.format(number.partition("+")[0])


TRAINERS = {
    trainer.name: trainer
    for trainer in (
        Trainer("zae-engine", "zae-engine {}", "zae_engine.trainer", "zae-engine"),
        Trainer(HAND, "PyTorch {} alone", "torch", "torch"),
        Trainer("accelerate", "Accelerate {} alone", "accelerate", "accelerate"),
        Trainer("ignite", "ignite {}", "ignite.engine", "pytorch-ignite"),
        Trainer("torchtnt", "torchtnt {}", "torchtnt.framework", "torchtnt"),
        Trainer("pytorch-accelerated", "pytorch-accelerated {}", "pytorch_accelerated", "pytorch-accelerated"),
        Trainer("transformers", "transformers' Trainer {}", "transformers.trainer", "transformers"),
        Trainer("lightning", "Lightning {}", "lightning", "lightning"),
        Trainer("composer", "Composer {}", "composer", "mosaicml"),
        Trainer("keras", "Keras {}", "keras", "keras"),
    )
}


@dataclass
class Run:
    """What is measured, and what was found beside the figures.

    Attributes
    ----------
    names : list of str
        The trainers.
    repetitions : int
    quick : bool
    notes : list of str
        What whoever reads the table has to know.
    details : dict
        All that the benchmarks found, for each column.
    """

    names: list[str]
    repetitions: int
    quick: bool
    notes: list[str]
    details: dict[str, Any]

    def skip(self, reasons: dict[str, str], column: str) -> None:
        """Note why a trainer that has a row has no figure."""
        self.notes += [f"{name} has no figure ({column}): {reasons[name]}" for name in self.names if name in reasons]


Cells = dict[str, float]


def _steps(run: Run, column: str, rows: Iterable[Row], suffix: str = "") -> Cells:
    """Time a step of those of the rows that a trainer of the run has."""
    by_name = {row.name: row for row in rows}
    hand = by_name[HAND + suffix]
    again = replace(hand, name=f"{HAND} {AGAIN}{suffix}", against=hand.name)
    chosen = [by_name[name + suffix] for name in run.names if name + suffix in by_name and name != HAND]
    steps, warmup = (20, 4) if run.quick else (400, 50)
    own = replace(hand, against=hand.name)
    figures, differing = measure((own, again, *chosen), steps, warmup, run.repetitions, "terminal")
    run.notes += [f"{name} did not end with the weights of {hand.name} ({column})" for name in differing]
    run.details[column] = [figure.as_dict() for figure in figures]
    ratios = {figure.name: figure.ratio for figure in figures}
    cells = {row.name.removesuffix(suffix): ratios[row.name] for row in chosen}
    return cells | {HAND: 1.0, AGAIN: ratios[again.name]}


def time_training(run: Run, column: str) -> Cells:
    """A training step."""
    return _steps(run, column, (*loops.TRAINING, *zae.TRAINING, *peers.load_rows()[0]))


def time_clipping(run: Run, column: str) -> Cells:
    """A training step with clipping."""
    return _steps(run, column, (*loops.TRAINING, *zae.TRAINING, *peers.load_rows("CLIPPED")[0]), "+clip")


def time_evaluation(run: Run, column: str) -> Cells:
    """An evaluation step."""
    return _steps(run, column, (*loops.EVALUATION, *zae.EVALUATION, *peers.load_rows("EVALUATION")[0]))


def _blocks(run: Run, column: str, rows: Sequence[dict[str, Any]], hand: str) -> Cells:
    """Turn what a benchmark of blocks found into cells."""
    run.details[column] = rows
    for row in rows:
        if row["weight_difference"] > 1e-4:
            run.notes.append(f"{row['row']} ended {row['weight_difference']:.0e} from the weights by hand ({column})")
    ratios = {row["row"]: row["ratio"] for row in rows}
    names = {hand: HAND, f"{hand} again": AGAIN}
    return {names.get(name, name): ratio for name, ratio in ratios.items()}


def time_micro_batches(run: Run, column: str) -> Cells:
    """A step of several micro-batches."""
    found = group.start(micro_batches.__name__, 1, quick=run.quick, repetitions=run.repetitions, only=run.names)
    run.skip(found["skipped"], column)
    return _blocks(run, column, found["rows"], micro_batches.BY_HAND)


def time_processes(run: Run, column: str) -> Cells:
    """A step on two processes."""
    settings = {"quick": run.quick, "repetitions": run.repetitions, "peers": True, "models": 1}
    only = ["ddp", "ddp again", *run.names]
    found = group.start(processes.__name__, processes.PROCESSES, only=only, **settings)
    run.skip(found["skipped"], column)
    (rows,) = found["models"].values()
    return _blocks(run, column, rows, "ddp")


def differ(run: Run, column: str) -> Cells:
    """The weights after micro-batches against those after whole batches, the worse of two lengths of the data."""
    loaded, skipped = accumulation.load_trainers()
    run.skip(skipped, column)
    trainers = {name: train for name, train in loaded.items() if name in run.names}
    outcomes = {samples: accumulation.compare(trainers, samples) for samples in accumulation.SAMPLES}
    run.details[column] = {samples: {o.name: o.difference for o in each} for samples, each in outcomes.items()}
    return {name: max(found[name] for found in run.details[column].values()) for name in trainers}


def time_imports(run: Run, column: str) -> Cells:
    """The seconds of an import."""
    modules = {name: TRAINERS[name].module for name in run.names}
    found = imports.alternate_imports(list(modules.values()), -(-run.repetitions // 3), not run.quick)
    seconds = {module: [wall for wall, _ in times] for module, times in found.items()}
    run.details[column] = seconds
    return {name: median(seconds[module]) for name, module in modules.items()}


def show_ratio(value: float) -> str:
    """Two digits after the point."""
    return f"{value:.2f}"


def show_difference(value: float) -> str:
    """A power of ten, and the digit before it."""
    digit, _, exponent = f"{value:.0e}".partition("e")
    return "0" if value == 0 else f"{digit}e{int(exponent)}"


def show_seconds(value: float) -> str:
    """Seconds."""
    return f"{value:.1f} s"


@dataclass(frozen=True)
class Column:
    """What is measured of every trainer, and how it is shown."""

    title: str
    measure: Callable[[Run, str], Cells]
    show: Callable[[float], str] = show_ratio


COLUMNS = {
    "step": Column("training step", time_training),
    "clip": Column("with clipping", time_clipping),
    "eval": Column("evaluation step", time_evaluation),
    "micro": Column(f"{accumulation.PARTS} micro-batches", time_micro_batches),
    "processes": Column("two processes", time_processes),
    "weights": Column("micro-batches change the weights by", differ, show_difference),
    "import": Column("import", time_imports, show_seconds),
}


def present(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the trainers that can be measured, of those asked for (all if empty), and a note for each other one."""
    unknown = set(names) - set(TRAINERS)
    if unknown:
        raise SystemExit(f"no row {', '.join(sorted(unknown))}; there are {', '.join(TRAINERS)}")
    _, missing = peers.load_rows()
    absent = {peer: reason for peer, reason in missing.items() for name in TRAINERS if TRAINERS[name].package == peer}
    wanted = [name for name in TRAINERS if name in (names or TRAINERS) or name == HAND]
    notes = [
        f"{name} is left out: {absent[TRAINERS[name].package]}" for name in wanted if TRAINERS[name].package in absent
    ]
    return [name for name in wanted if TRAINERS[name].package not in absent], notes


def format_table(names: Sequence[str], cells: dict[str, Cells]) -> str:
    """Lay the table out in Markdown, the rows of one loop twice one below the other."""
    lines = [f"| | {' | '.join(COLUMNS[column].title for column in cells)} |", "|---" * (len(cells) + 1) + "|"]
    where = names.index(HAND) + 1
    for name in (*names[:where], AGAIN, *names[where:]):
        label = "the same loop again" if name == AGAIN else str(TRAINERS[name])
        shown = [COLUMNS[column].show(found[name]) if name in found else "–" for column, found in cells.items()]
        if name == "zae-engine":
            label, shown = f"**{label}**", [f"**{cell}**" for cell in shown]
        lines.append(f"| {label} | {' | '.join(shown)} |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = blocks.make_parser("compare", __doc__, repetitions=15)
    parser.add_argument("--rows", type=lambda names: names.split(","), default=[], help="names, with commas")
    parser.add_argument("--only", choices=tuple(COLUMNS), action="append", help="a column; may be given several times")
    return blocks.settle(parser.parse_args(arguments))


def main() -> None:
    """Measure a column after the other, and print the table."""
    options = parse_arguments()
    # Trainers that pick a device themselves would leave the CPU otherwise.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    names, notes = present(options.rows)
    run = Run(names, options.repetitions, options.quick, notes, {})
    cells = {column: COLUMNS[column].measure(run, column) for column in options.only or COLUMNS}
    print(format_table(names, cells))
    for note in run.notes:
        print(f"note: {note}")
    blocks.keep({"cells": cells, "notes": run.notes, "details": run.details}, options.json)


if __name__ == "__main__":
    main()
