"""What zae-engine costs beside a bare PyTorch loop, and beside other trainers.

Run as ``python -m tests.benchmarks.overhead``; ``--help`` lists the options. Peers that are not installed are
left out.

A step is timed from its beginning to the next one's, within one epoch, so that set-up does not count. Neither
does what a trainer puts off until the epoch's end; zae-engine reads its losses there and whenever its bar is
drawn, ten times a second. With ``--steps 4000`` most of that falls between the steps, too.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import loops, zae
from .calls import report_calls
from .imports import measure_imports
from .measure import Figure, format_table, measure, with_references
from .memory import measure_memory
from .peers import load_rows


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overhead", description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="timed steps of one run")
    parser.add_argument("--warmup", type=int, default=50, help="steps of one run before them")
    parser.add_argument("--repetitions", type=int, default=15, help="runs of each row")
    parser.add_argument("--rows", type=lambda names: names.split(","), default=[], help="names, with commas")
    parser.add_argument("--only", choices=tuple(SECTIONS), action="append", help="may be given several times")
    parser.add_argument(
        "--output",
        choices=("terminal", "file"),
        default="terminal",
        help="what the bars take it for",
    )
    parser.add_argument("--memory-steps", type=int, default=100_000, help="steps of the memory run")
    parser.add_argument("--import-repetitions", type=int, default=10, help="interpreters for each import")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return parser.parse_args(arguments)


def report_table(title: str, figures: list[Figure], differing: list[str]) -> list[dict[str, object]]:
    """Print a table, and return it for the JSON file."""
    print(f"{title}\n\n{format_table(figures)}")
    for name in differing:
        print(f"note: {name} did not end with the same weights as the row it is against")
    return [figure.as_dict() for figure in figures]


def report_steps(options: argparse.Namespace) -> Any:
    """Measure a training step of every row."""
    peers, skipped = load_rows()
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    rows = with_references((*loops.TRAINING, *zae.TRAINING, *peers), options.rows)
    figures, differing = measure(rows, options.steps, options.warmup, options.repetitions, options.output)
    return report_table(f"Training, {options.repetitions} repetitions", figures, differing)


def report_evaluation(options: argparse.Namespace) -> Any:
    """Measure an evaluation step."""
    rows = (*loops.EVALUATION, *zae.EVALUATION)
    figures, differing = measure(rows, options.steps, options.warmup, options.repetitions, options.output)
    return report_table(f"Evaluation, {options.repetitions} repetitions", figures, differing)


def report_memory(options: argparse.Namespace) -> Any:
    """Measure what a long run keeps."""
    found = measure_memory(options.memory_steps)
    print("Memory (resident set size)\n")
    print(f"after {found['settled_steps']:,} steps: {found['settled_bytes'] / 2**20:.1f} MiB")
    print(f"after {found['steps']:,} steps: {found['bytes'] / 2**20:.1f} MiB")
    print(f"growth: {found['bytes_per_step']:.2f} bytes a step")
    return found


def report_imports(options: argparse.Namespace) -> Any:
    """Measure the import."""
    found = measure_imports(options.import_repetitions)
    print(f"Import, {options.import_repetitions} fresh interpreters each\n")
    print(f"accelerate: {found['accelerate_seconds']:.3f} s")
    print(f"zae_engine: {found['zae_engine_seconds']:.3f} s, ratio {found['ratio']:.2f}")
    for name, state in found["optional"].items():
        print(f"{name}: {state}")
    return found


def report_steps_calls(_: argparse.Namespace) -> Any:
    """Count the package's functions that a step enters."""
    return report_calls()


SECTIONS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "step": report_steps,
    "calls": report_steps_calls,
    "eval": report_evaluation,
    "memory": report_memory,
    "import": report_imports,
}


def main() -> None:
    """Run the sections that were asked for."""
    options = parse_arguments()
    # Trainers that pick a device themselves would leave the CPU otherwise.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    found = {}
    for name in options.only or SECTIONS:
        found[name] = SECTIONS[name](options)
        print(flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
