"""What the trainers of `accumulation` work on: scikit-learn's digits in a fixed order, the model, the optimizer."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from .task import CLASSES, FEATURES, LEARNING_RATE, MOMENTUM, Batch, Task

BATCH_SIZE = 32
EPOCHS = 2
HIDDEN = 32


def make_dataset(samples: int, seed: int = 1) -> TensorDataset:
    """Return the first `samples` digits of one seeded permutation, which is the order of every run."""
    digits = load_digits()
    order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(seed))[:samples]
    x = torch.from_numpy(digits.data).float() / 16
    return TensorDataset(x[order], torch.from_numpy(digits.target)[order])


def make_model(seed: int = 0) -> nn.Sequential:
    """Return the MLP 64-32-10, the same weights for every run."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


class DigitsTask(Task):
    """One run of one trainer.

    Parameters
    ----------
    data : TensorDataset
        What `make_dataset` returned.
    parts : int
        Micro-batches to a batch; 1 trains on whole batches.
    """

    def __init__(self, data: TensorDataset, parts: int) -> None:
        super().__init__(make_model(), batches=[])  # no ready ones: the trainers walk a loader here
        self.data = data
        self.parts = parts
        self.micro_size = BATCH_SIZE // parts
        self.epochs = EPOCHS
        self.steps = 0

    def whole_loader(self) -> DataLoader[Batch]:
        """Return the loader of whole batches."""
        return DataLoader(self.data, batch_size=BATCH_SIZE, shuffle=False)  # type: ignore[arg-type]  # of pairs

    def loader(self) -> DataLoader[Batch]:
        """Return the loader of micro-batches."""
        return DataLoader(self.data, batch_size=self.micro_size, shuffle=False)  # type: ignore[arg-type]  # of pairs

    def optimizer(self) -> torch.optim.SGD:
        """Return an optimizer that counts its steps in `steps`."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        optimizer.register_step_post_hook(self._count)
        return optimizer

    def weights(self) -> list[Tensor]:
        """Return the parameters."""
        return [parameter.detach() for parameter in self.model.parameters()]

    def _count(self, *args: object) -> None:
        self.steps += 1
