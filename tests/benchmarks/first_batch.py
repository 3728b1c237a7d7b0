"""How long it takes from the call of `run` to the first step's beginning, over a bare loop's.

Run as ``python -m tests.benchmarks.first_batch``; ``--help`` lists the options.

Each row is a fresh interpreter, which trains twice: the first run in a process imports and asks what the second one
finds done. All of its byte code is there before (see `imports`). Model, optimizer, trainer and loader are made ahead.
The clock begins as `run` is called (with the bare loop, as it asks its loader for the first batch) and ends as the
first step begins. The rows take turns. Told are milliseconds over the bare loop's in the same round, by the wall clock
and by the processor's time of all threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from zae_engine.trainer import Trainer, addons

from . import blocks
from .imports import ROOT
from .task import Batch, Task, make_batches, make_model

LIMIT = 30.0  # milliseconds
BARE = "bare loop"
Clock = tuple[float, float]


def clock() -> Clock:
    """The wall clock and the processor's."""
    return perf_counter(), process_time()


class Noting(Trainer):
    """Classifies, and notes when the first step begins."""

    began: Clock | None = None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        self.began = self.began or clock()
        x, y = batch
        return {"loss": cross_entropy(self.model(x), y)}

    test_step = train_step


def train_bare(_: Path) -> tuple[Clock, Clock]:
    """Train for three steps in a loop of one's own; return when it began, and when the first step did."""
    task = Task(make_model(), make_batches(3))
    optimizer, loader, began = task.optimizer(), task.loader(), None
    called = clock()
    for x, y in loader:
        began = began or clock()
        optimizer.zero_grad()
        cross_entropy(task.model(x), y).backward()
        optimizer.step()
    assert began is not None
    return called, began


def with_trainer(*names: str) -> Callable[[Path], tuple[Clock, Clock]]:
    """What trains as `train_bare` does, by a trainer with add-ons."""

    def train(folder: Path) -> tuple[Clock, Clock]:
        kind: Any = Noting.add_on(*(getattr(addons, name) for name in names)) if names else Noting
        task = Task(make_model(), make_batches(3))
        options: dict[str, Any] = {"save_path": folder} if names else {}
        trainer = kind(task.model, device="cpu", mode="train", optimizer=task.optimizer(), seed=0, **options)
        loader, valid = task.loader(), task.loader() if "EarlyStoppingAddon" in names else None
        called = clock()
        trainer.run(1, loader, valid)
        return called, trainer.began

    return train


ROWS: dict[str, Callable[[Path], tuple[Clock, Clock]]] = {
    BARE: train_bare,
    "trainer": with_trainer(),
    "StateManager, EarlyStopping": with_trainer("StateManagerAddon", "EarlyStoppingAddon"),
    "CSV logger": with_trainer("CSVLoggerAddon"),
    "TensorBoard logger": with_trainer("TensorBoardLoggerAddon"),
}


def run(row: str) -> None:
    """Train twice, and print the milliseconds to the first batch of each."""
    torch.set_num_threads(1)
    found, output = [], os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with tempfile.TemporaryDirectory() as parent:
        for turn in range(2):
            called, began = ROWS[row](Path(parent) / f"run-{turn}")
            found.append([1e3 * (end - begin) for begin, end in zip(called, began, strict=True)])
    os.write(output, json.dumps(found).encode())


def ask(row: str, byte_code: str) -> list[list[float]]:
    """Let a fresh interpreter `run`; its two runs, each by both clocks."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "tests.benchmarks.first_batch", "--row", row]
    environment = kept | {"PYTHONPYCACHEPREFIX": byte_code, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    found: list[list[float]] = json.loads(done.stdout)
    return found


def measure(repetitions: int = 7) -> dict[str, dict[str, float]]:
    """For each row the median milliseconds over the bare loop's: of the first and the second run, by both clocks."""
    found: dict[str, list[list[list[float]]]] = {row: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as byte_code:
        for repetition in range(-1, repetitions):
            for row in ROWS:
                runs = ask(row, byte_code)
                if repetition >= 0:  # the first round writes the byte code
                    found[row].append(runs)
    columns = {"first": (0, 0), "first, processor": (0, 1), "second": (1, 0), "second, processor": (1, 1)}
    return {
        row: {
            name: median(own[i][j] - bare[i][j] for own, bare in zip(runs, found[BARE], strict=True))
            for name, (i, j) in columns.items()
        }
        for row, runs in found.items()
        if row != BARE
    }


def ratios(repetitions: int = 7) -> dict[str, float]:
    """Milliseconds to the first batch over a bare loop's, by name; `LIMIT` is the most of them."""
    return {f"first batch, {row}": found["first"] for row, found in measure(repetitions).items()}


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["--row"]:
        run(sys.argv[2])
        return
    options = blocks.parse("first_batch", __doc__, repetitions=7)
    found = measure(options.repetitions)
    columns = list(next(iter(found.values())))
    print(f"ms over a bare loop's (at most {LIMIT:.0f})   " + "  ".join(f"{name:>18}" for name in columns))
    for row, each in found.items():
        print(f"{row:<36}   " + "  ".join(f"{each[name]:>18.1f}" for name in columns))
    blocks.keep(found, options.json)


if __name__ == "__main__":
    main()
