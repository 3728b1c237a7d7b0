"""How long the loop stands still for a checkpoint: StateManagerAddon, and a plain torch.save of the same tensors.

Run as ``python -m tests.benchmarks.saving``; ``--help`` lists the options.

``cpu`` is the same ratio by the processor time of the thread that trains, which other work on the machine disturbs
least; where it is below the ratio, the loop waited: for a core, the interpreter's lock, or the disk. ``steps`` is a
step while a checkpoint is written beside it, over a usual one. ``size`` is the checkpoint's bytes over
those of the tensors.

A real trainer makes small steps beside a large model whose optimizer has all of its state. The pause for a save is
taken from outside, from one step's beginning to the next one's, less a usual step. Next to it stands what the trainer
itself notes in ``history.jsonl`` (``blocked``). The step ahead of a save waits until the checkpoint before is
written, so that no pause is back-pressure. Each kind of save is run in turn, several saves a run. The first save of a
run, which gets its memory, is a column of its own. ``torch.save`` writes model and optimizer into one file in the same
folder, once as it is, and once flushed to the disk, as a checkpoint is.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zae_engine.checkpoint.folder import CHECKPOINTS, committed
from zae_engine.logs.history_file import read_history
from zae_engine.trainer import Trainer
from zae_engine.trainer.addons import StateManagerAddon

from . import blocks
from .output import discarded

EVERY = 20  # steps from one save to the next
WIDTH = 256


@dataclass(frozen=True)
class Case:
    """A model: so many tensors of so many float32 numbers, and its optimizer."""

    title: str
    tensors: int
    numbers: int
    optimizer: Callable[..., torch.optim.Optimizer]


# What is wanted: of a save's pause over torch.save's, by the case, and of a step beside the writing over a usual one.
LIMITS = {"200 MB": 0.10, "600 MB": 0.10, "2,000 small tensors": 0.15}
BESIDE = 1.03

SGD, AdamW = partial(torch.optim.SGD, lr=1e-3), partial(torch.optim.AdamW, lr=1e-3)
CASES = (
    Case("SGD, 200 MB in 20 tensors", 20, 2_500_000, SGD),
    Case("AdamW, 600 MB in 60 tensors", 20, 2_500_000, AdamW),
    Case("AdamW, 24 MB, of 2,000 small tensors", 2_000, 1_000, AdamW),
)
QUICK = (Case("AdamW, 2.4 MB, of 20 small tensors", 20, 10_000, AdamW),)


class Wide(nn.Module):
    """A small layer that is trained, and beside it the tensors that make the model large."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.large = nn.ParameterList([torch.randn(case.numbers) for _ in range(case.tensors)])

    def forward(self, x: Tensor) -> Tensor:
        """Use the small layer."""
        return self.layer(x)  # type: ignore[no-any-return]  # a tensor


@dataclass
class Pauses:
    """Of one way to save: seconds that the loop stood still.

    Attributes
    ----------
    outside : list of float
        Of every save but the first of a run.
    first : list of float
        Of the first save of every run.
    told : list of float
        By the trainer, of every save but the first and the last of a run.
    used : list of float
        Of the saves in `outside`, by the processor time of the thread.
    beside : list of float
        A step while a checkpoint is written, over a usual one.
    size : float
        Bytes on the disk over bytes of the tensors.
    """

    outside: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    size: float = 0.0


class Stamped(Trainer):
    """Notes when each step begins."""

    stamps: list[float]
    waits: Callable[[], None]  # until the device has done what it was given
    used: list[float]  # the thread's processor time at each
    ahead: Callable[[], None]  # of the step after which a save is due
    after: Callable[[], None]  # of that step

    def train_step(self, batch: Tensor) -> dict[str, Tensor]:
        """Make a small step."""
        self.waits()
        self.stamps.append(perf_counter())
        self.used.append(thread_time())
        loss = self.model(batch).square().mean()
        return {"loss": loss}

    test_step = train_step

    def run_batch(self, batch: Any, **kwargs: Any) -> None:
        """Save by hand, if that is what is measured."""
        if len(self.stamps) % EVERY == EVERY - 2:
            self.ahead()
        super().run_batch(batch, **kwargs)
        if len(self.stamps) % EVERY == 0:
            self.after()


def build(case: Case, device: str) -> tuple[Wide, torch.optim.Optimizer]:
    """A model and its optimizer, which has taken a step on all of it."""
    torch.manual_seed(0)
    model = Wide(case).to(device)
    optimizer = case.optimizer(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def nothing() -> None:
    """Do it."""


def save_plainly(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, flush: bool) -> None:
    """Save as most scripts do; with `flush`, so that it survives a power cut."""
    with open(path, "wb") as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        if flush:
            file.flush()
            os.fsync(file.fileno())


def run(case: Case, way: str, saves: int, folder: Path, found: Pauses, device: str = "cpu") -> None:
    """Train once, with `saves` saves, and note the pauses."""
    model, optimizer = build(case, device)
    options: dict[str, Any] = {"device": device, "optimizer": optimizer, "log_bar": True, "seed": 0}
    kind: Any = Stamped
    if "checkpoint" in way:
        kind = Stamped.add_on(StateManagerAddon)
        options |= {"save_path": folder, "save_every": f"{EVERY}st", "save_async": "asynchronous" in way}
    gc.collect()
    with discarded("terminal"):
        trainer = kind(model, **options)
        trainer.stamps, trainer.used, trainer.ahead, trainer.after = [], [], nothing, nothing
        trainer.waits = torch.cuda.synchronize if device == "cuda" else nothing
        if "checkpoint" in way:
            trainer.ahead = lambda: trainer._checkpointer._saver.wait()
        else:
            folder.mkdir(exist_ok=True)
            trainer.after = partial(save_plainly, model, optimizer, folder / "plain.pt", "flushed" in way)
        # One batch more than the last save, so that there is a step after it.
        trainer.run(1, DataLoader([torch.ones(64, WIDTH)] * (saves * EVERY + 2), batch_size=None))
    torch.set_num_threads(1)
    note(trainer, saves, found)
    if "checkpoint" in way:
        # Each line says for how long the loop had stood still before it; the last one is of the end of the run.
        blocked = [line["blocked"] for line in read_history(folder) if line["kind"] == "checkpoint"]
        found.told += [later - earlier for earlier, later in pairwise(blocked[1:])]
        tensors = [*model.state_dict().values(), *(v for s in optimizer.state.values() for v in s.values())]
        found.size = committed(folder / CHECKPOINTS)[-1].size / sum(tensor.nbytes for tensor in tensors)


def note(trainer: Any, saves: int, found: Pauses) -> None:
    """Work the stamps out."""
    steps, used = ([later - earlier for earlier, later in pairwise(each)] for each in (trainer.stamps, trainer.used))
    usual = median(steps)
    pauses = [steps[EVERY * (i + 1) - 1] - usual for i in range(saves)]
    found.used += [used[EVERY * (i + 1) - 1] - median(used) for i in range(1, saves)]
    found.first.append(pauses[0])
    found.outside += pauses[1:]
    after = [steps[EVERY * (i + 1) + j] for i in range(1, saves - 1) for j in range(EVERY // 2)]
    found.beside.append(median(after) / usual if after else 1.0)


PLAIN, ASYNCHRONOUS = "torch.save", "checkpoint, asynchronous"
WAYS = (PLAIN, "torch.save, flushed", "checkpoint", ASYNCHRONOUS)


def measure(
    case: Case, saves: int, repetitions: int, parent: Path, ways: tuple[str, ...] = WAYS, device: str = "cpu"
) -> dict[str, Pauses]:
    """Run every way in turn."""
    found = {way: Pauses() for way in ways}
    for repetition in range(repetitions):
        first = repetition % len(ways)
        for way in (*ways[first:], *ways[:first]):
            folder = parent / "run"
            run(case, way, saves, folder, found[way], device)
            shutil.rmtree(folder)
    return found


def figures(found: dict[str, Pauses]) -> list[dict[str, Any]]:
    """Medians, in milliseconds, and the ratio to torch.save."""
    plain, plain_used = median(found[PLAIN].outside), median(found[PLAIN].used)
    return [
        {
            "row": way,
            "us": 1e6 * median(pauses.outside),
            "ms": 1e3 * median(pauses.outside),
            "ms_quartiles": [1e3 * q for q in blocks.quartiles(pauses.outside)],
            "ratio": median(pauses.outside) / plain,
            "processor_ratio": median(pauses.used) / plain_used,
            "first_ms": 1e3 * median(pauses.first),
            "told_ms": 1e3 * median(pauses.told or [0.0]),
            "steps_beside": median(pauses.beside),
            "size": pauses.size,
        }
        for way, pauses in found.items()
    ]


def ratios(repetitions: int = 3) -> dict[str, float]:
    """By name: an asynchronous save's pause over torch.save's, by both clocks, and a step beside the writing."""
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as parent:
        for case in (CASES[0], CASES[-1]):
            row = figures(measure(case, 6, repetitions, Path(parent), (PLAIN, ASYNCHRONOUS)))[-1]
            found[f"{case.title}: pause"] = row["ratio"]
            found[f"{case.title}: pause, processor time"] = row["processor_ratio"]
            found[f"{case.title}: a step beside"] = row["steps_beside"]
    return found


def limit_of(name: str) -> float:
    """The most that the row of this name is to be."""
    return BESIDE if name.endswith("beside") else next(most for title, most in LIMITS.items() if title in name)


def format_table(title: str, rows: list[dict[str, Any]]) -> str:
    """Lay the figures out."""
    head = f"{'':<26}  {'ms a save':>9}  {'quartiles':>17}  {'ratio':>6}  {'cpu':>6}  {'first':>8}  {'told':>8}"
    head += f"  {'steps':>6}  {'size':>6}"
    lines = [title, "", head]
    for row in rows:
        low, high = row["ms_quartiles"]
        told, size = (f"{row['told_ms']:,.1f}", f"{row['size']:.4f}") if row["size"] else ("", "")
        lines.append(
            f"{row['row']:<26}  {row['ms']:>9,.1f}  {f'{low:,.1f} – {high:,.1f}':>17}  {row['ratio']:>6.3f}"
            f"  {row['processor_ratio']:>6.3f}"
            f"  {row['first_ms']:>8,.1f}  {told:>8}  {row['steps_beside']:>6.2f}  {size:>6}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print a table for each model."""
    options = blocks.parse("saving", __doc__, repetitions=3)
    torch.set_num_threads(1)
    tables = {}
    with tempfile.TemporaryDirectory() as parent:
        for case in QUICK if options.quick else CASES:
            found = measure(case, 3 if options.quick else 6, options.repetitions, Path(parent))
            tables[case.title] = figures(found)
            print(f"{format_table(case.title, tables[case.title])}\n", flush=True)
    blocks.keep(tables, options.json)


if __name__ == "__main__":
    main()
