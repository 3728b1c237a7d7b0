"""What zae-engine costs beside a bare PyTorch loop, and beside other trainers: every figure with its limit.

Run as ``python -m tests.benchmarks.overhead``; ``--help`` lists the options, ``--only`` the sections. Peers that are
not installed are left out. At its end it says which limits are missed.

A step is timed from its beginning to the next one's, within one epoch, so that set-up does not count. Neither
does what a trainer puts off until the epoch's end; zae-engine reads its losses there and whenever its bar is
drawn, ten times a second. With ``--steps 4000`` most of that falls between the steps, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from . import command_line, first_batch, long_run, loops, saving, zae
from .calls import CONFIGURATIONS, report_calls
from .imports import measure_imports
from .limits import Limit, format_limits
from .measure import Figure, format_table, measure, with_references
from .memory import growth_of_an_epoch
from .peers import load_rows

ROOT = Path(__file__).resolve().parents[2]
Found = tuple[Any, list[Limit]]  # for the JSON file, and what has a limit


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
    parser.add_argument("--memory-steps", type=int, default=700_000, help="steps of the memory run")
    parser.add_argument("--import-repetitions", type=int, default=15, help="interpreters for each import")
    parser.add_argument("--long-steps", type=int, default=1_000_000, help="steps of the long runs")
    parser.add_argument("--quick", action="store_true", help="to see that it works; no figures to report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.warmup, options.repetitions, options.import_repetitions = 40, 5, 2, 2
        options.memory_steps = 4_000
    return options


def report_steps(options: argparse.Namespace) -> Found:
    """Measure a training step of every row."""
    peers, skipped = load_rows()
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    rows = with_references((*loops.TRAINING, *zae.TRAINING, *peers), options.rows)
    figures, differing = measure(rows, options.steps, options.warmup, options.repetitions, options.output)
    found = _report_table(f"Training, {options.repetitions} repetitions", figures, differing)
    ratios = {figure.name: figure.ratio for figure in figures}
    limits = []
    if "zae-engine" in ratios:
        limits.append(Limit("a step, against the bare loop", ratios["zae-engine"], 1.05))
    if {"zae-engine", "ignite+bar"} <= set(ratios):
        limits.append(Limit("a step, against ignite's", ratios["zae-engine"] / ratios["ignite+bar"], 1.0))
    if zae.ALL in ratios:
        limits.append(Limit("a step with all at once, against the bare loop that clips", ratios[zae.ALL], 1.08))
    return found, limits


def report_evaluation(options: argparse.Namespace) -> Found:
    """Measure an evaluation step."""
    rows = (*loops.EVALUATION, *zae.EVALUATION)
    figures, differing = measure(rows, options.steps, options.warmup, options.repetitions, options.output)
    found = _report_table(f"Evaluation, {options.repetitions} repetitions", figures, differing)
    return found, [Limit("an evaluation step, against the bare loop", figures[-1].ratio, 1.10)]


def _report_table(title: str, figures: list[Figure], differing: list[str]) -> list[dict[str, object]]:
    print(f"{title}\n\n{format_table(figures)}")
    for name in differing:
        print(f"note: {name} did not end with the same weights as the row it is against")
    return [figure.as_dict() for figure in figures]


def report_steps_calls(_: argparse.Namespace) -> Found:
    """Count the package's functions that a step enters."""
    found = report_calls()
    return found, [Limit(f"calls a step, {name}", n, CONFIGURATIONS[name][3]) for name, n in found.items()]


def report_memory(options: argparse.Namespace) -> Found:
    """Measure what a long epoch keeps."""
    found = growth_of_an_epoch(options.memory_steps)
    print("Memory (resident set size) of one epoch\n")
    for steps, size in zip(found["steps"], found["bytes"], strict=True):
        print(f"after {steps:>11,} steps: {size / 2**20:.1f} MiB")
    print(f"so an epoch of 10 million steps adds {found['ten_million'] / 2**20:.1f} MiB")
    return found, [Limit("memory that an epoch of 10 million steps adds", found["ten_million"] / 1e6, 50, "MB")]


def report_imports(options: argparse.Namespace) -> Found:
    """Measure the import."""
    found = measure_imports(options.import_repetitions)
    print(f"Import, {options.import_repetitions} fresh interpreters each\n")
    print(f"accelerate: {found['accelerate_seconds']:.3f} s")
    print(f"zae_engine: {found['zae_engine_seconds']:.3f} s, ratio {found['ratio']:.2f}")
    for name, state in found["optional"].items():
        print(f"{name}: {state}")
    return found, [Limit("import, against Accelerate's", found["ratio"], 1.05)]


# ---------------------------------------------------------------------- benchmarks that are commands of their own


def _run(module: str, options: argparse.Namespace, *arguments: str) -> Any:
    """Run another benchmark, and return what it wrote."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        quick = ["--quick"] if options.quick else []
        command = [sys.executable, "-m", f"{__package__}.{module}", *arguments, *quick, "--json", str(file)]
        subprocess.run(command, cwd=ROOT, check=True)
        return json.loads(file.read_text(encoding="utf-8"))


def report_processes(options: argparse.Namespace) -> Found:
    """Measure two processes beside a loop with DistributedDataParallel."""
    found, limits = _run("processes", options), []
    for model, rows in found["models"].items():
        limits += [Limit(f"two processes against DDP, {model}", row["ratio"], 1.05)
                   for row in rows if row["row"] == "zae-engine"]  # fmt: skip
    return found, limits


def report_shards(options: argparse.Namespace) -> Found:
    """Measure micro-batches and shards."""
    found, limits = _run("shards", options), []
    for on, models in found.items():
        for model, rows in models.items():
            for row in rows:
                if at_most := _limit_of_pieces(on, row["row"], row["against"]):
                    name = f"{row['row']} against {row['against']}, {model}, {on}"
                    limits.append(Limit(name, row["ratio"], at_most))
    return found, limits


def _limit_of_pieces(on: str, row: str, against: str) -> float | None:
    if row.startswith("shards"):
        wanted = {"1 process": ("micro-batches", 1.10), "2 processes": ("by hand", 1.15)}[on]
        return wanted[1] if wanted[0] in against else None
    return 1.05 if row == "4 micro-batches" and against.startswith("by hand") else None


def report_first_batches(options: argparse.Namespace) -> Found:
    """Measure how long it takes until a run has its first batch."""
    found = first_batch.ratios(1 if options.quick else 7)
    print("\n".join(f"{name:<48} {milliseconds:7.1f} ms over a bare loop's" for name, milliseconds in found.items()))
    return found, [
        Limit(f"{name}, over a bare loop's", value, first_batch.LIMIT, "ms") for name, value in found.items()
    ]


def report_saving(options: argparse.Namespace) -> Found:
    """Measure asynchronous saves beside torch.save."""
    if options.quick:
        print("saving: python -m tests.benchmarks.saving --quick")
        return {}, []
    found = saving.ratios()
    print("\n".join(f"{name:<60} {ratio:6.3f}" for name, ratio in found.items()))
    return found, [Limit(name, value, saving.limit_of(name)) for name, value in found.items()]


def report_command_line(options: argparse.Namespace) -> Found:
    """Measure the commands that a user waits for."""
    found = command_line.figures(options.quick)
    print("\n".join(f"{name:<30} {seconds:6.3f} s" for name, seconds in found.items()))
    wanted = {"zae --help": 0.15, "zae runs": 0.5, "zae report": 1.5}
    return found, [Limit(name, found[name], seconds, "s") for name, seconds in wanted.items()]


def report_long_runs(options: argparse.Namespace) -> Found:
    """Measure what a run of many steps leaves, and how long it takes to go on with it."""
    found = long_run.figures(long_run.QUICK_STEPS if options.quick else options.long_steps)
    print("\n".join(f"{name:<44} {value:12,.4f}" for name, value in found.items()))
    extra = {each: found[f"{each}: resume"] - found["step 1: resume"] for each in ("long epoch", "short epochs")}
    return found, [Limit(f"resume after {each}, beyond step 1", value, 2.0, "s") for each, value in extra.items()]


def report_loggers(options: argparse.Namespace) -> Found:
    """Measure loggers at their default settings beside a run without any."""
    rows = [] if options.quick else ["--rows", "csv,tensorboard,wandb,mlflow"]
    found, limits = _run("loggers", options, "--only", "epochs", *rows), []
    for row in (row for table in found.values() for row in table if row["row"] not in ("no add-on", "pytorch")):
        limits.append(Limit(f"a step with {row['row']}, processor time of its thread", row["thread_ratio"], 1.01))
        limits.append(Limit(f"a step with {row['row']}", row["ratio"], 1.01))
    return found, limits


SECTIONS: dict[str, Callable[[argparse.Namespace], Found]] = {
    "step": report_steps,
    "calls": report_steps_calls,
    "eval": report_evaluation,
    "memory": report_memory,
    "import": report_imports,
    "processes": report_processes,
    "shards": report_shards,
    "first batch": report_first_batches,
    "saving": report_saving,
    "command line": report_command_line,
    "long run": report_long_runs,
    "loggers": report_loggers,
}


def main() -> None:
    """Run the sections that were asked for, then show the limits."""
    options = parse_arguments()
    # Trainers that pick a device themselves would leave the CPU otherwise.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    found, limits = dict[str, Any](), list[Limit]()
    for name in options.only or SECTIONS:
        found[name], limited = SECTIONS[name](options)
        limits += limited
        print(flush=True)
    if limits:
        print(format_limits(limits))
    if options.json is not None:
        found["limits"] = {limit.name: limit.as_dict() for limit in limits}
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
