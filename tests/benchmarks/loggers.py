"""What a training step costs with loggers, at the default ``log_every``, beside one without any add-on.

Run as ``python -m tests.benchmarks.loggers``; ``--help`` lists the options. Clients that are not installed are left
out. All of them are offline.

Each row trains in a process of its own, and they take turns of some seconds, all rows once in a round. While a row
waits, its clock for ``log_every`` and that for the picture stand, so that each has as many log intervals as it would
have alone. Some turns together are a block, which is long enough for whole intervals; a ratio is that of two rows'
blocks in the same rounds: of the wall time of a step, of the CPU time of the row's process (all threads together), and
of the CPU time of the thread that trains (``thread``), which other work on the machine disturbs least. ``beside`` is
the CPU time of all other threads over the wall time: what they may take from the training, if they hold the interpreter
all the while. The clients' own processes (W&B's) are in none of these.

The clients start beside the first turn, which is not counted; ``start`` is how long they take, and ``first`` what the
first turn's steps took over those of the row without add-ons. ``end`` is the end of `run`, where the summary is
written, the picture drawn, and every logger closed.

``wandb.log`` is a bare loop that logs its loss at every step.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zae_engine.trainer import Trainer, addons
from zae_engine.trainer.addons.run_folder import RunFolderAddon
from zae_engine.trainer.limits import Pace

from . import blocks
from .turns import Turn, Turns, Worker

FEATURES, CLASSES = 64, 10


@dataclass(frozen=True)
class Case:
    """A model, the size of its batches, and how many make an epoch."""

    title: str
    width: int
    depth: int
    batch: int
    epoch: int

    def model(self) -> nn.Sequential:
        """Return an MLP, the same weights for every row."""
        torch.manual_seed(0)
        inner = [layer for _ in range(self.depth) for layer in (nn.Linear(self.width, self.width), nn.ReLU())]
        return nn.Sequential(nn.Linear(FEATURES, self.width), nn.ReLU(), *inner, nn.Linear(self.width, CLASSES))

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return ready batches."""
        torch.manual_seed(1)
        return [(torch.randn(self.batch, FEATURES), torch.randint(CLASSES, (self.batch,))) for _ in range(100)]


CASES = {
    "small": Case("a small step, one epoch", 64, 0, 32, 10**9),
    "epochs": Case("a small step, epochs of 1,000", 64, 0, 32, 1_000),
    "large": Case("a larger step, one epoch", 256, 2, 256, 10**9),
}
ADD_ONS: dict[str, tuple[type, str]] = {  # and the client's module
    "csv": (addons.CSVLoggerAddon, "csv"),
    "tensorboard": (addons.TensorBoardLoggerAddon, "tensorboard"),
    "wandb": (addons.WandBLoggerAddon, "wandb"),
    "neptune": (addons.NeptuneLoggerAddon, "neptune"),
    "mlflow": (addons.MLflowLoggerAddon, "mlflow"),
    "trackio": (addons.TrackioLoggerAddon, "trackio"),
}


class Classifier(Trainer):
    """Classifies."""

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        x, y = batch
        return {"loss": cross_entropy(self.model(x), y)}

    test_step = train_step


def optimizer(model: nn.Module) -> torch.optim.SGD:
    """Return the optimizer of every row."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


# ---------------------------------------------------------------------- the rows, each in its process


def train(case: Case, turns: Turns, folder: Path, facts: dict[str, Any], stack: Sequence[type], **options: Any) -> None:
    """Train with these add-ons."""
    _quiet(folder)
    model = case.model()
    if stack:
        options |= {"save_path": folder / "run"}
    trainer: Any = Classifier.add_on(*stack)(model, device="cpu", optimizer=optimizer(model), seed=0, **options)
    turns.stop, turns.resume = partial(trainer.stop, "measured"), partial(_stand, trainer)
    turns.wait()
    began = perf_counter()
    watches = _watch(trainer, began, facts) if stack else []
    trainer.run(10**6, turns)
    for watch in watches:
        watch.join()
    facts["end"] = perf_counter() - turns.ended


def _quiet(folder: Path) -> None:
    """No client asks for a network, and none writes outside of the folder."""
    os.environ |= {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio"), "WANDB_SILENT": "true"}
    os.environ |= {f"WANDB_{name}_DIR": str(folder / name) for name in ("CACHE", "CONFIG", "DATA")}


def _stand(trainer: Any, seconds: float) -> None:
    """Let the clocks of the log's interval, of the loggers' shares and of the picture stand for so long."""
    if (journal := getattr(trainer, "_journal", None)) is not None:
        journal.interval._last += seconds
        journal.readers._due += seconds
        if isinstance(journal.interval, Pace):
            journal.interval.began += seconds
        for feed in journal.readers.feeds.values():
            if (pacing := feed._delivery._pacing) is not None:
                pacing._paid += seconds
                pacing._ended += seconds
                pacing._seen = (pacing._seen[0] + seconds, pacing._seen[1])


def _watch(trainer: Any, began: float, facts: dict[str, Any]) -> list[threading.Thread]:
    """Note when every client has started."""
    feeds = trainer._journal.readers.feeds
    facts["start"] = {}

    def note(name: str) -> None:
        while perf_counter() - began < 60:
            if feeds[name].client(0.0) is not None:  # it is begun by `run`
                facts["start"][name] = perf_counter() - began
                return
            time.sleep(0.02)

    watches = [threading.Thread(target=note, args=(name,), daemon=True) for name in feeds]
    for watch in watches:
        watch.start()
    return watches


def train_by_hand(case: Case, turns: Turns, folder: Path, facts: dict[str, Any], logged: bool = False) -> None:
    """Train with PyTorch alone, and log each step's loss to W&B, if that is wanted."""
    log: Callable[[dict[str, float]], Any] | None = None
    turns.wait()
    if logged:
        _quiet(folder)
        import wandb

        log = wandb.init(dir=folder, project="bare", settings={"console": "off"}).log
    model = case.model()
    update = optimizer(model)
    model.train()
    for x, y in turns:
        update.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        update.step()
        if log is not None:
            log({"train/loss": loss.item()})
    if logged:
        wandb.finish()
    facts["end"] = perf_counter() - turns.ended


def rows(names: Sequence[str], log_every: str | None) -> dict[str, tuple[Callable[..., None], str]]:
    """What each row does, and the row that it is against."""
    there = {name: kind for name, (kind, module) in ADD_ONS.items() if importlib.util.find_spec(module) is not None}
    every = {} if log_every is None else {"log_every": log_every}
    found: dict[str, tuple[Callable[..., None], str]] = {
        "pytorch": (train_by_hand, "pytorch"),
        "no add-on": (partial(train, stack=()), "no add-on"),
        "run folder": (partial(train, stack=(RunFolderAddon,), **every), "no add-on"),
        **{name: (partial(train, stack=(kind,), **every), "no add-on") for name, kind in there.items()},
        "every logger": (partial(train, stack=tuple(there.values()), **every), "no add-on"),
    }
    if "wandb" in there:
        found["wandb.log"] = (partial(train_by_hand, logged=True), "pytorch")
    if unknown := set(names) - set(found):
        raise SystemExit(f"no row {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    wanted = {*names, *(found[name][1] for name in names)}
    return {name: row for name, row in found.items() if not names or name in wanted}


# ---------------------------------------------------------------------- measuring


def measure(case: Case, options: argparse.Namespace, parent: Path) -> list[dict[str, Any]]:
    """Let all rows take their turns, and return the figures."""
    wanted, workers = rows(options.rows, options.log_every), dict[str, Worker]()
    try:
        for name, (work, _) in wanted.items():
            (folder := parent / name.replace(" ", "-")).mkdir()
            workers[name] = Worker(work, case, folder)
        for worker in workers.values():
            worker.wait()
        firsts = {name: worker.turn(options.first) for name, worker in workers.items()}
        turns = {name: list[Turn]() for name in workers}
        order = list(workers)
        for number in range(options.repetitions * options.turns):
            first = number % len(order)
            for name in (*order[first:], *order[:first]):
                turns[name].append(workers[name].turn(options.turn))
        facts = {name: worker.end() for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.kill()
    return [figures(name, against, turns, firsts, facts[name], options.turns) for name, (_, against) in wanted.items()]


def figures(
    name: str, against: str, turns: dict[str, list[Turn]], firsts: dict[str, Turn], facts: dict[str, Any], size: int
) -> dict[str, Any]:
    """Medians over the blocks, and ratios to the row that it is against."""
    own, other = (summed(turns[row], size) for row in (name, against))
    clocks = {"ratio": "wall", "cpu_ratio": "cpu", "thread_ratio": "thread"}
    ratios = {key: [_each(a, clock) / _each(b, clock) for a, b in zip(own, other, strict=True)]
              for key, clock in clocks.items()}  # fmt: skip
    return {
        "row": name,
        "against": against,
        "us": 1e6 * median(_each(block, "wall") for block in own),
        "cpu_us": 1e6 * median(_each(block, "cpu") for block in own),
        "thread_us": 1e6 * median(_each(block, "thread") for block in own),
        "beside": median((block.cpu - block.thread) / block.wall for block in own),
        **{key: median(values) for key, values in ratios.items()},
        "ratio_quartiles": blocks.quartiles(ratios["ratio"]),
        "ratios": ratios["ratio"],
        "first_ratio": _each(firsts[name], "wall") / _each(firsts[against], "wall"),
        "start_s": facts.get("start", {}),
        "end_s": facts["end"],
    }


def summed(turns: Sequence[Turn], size: int) -> list[Turn]:
    """So many turns together are a block."""
    found = list[Turn]()
    for first in range(0, len(turns), size):
        block = turns[first]
        for turn in turns[first + 1 : first + size]:
            block += turn
        found.append(block)
    return found


def _each(turn: Turn, clock: str) -> float:
    seconds: float = getattr(turn, clock)
    return seconds / turn.steps


def format_table(title: str, found: Sequence[dict[str, Any]]) -> str:
    """Lay the figures out."""
    width = max(len(row["row"]) for row in found)
    head = f"{'row':<{width}}  {'µs a step':>10}  {'ratio':>6}  {'quartiles':>13}  {'CPU µs':>9}  {'ratio':>6}"
    lines = [f"{title}\n", f"{head}  {'thread':>6}  {'beside':>6}  {'first':>6}  {'start s':>7}  {'end s':>6}  against"]
    for row in found:
        low, high = row["ratio_quartiles"]
        start = max(row["start_s"].values(), default=0.0)
        lines.append(
            f"{row['row']:<{width}}  {row['us']:>10,.1f}  {row['ratio']:>6.3f}  {f'{low:.3f} – {high:.3f}':>13}"
            f"  {row['cpu_us']:>9,.1f}  {row['cpu_ratio']:>6.3f}  {row['thread_ratio']:>6.3f}"
            f"  {row['beside']:>6.2%}  {row['first_ratio']:>6.2f}  {start:>7.1f}  {row['end_s']:>6.1f}"
            f"  {row['against']}"
        )
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.loggers", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7, help="blocks of each row")
    parser.add_argument("--turns", type=int, default=4, help="turns of a block")
    parser.add_argument("--turn", type=float, default=2.5, help="seconds of a turn")
    parser.add_argument("--first", type=float, default=8.0, help="seconds of the first turn, in which clients start")
    parser.add_argument("--log-every", help="in place of the default")
    parser.add_argument("--rows", type=lambda names: names.split(","), default=[], help="names, with commas")
    parser.add_argument("--only", choices=tuple(CASES), action="append", help="may be given several times")
    parser.add_argument("--quick", action="store_true", help="to see that it works; no figures to report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repetitions, options.turns, options.turn, options.first = 2, 1, 0.4, 0.4
        options.log_every, options.only = "0.2s", ["epochs"]
        options.rows = ["csv"]
    return options


def main() -> None:
    """Print a table for each case."""
    options = parse_arguments()
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    tables = {}
    for name in options.only or CASES:
        with tempfile.TemporaryDirectory() as parent:
            tables[name] = measure(CASES[name], options, Path(parent))
        print(f"{format_table(CASES[name].title, tables[name])}\n", flush=True)
    blocks.keep(tables, options.json)


if __name__ == "__main__":
    main()
