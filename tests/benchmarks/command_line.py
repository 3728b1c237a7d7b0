"""How long the command line takes: its help, a list of a thousand runs, a report of a million steps.

Run as ``python -m tests.benchmarks.command_line``; ``--help`` lists the options.

Each row is a fresh process, in turn with an interpreter that does nothing, and one that imports typer and no more: a
slow machine makes those slow, too. Beside the wall clock stands the processor time of the process, which other work on
the machine hardly moves.

``zae runs, killed`` lists as many runs that were killed, and so have no summary: their histories are read.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from zae_engine.logs.summary import write_summary

from . import blocks
from .long_history import copies, make_trainer, train, write_steps

ROOT = Path(__file__).resolve().parents[2]
ZAE = "from zae_engine.cli import main; main()"  # what the script `zae` does
RUNS, STEPS, QUICK_RUNS, QUICK_STEPS = 1000, 1_000_000, 20, 20_000
EPOCHS = 10


@dataclass(frozen=True)
class Times:
    """The seconds of several processes: by the clock on the wall, and of the processor."""

    wall: list[float]
    processor: list[float]


def make_folders(parent: Path, runs: int, steps: int) -> dict[str, Path]:
    """Let runs write their folders: many short ones, as many that were killed, and one that is long."""
    found = {name: parent / name for name in ("one", "runs", "killed", "long")}
    train(found["one"], 20)
    copies(found["one"], found["runs"], runs)
    for folder in found["runs"].iterdir():
        write_summary(folder)  # which each run does at its end
    for file in ("summary.json", "curves.png"):
        (found["one"] / file).unlink(missing_ok=True)
    lines = (found["one"] / "history.jsonl").read_bytes().splitlines(keepends=True)
    (found["one"] / "history.jsonl").write_bytes(
        b"".join(line for line in lines if not line.startswith(b'{"kind": "end'))
    )
    copies(found["one"], found["killed"], runs)
    write_steps(make_trainer(found["long"]), EPOCHS, steps // EPOCHS, ends=lambda: None)
    return found


def commands(folders: dict[str, Path]) -> dict[str, list[str]]:
    """The rows of the table."""
    return {
        "python -c pass": ["-c", "pass"],
        "import typer": ["-c", "import typer"],
        "zae --help": ["-c", ZAE, "--help"],
        "zae runs": ["-c", ZAE, "runs", str(folders["runs"])],
        "zae runs, killed": ["-c", ZAE, "runs", str(folders["killed"])],
        "zae report": ["-c", ZAE, "report", str(folders["long"])],
    }


def time_once(arguments: list[str]) -> tuple[float, float]:
    """Seconds of a fresh interpreter, by the clock and of the processor."""
    begin = perf_counter()
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}")
    return perf_counter() - begin, usage.ru_utime + usage.ru_stime


def measure(quick: bool = False, repetitions: int = 5) -> dict[str, Times]:
    """Time each command, in turn, after once that does not count."""
    found: dict[str, Times] = {}
    with tempfile.TemporaryDirectory() as parent:
        sizes = (QUICK_RUNS, QUICK_STEPS) if quick else (RUNS, STEPS)
        rows = commands(make_folders(Path(parent), *sizes))
        for repetition in range(repetitions + 1):
            for name, arguments in rows.items():
                wall, processor = time_once(arguments)
                times = found.setdefault(name, Times([], []))
                if repetition:
                    times.wall.append(wall)
                    times.processor.append(processor)
    return found


def figures(quick: bool = False, repetitions: int = 5) -> dict[str, float]:
    """Median seconds by the clock of each command, and as ``NAME, processor`` those of the processor."""
    found = measure(quick, repetitions)
    walls = {name: median(times.wall) for name, times in found.items()}
    return walls | {f"{name}, processor": median(times.processor) for name, times in found.items()}


def main() -> None:
    """Print the table."""
    options = blocks.parse("command_line", __doc__, repetitions=5)
    found = measure(options.quick, options.repetitions)
    print(f"{'':<18}  {'wall s':>7}  {'quartiles':>15}  {'processor s':>11}")
    rows: list[dict[str, Any]] = []
    for name, times in found.items():
        low, high = blocks.quartiles(times.wall)
        wall, processor = median(times.wall), median(times.processor)
        print(f"{name:<18}  {wall:>7.3f}  {f'{low:.3f} – {high:.3f}':>15}  {processor:>11.3f}")
        rows.append({"row": name, "us": 1e6 * wall, "processor_us": 1e6 * processor})
    blocks.keep({"command line": rows}, options.json)


if __name__ == "__main__":
    main()
