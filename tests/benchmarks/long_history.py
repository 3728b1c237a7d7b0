"""Run folders of runs that nobody waits for: of many runs, of many steps, of many epochs, as the package writes them.

A short run is trained. What is longer is written by the trainer's own parts, which are told of steps that were not
made: `EpochLog` and `History` take the values, `StepLines` makes the lines, `HistoryFile` writes them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from zae_engine.trainer import Trainer
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.journal.history_lines import StepLines

from .output import discarded

BATCH_SIZE = 32


class Tiny(Trainer):
    """Classifies."""

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        x, y = batch
        return {"loss": cross_entropy(self.model(x), y)}

    test_step = train_step


def make_trainer(folder: Path, kind: Any = Tiny, **options: Any) -> Any:
    """Return a trainer of a tiny model, with a run folder."""
    torch.manual_seed(0)
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    stacked = kind.add_on(StateManagerAddon)
    return stacked(model, device="cpu", optimizer=optimizer, seed=0, save_path=folder, **options)


def train(folder: Path, epochs: int, samples: int = 320) -> None:
    """Let a run write its folder."""
    data = TensorDataset(torch.randn(samples, 8), torch.randint(2, (samples,)))
    with discarded("terminal"):
        make_trainer(folder).run(epochs, DataLoader(data, BATCH_SIZE), DataLoader(data, BATCH_SIZE))


def copies(original: Path, parent: Path, count: int) -> None:
    """Make as many runs of one, with losses, dates and settings of their own."""
    parent.mkdir()
    lines = [json.loads(text) for text in (original / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    note = json.loads((original / "run.json").read_text(encoding="utf-8"))
    for number in range(count):
        folder = parent / f"run-{number:04d}"
        shutil.copytree(original, folder)
        factor = 1 + number % 37 / 100
        texts = [json.dumps(_varied(line, factor, 60.0 * number)) + "\n" for line in lines]
        (folder / "history.jsonl").write_text("".join(texts), encoding="utf-8")
        attempts = [attempt | {"seed": number, "token": f"{number:x}-1"} for attempt in note["attempts"]]
        (folder / "run.json").write_text(json.dumps(note | {"attempts": attempts}), encoding="utf-8")


def _varied(line: dict[str, Any], factor: float, later: float) -> dict[str, Any]:
    changed = {name: value * factor for name, value in line.items() if name.endswith("_loss")}
    return line | changed | ({"time": line["time"] + later} if "time" in line else {})


def write_steps(
    trainer: Any, epochs: int, per_epoch: int, every: int = 10_000, ends: Callable[[], Any] | None = None
) -> None:
    """Write the history of steps that were not made, and leave the trainer as they would have.

    Parameters
    ----------
    trainer : Trainer
        With a run folder.
    epochs, per_epoch : int
        A row an epoch; with `per_epoch` steps in each.
    every : int
        A point every so many steps, and at each epoch's end.
    ends : callable, optional
        Called at the end of each epoch. Without it, the last epoch stays open.
    """
    recorder, processes = trainer._recorder, trainer._place.processes
    with trainer._journal.holding(), trainer._journal.opened(trainer, ends=False):
        file, lines = trainer._journal.file, StepLines(recorder, True)
        for epoch in range(1, epochs + 1):
            recorder.open_epoch("train")
            for place in range(1, per_epoch + 1):
                _step(recorder, place)
                if place % every == 0 and place < per_epoch:
                    file.put(lines.take(trainer.optimizer, processes, True))
                    file.write()
            if ends is None and epoch == epochs:
                file.put(lines.take(trainer.optimizer, processes, True))
                return
            _end_epoch(recorder, epoch)
            file.put(lines.take(trainer.optimizer, processes, False))
            if epoch % 100 == 0:
                file.write()
            if ends is not None:
                ends()


def _end_epoch(recorder: Any, epoch: int) -> None:
    mean = recorder.log_train.means()["loss"]
    recorder.counters.update_epoch()
    recorder.history.put({"epoch": epoch, "step": recorder.counters.get_step() - 1, "lr": 0.05, "train_loss": mean,
                          "test_loss": 1.1 * mean, "seconds": 1.0})  # fmt: skip


def _step(recorder: Any, place: int) -> None:
    """A step's loss, with all the digits that a float32 has as a float."""
    step = recorder.counters.get_step()
    loss = 2.0 / (1.0 + 1e-5 * step) + 0.1 * math.sin(12.9898 * step)
    recorder.log_train.add({"loss": torch.tensor(loss), "num_items": BATCH_SIZE}, BATCH_SIZE, place)
    recorder.usage.samples += BATCH_SIZE
    recorder.counters.update_step()
