"""Small models, data and trainers that the tests share, all importable from a spawned process."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from zae_engine.trainer import Trainer


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits and what they are, without its import, which takes a second in each process."""
    (package,) = find_spec("sklearn").submodule_search_locations
    with gzip.open(Path(package, "datasets", "data", "digits.csv.gz"), "rt") as file:
        found = np.loadtxt(file, delimiter=",")
    return found[:, :-1], found[:, -1].astype(int)


class MLPTrainer(Trainer):
    def train_step(self, batch):
        x, y = batch
        out = self.model(x)
        return {"loss": nn.functional.cross_entropy(out, y), "output": out, "target": y}

    test_step = train_step

    def metric_on_epoch_end(self):
        log = self.log_train if self.mode == "train" else self.log_test
        hits = torch.cat(log["output"]).argmax(1) == torch.cat(log["target"])
        return {"acc": hits.float().mean().item()}


class PlainTrainer(Trainer):
    """Only the loss, so that nothing but the training differs from a loop written by hand."""

    def train_step(self, batch):
        x, y = batch
        return {"loss": nn.functional.cross_entropy(self.model(x), y)}

    test_step = train_step


def mlp(dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def data(samples: int = 45, seed: int = 1) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 8, generator=generator)
    return TensorDataset(x, (x[:, :3]).argmax(1))


def loader(samples: int = 45, batch_size: int = 8, **settings) -> DataLoader:
    return DataLoader(data(samples), batch_size=batch_size, **settings)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def make(
    kind: type[Trainer] = PlainTrainer, dropout: float = 0.0, model: nn.Module | None = None, **options
) -> Trainer:
    model = mlp(dropout) if model is None else model
    options = {"device": "cpu", "log_bar": False, "seed": 0, "optimizer": sgd(model)} | options
    return kind(model, **options)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for key in wanted:
        assert torch.equal(got[key], wanted[key]), f"{key} differs by {(got[key] - wanted[key]).abs().max()}"


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max((one[key] - other[key]).abs().max().item() for key in one)
