"""The problem that every number of processes trains on: scikit-learn's digits, small models, recorded sample ids."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests import helpers
from zae_engine import Trainer

EPOCHS, BATCH = 2, 32


@functools.cache
def digits(samples: int = 1797, dtype: torch.dtype = torch.float32) -> TensorDataset:
    points, targets = helpers.digits()
    x = torch.tensor(points[:samples], dtype=dtype) / 16
    return TensorDataset(x, torch.tensor(targets[:samples]), torch.arange(samples))


def model(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    between = {
        "mlp": [],
        "ln": [nn.LayerNorm(32)],
        "dropout": [nn.Dropout(0.3)],
        "dropout0": [nn.Dropout(0.0)],
        "bn": [nn.BatchNorm1d(32), nn.Dropout(0.3)],
    }[kind]
    return nn.Sequential(nn.Linear(64, 32), *between, nn.ReLU(), nn.Linear(32, 10)).to(dtype)


class Digits(Trainer):
    """Logs which samples it trained on; only what is logged counts, so a stand-in does not."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[int, list[int]]] = []

    def train_step(self, batch):
        x, y, ids = batch
        return {"loss": nn.functional.cross_entropy(self.model(x), y), "ids": ids}

    def test_step(self, batch):
        x, y, ids = batch
        out = self.model(x)
        return {
            "loss": nn.functional.cross_entropy(out, y),
            "acc": (out.argmax(1) == y).float().mean(),
            "output": out,
            "target": y,
            "ids": ids,
        }

    def logging(self, step_dict):
        if self.mode == "train":
            self.seen.append((self.progress_checker.get_step(), step_dict["ids"].tolist()))
        super().logging(step_dict)


class Weighted(Digits):
    """A loss over some of the samples only, as a masked token loss has it."""

    def train_step(self, batch):
        x, y, ids = batch
        counted = (y % 3 > 0).to(x.dtype)
        losses = nn.functional.cross_entropy(self.model(x), y, reduction="none")
        items = counted.sum()
        return {"loss": (losses * counted).sum() / items.clamp(min=1), "num_items": items, "ids": ids}


def trainer_for(
    kind: str = "mlp",
    dtype: torch.dtype = torch.float32,
    optimizer: str = "sgd",
    trainer: type[Trainer] = Digits,
    **options,
) -> Trainer:
    network = model(kind, dtype)
    if optimizer == "sgd":
        steps = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    else:
        steps = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(steps, 1, gamma=0.5)
    return trainer(network, "cpu", optimizer=steps, scheduler=schedule, log_bar=False, **{"seed": 0} | options)


def loader(samples: int = 1797, dtype: torch.dtype = torch.float32, **settings) -> DataLoader:
    return DataLoader(digits(samples, dtype), **{"batch_size": BATCH, "shuffle": True} | settings)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in network.state_dict().items()}
