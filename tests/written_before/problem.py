"""What is trained in the run folders that older versions wrote, as they trained it.

Whoever changes what a form of these trains makes the folders kept here folders of another run. Further forms may come.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

from zae_engine.trainer import Trainer
from zae_engine.trainer.addons import (
    CSVLoggerAddon,
    EarlyStoppingAddon,
    StateManagerAddon,
    TensorBoardLoggerAddon,
)

F32, F64 = torch.float32, torch.float64
CLOCKED = ("seconds", "saving")  # what of a row no two runs have the same
RANK = int(os.environ.get("RANK", "0"))


class Points(Dataset):
    """Points of fractions, so that every machine makes the same ones; each is moved by draws from all three streams."""

    def __init__(self, samples: int, dtype: torch.dtype) -> None:
        numbers = [[(37 * i + 101 * j + 13 * i * j) % 97 / 97 - 0.5 for j in range(4)] for i in range(samples)]
        self.x = torch.tensor(numbers, dtype=F64).to(dtype)
        self.y = self.x[:, :3].argmax(1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(4, dtype=self.x.dtype) + random.random() + np.random.random_sample()
        return self.x[index] + 0.05 * noise, self.y[index]


def model(dtype: torch.dtype) -> nn.Sequential:
    """Of 147 parameters; no bias before the BatchNorm, since the sign of a gradient that is only rounding is chance."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3)]
    return nn.Sequential(*layers).to(dtype)


class Task(Trainer):
    """Logs what it drew from every stream, and sends itself a SIGTERM at the step `away_at`, on the last process."""

    away_at = 0

    def train_step(self, batch):
        x, y = batch
        out = self.model(x)
        drawn = torch.rand(()).item() + random.random() + np.random.random_sample()
        return {"loss": nn.functional.cross_entropy(out, y), "drawn": drawn, "output": out.detach(), "target": y}

    test_step = train_step

    def metric_on_epoch_end(self):
        log = self.log_train if self.mode == "train" else self.log_test
        return {"sum": sum(o.double().sum().item() for o in log["output"])}

    def logging(self, step_dict):
        super().logging(step_dict)
        last = int(os.environ.get("WORLD_SIZE", "1")) - 1
        if self.mode == "train" and self.progress_checker.get_step() == self.away_at and last == RANK:
            signal.raise_signal(signal.SIGTERM)


class Thawing(Task):
    """Begins with the last layer alone, and changes what is trained before the second and the third epoch."""

    def run_epoch(self, loader, **kwargs):
        if self.mode == "train" and self.progress_checker.get_epoch() == 2:
            self.model[0].requires_grad_(True)
            self.optimizer.add_param_group({"params": list(self.model[0].parameters()), "lr": 0.005, "name": "first"})
        if self.mode == "train" and self.progress_checker.get_epoch() == 3:
            self.model[4].bias.requires_grad_(False)
        super().run_epoch(loader, **kwargs)


class ThawingWithin(Task):
    """Changes what is trained in the middle of the second epoch."""

    def optimize(self, window):
        if self.progress_checker.get_step() == 7:
            self.model[0].requires_grad_(True)
            self.model[4].bias.requires_grad_(False)
            self.optimizer.add_param_group({"params": list(self.model[0].parameters())})
        super().optimize(window)


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam((p for p in module.parameters() if p.requires_grad), lr=0.01)


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


@dataclass(frozen=True)
class Form:
    """One kind of run.

    Attributes
    ----------
    cut : mapping
        The options of `run` of the part that the folder has; None: it ends by the signal at step `away_at`.
    frozen : bool
        Whether the first layer is frozen when it begins.
    """

    run: Mapping[str, Any]
    kind: type[Task] = Task
    cut: Mapping[str, Any] | None = None
    away_at: int = 0
    processes: int = 1
    samples: int = 37
    dtype: torch.dtype = F64
    frozen: bool = False
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adam
    scheduler: Callable[[Any], Any] | None = None
    add_ons: tuple[type, ...] = (StateManagerAddon,)
    metrics: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


ONE = {"save_every": "100ep"}  # a single checkpoint, which has the best weights beside the present ones

# Five batches are an epoch. A value that has to get better by 10 stops a run at an evaluation that no rounding moves.
FORMS = {
    "interrupted": Form(
        run={"n_epoch": 6, "valid_every": "3st"},
        away_at=13,
        scheduler=partial(lr_scheduler.ExponentialLR, gamma=0.97),
        add_ons=(EarlyStoppingAddon, StateManagerAddon, CSVLoggerAddon, TensorBoardLoggerAddon),
        metrics=True,
        options={
            "patience": 6,
            "min_delta": 10.0,
            "scheduler_step_on_batch": True,
            "gradient_clip": 0.5,
            "log_every": "2st",
        },
    ),
    "stopped": Form(
        run={"n_epoch": None, "max_steps": 17},
        cut={"n_epoch": None, "max_steps": 8},
        dtype=F32,
        optimizer=sgd,
        options={"save_every": "3st", "gradient_accumulation_steps": 2},
    ),
    "finished": Form(
        run={"n_epoch": 5},
        cut={"n_epoch": 3},
        dtype=F32,
        scheduler=partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5),
        metrics=True,
        options={"save_format": "ckpt", "keep_last": 1, "monitor": "acc"},
    ),
    "thawed": Form(run={"n_epoch": 4}, kind=Thawing, away_at=13, frozen=True, options=ONE),
    "thawed-within": Form(run={"n_epoch": 3}, kind=ThawingWithin, away_at=8, frozen=True, options=ONE),
    "two": Form(run={"n_epoch": 3}, away_at=6, processes=2, optimizer=sgd, options=ONE),
    "two-shards": Form(run={"n_epoch": 3}, away_at=6, processes=2, samples=40, options={"shards": 4, **ONE}),
}


def build(form: Form, folder: Path, **options: Any) -> Task:
    """A trainer with everything fresh, which saves into the folder."""
    module = model(form.dtype)
    if form.frozen:
        module[0].requires_grad_(False)
    optimizer = form.optimizer(module)
    scheduler = form.scheduler(optimizer) if form.scheduler else None
    metrics = {"acc": _accuracy()} if form.metrics else None
    options = {"save_path": folder, "metrics": metrics, "device": "cpu", "log_bar": False, "seed": 5} | {
        **form.options,
        **options,
    }
    return form.kind.add_on(*form.add_ons)(module, optimizer=optimizer, scheduler=scheduler, **options)


def _accuracy() -> Any:
    from torchmetrics.classification import MulticlassAccuracy  # whose import takes a second

    return MulticlassAccuracy(3, average="micro")


def run(trainer: Task, form: Form, limits: Mapping[str, Any] | None = None, **options: Any) -> Task:
    """Train the form's whole run, or with other limits a part of it; return the trainer."""
    training = DataLoader(Points(form.samples, form.dtype), batch_size=8, shuffle=True)
    trainer.run(**(form.run if limits is None else limits), **options, loader=training, valid_loader=validation(form))
    return trainer


def validation(form: Form) -> DataLoader:
    return DataLoader(Points(11, form.dtype), batch_size=4)


def noted(trainer: Task) -> dict[str, Any]:
    """What a run has come to, as plain values; its weights are kept beside them."""
    return {
        "steps": trainer.progress_checker.get_step() - 1,
        "stop": trainer.stop_reason,
        "losses": {mode: list(trainer.get_loss_history(mode)) for mode in ("train", "test")},
        "rows": [{k: v for k, v in row.items() if k not in CLOCKED} for row in trainer.history.rows],
    }
