"""How many Python functions of the package a step enters, in several configurations: a figure that no noise moves."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import zae_engine
from tests.helpers import PlainTrainer
from zae_engine.trainer import Trainer
from zae_engine.trainer.addons import EarlyStoppingAddon, StateManagerAddon

PACKAGE = str(Path(zae_engine.__file__).parent)
SHORT, LONG = 50, 150  # steps; their difference has no set-up in it


class Accuracy:
    """A metric as torchmetrics has them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.hits = self.seen = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take a batch."""
        self.hits, self.seen = self.hits + (output.argmax(1) == target).sum(), self.seen + len(target)

    def compute(self) -> float:
        """The share of hits."""
        return float(self.hits) / self.seen


class Outputs(PlainTrainer):
    """Returns what metrics need."""

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        """Return the loss, the output and the target."""
        x, y = batch
        output = self.model(x)
        return {"loss": cross_entropy(output, y), "output": output, "target": y}

    test_step = train_step


def _scheduled(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1000), "scheduler_step_on_batch": True}


Options = Callable[[torch.optim.Optimizer], dict[str, Any]]
# The trainer, its add-ons, its options, and the most calls that a step may take: another one needs a reason.
CONFIGURATIONS: dict[str, tuple[type[Trainer], tuple[type, ...], Options, int]] = {
    "plain": (PlainTrainer, (), lambda o: {}, 18),
    "clipped": (PlainTrainer, (), lambda o: {"gradient_clip": 1.0}, 20),
    "schedule per batch": (PlainTrainer, (), _scheduled, 18),
    "state manager": (PlainTrainer, (StateManagerAddon,), lambda o: {}, 25),
    "early stopping": (PlainTrainer, (EarlyStoppingAddon,), lambda o: {}, 18),
    "all of these": (
        PlainTrainer,
        (StateManagerAddon, EarlyStoppingAddon),
        lambda o: {"gradient_clip": 1.0} | _scheduled(o),
        28,
    ),
    "metrics": (Outputs, (), lambda o: {"metrics": {"acc": Accuracy()}}, 25),
    "accumulation 4": (PlainTrainer, (), lambda o: {"gradient_accumulation_steps": 4}, 71),
    "shards 4": (PlainTrainer, (), lambda o: {"shards": 4}, 127),
    "evaluation": (PlainTrainer, (), lambda o: {"mode": "test"}, 11),
}


def _batches(steps: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(8 * steps, 4), torch.zeros(8 * steps).long()), batch_size=8)


def _run(name: str, steps: int, folder: str) -> Counter[str]:
    kind, add_ons, options, _ = CONFIGURATIONS[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    more: dict[str, Any] = {"save_path": folder} if StateManagerAddon in add_ons else {}
    chosen = {"mode": "train", "device": "cpu", "log_bar": False, "seed": 0, **options(optimizer), **more}
    trainer = kind.add_on(*add_ons)(model, optimizer=optimizer, **chosen)
    trainer.run(1, _batches(2))  # what is asked once a run or a process does not count
    found: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            found[f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}"] += 1

    batches = _batches(steps)
    sys.setprofile(count)
    try:
        trainer.run(1, batches)
    finally:
        sys.setprofile(None)
    return found


def calls_a_step(name: str) -> dict[str, float]:
    """The calls of a step by function, in one of the `CONFIGURATIONS`."""
    with tempfile.TemporaryDirectory() as folder:
        found = _run(name, LONG, f"{folder}/long")
        found.subtract(_run(name, SHORT, f"{folder}/short"))
    # Python 3.10 has no operator.call, which is none of ours; the picture is drawn at the end, of all steps.
    others = {name for name in found if name == "update.py: _call" or name.startswith("curves_picture")}
    return {key: n / (LONG - SHORT) for key, n in found.items() if n >= (LONG - SHORT) / 2 and key not in others}


def report_calls() -> dict[str, float]:
    """Print the calls of a step in all configurations."""
    print("Python functions of the package that a step enters\n")
    sums = {name: sum(calls_a_step(name).values()) for name in CONFIGURATIONS}
    for name, calls in sums.items():
        print(f"{name:<20} {calls:6.1f}  at most {CONFIGURATIONS[name][3]}")
    return sums


if __name__ == "__main__":
    report_calls()
