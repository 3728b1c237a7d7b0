"""What a run of ten million steps costs that is none of its steps: its files, its resume, its picture, its report.

Run as ``python -m tests.benchmarks.long_run``; ``--steps`` says how many, ``--help`` lists the options.

Nobody waits for ten million steps here: `long_history` tells the trainer's own parts of steps that were not made, and
they write the history. Two runs have that many steps, in one long epoch and in very many short ones, and a third one
has made a single step; each saves a checkpoint. A fresh process takes each of them up, and makes one step. The
dataset has a sample for each step of the long epoch, in shuffled order, in all of the three.

``resume`` is from ``run(..., resume='auto')`` to the end of the step, by the clock and of the processor; ``MB`` is the
process's peak, with the summary and the picture that it makes when it breaks off. An epoch's end is what it takes to
take and write its lines. ``reading``, ``summary``, ``picture`` are what is done with the history at the end of a run,
and ``MB`` what that adds to the process; all seconds of the processor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from zae_engine.logs.curves import draw_curves
from zae_engine.logs.reading import read_run
from zae_engine.logs.report import write_report
from zae_engine.logs.summary import write_summary
from zae_engine.trainer.data.layout import ids_hash
from zae_engine.trainer.records.gather import log_state
from zae_engine.trainer.resume.position import go_to, position_of

from . import blocks
from .long_history import Tiny, make_trainer, write_steps
from .output import discarded

ROOT = Path(__file__).resolve().parents[2]
STEPS, QUICK_STEPS, SHORT_EPOCH, BEYOND, SEED = 10_000_000, 3000, 100, 1000, 5


class Samples(Dataset[tuple[Tensor, int]]):
    """As many samples as are wanted, made when they are asked for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, sample: int) -> tuple[Tensor, int]:
        return torch.full((8,), sample / self.size), sample % 2


class MadeError(Exception):
    """The step that was wanted is made."""


class OneStep(Tiny):
    """Makes one step, and breaks off at the next one."""

    steps_made, made_at = 0, (0.0, 0.0)

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Count."""
        self.steps_made += 1
        self.made_at = perf_counter(), process_time()
        if self.steps_made > 1:
            raise MadeError
        return super().train_step(batch)


def make_loader(size: int) -> DataLoader[Any]:
    """Batches of one sample, shuffled."""
    data = Samples(size)
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(SEED))
    return DataLoader(data, batch_size=1, sampler=sampler)


# ---------------------------------------------------------------------- runs


def write_long_epoch(folder: Path, steps: int, size: int) -> None:
    """A run within its only epoch, which has saved after so many steps."""
    trainer, done = make_trainer(folder, OneStep, save_every=f"{steps}st"), steps - 1
    recorder, journal = trainer._recorder, trainer._journal
    write_steps(trainer, 1, done)
    position = position_of(trainer, recorder, None)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(SEED))
    midway = {"midway": done > 0, "batch": done, "ids": ids_hash([[int(order[done - 1])]]), "paused": True,
              "generators": [torch.Generator().manual_seed(SEED).get_state()]}  # fmt: skip
    own = {"log": log_state(recorder.log_train, trainer._place.processes, False),
           "measures": recorder.measures["train"].state()}  # fmt: skip
    trainer._checkpointer.finder.loaded = go_to(recorder, {**position, **midway}, [own], None)
    journal.standing = journal.standing.after("load")
    journal.go_on_from(len((folder / "history.jsonl").read_bytes().splitlines()), "steps that were not made", True)
    with discarded("terminal"), suppress(MadeError):
        trainer.run(1, make_loader(size))


def write_short_epochs(folder: Path, steps: int) -> dict[str, float]:
    """A run of many epochs, which has saved between two; the seconds of an epoch's end at first, and at last."""
    trainer, stamps = make_trainer(folder), list[float]()
    write_steps(trainer, steps // SHORT_EPOCH, SHORT_EPOCH, ends=lambda: stamps.append(process_time()))
    trainer.save_state()
    some = min(1000, len(stamps) // 3)
    return {"first": (stamps[some] - stamps[0]) / some, "last": (stamps[-1] - stamps[-1 - some]) / some}


def resume(folder: Path, size: int) -> dict[str, float]:
    """Take a run up in a fresh process, as far as its next step."""
    command = [sys.executable, "-m", "tests.benchmarks.long_run", "--resume", str(folder), str(size)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _resume_here(folder: Path, size: int) -> None:
    torch.set_num_threads(1)
    trainer, loader = make_trainer(folder, OneStep, save_every=1 << 40), make_loader(size)
    begin, processor = perf_counter(), process_time()
    with discarded("terminal"), suppress(MadeError):
        trainer.run(1, loader, resume="auto")
    wall, spent = trainer.made_at[0] - begin, trainer.made_at[1] - processor
    step = trainer.progress_checker.get_step() - 1
    print(json.dumps({"seconds": wall, "processor": spent, "peak": peak(), "step": step}))


def peak() -> float:
    """The most memory that this process had, in MB; `ru_maxrss` counts the one that has started it, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def readings(folder: Path) -> dict[str, float]:
    """Seconds of the processor that what is made at a run's end takes, in a fresh process, and its memory."""
    command = [sys.executable, "-m", "tests.benchmarks.long_run", "--read", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _read_here(folder: Path) -> None:
    stamps, before = [process_time()], peak()
    run = read_run(folder)
    stamps.append(process_time())
    write_summary(run)
    stamps.append(process_time())
    draw_curves(run)
    stamps.append(process_time())
    at_end = peak() - before
    write_report([folder])
    names = ("reading", "summary", "picture", "report")
    spent = {name: end - begin for name, begin, end in zip(names, stamps, [*stamps[1:], process_time()], strict=True)}
    print(json.dumps(spent | {"MB": at_end}))


# ---------------------------------------------------------------------- figures


def figures(steps: int = STEPS) -> dict[str, float]:
    """Measure both kinds of run; seconds, bytes and MB by name."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as parent:
        folders = {name: Path(parent) / name.replace(" ", "-") for name in ("step 1", "long epoch", "short epochs")}
        size = steps + BEYOND
        write_long_epoch(folders["step 1"], 1, size)
        write_long_epoch(folders["long epoch"], steps, size)
        ends = write_short_epochs(folders["short epochs"], steps)
        found |= {"short epochs: an epoch's end at first": ends["first"], "short epochs: at last": ends["last"]}
        for name, folder in folders.items():
            made = resume(folder, size)
            wanted = {"step 1": 2}.get(name, steps + 1)
            if made.pop("step") != wanted:
                raise RuntimeError(f"{name} did not go on at step {wanted:,}")
            found |= {f"{name}: resume": made["seconds"], f"{name}: resume, processor": made["processor"],
                      f"{name}: resume, MB": made["peak"]}  # fmt: skip
        for name in ("long epoch", "short epochs"):
            files = [file for file in folders[name].rglob("*") if file.is_file()]
            saved = sum(file.stat().st_size for file in files if "checkpoints" in file.parts)
            history = (folders[name] / "history.jsonl").stat().st_size
            found |= {f"{name}: history, bytes a step": history / steps, f"{name}: checkpoint, MB": saved / 1e6}
            found |= {f"{name}: {what}": value for what, value in readings(folders[name]).items()}
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.long_run", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--resume", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.resume:
        _resume_here(Path(options.resume[0]), int(options.resume[1]))
    elif options.read:
        _read_here(options.read)
    else:
        found = figures(QUICK_STEPS if options.quick else options.steps)
        for name, value in found.items():
            print(f"{name:<40}  {value:>12,.4f}")
        blocks.keep(found, options.json)


if __name__ == "__main__":
    main()
