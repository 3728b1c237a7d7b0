"""Micro-batches that weigh their items: as exact as the loss."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.helpers import largest_difference, weights
from zae_engine.trainer import Trainer

COUNTS = {
    "tensor": lambda mask: mask.sum(),
    "float64": lambda mask: mask.sum().double(),
    "int": lambda mask: int(mask.sum()),
}


class Tokens(Trainer):
    def train_step(self, batch):
        mask = batch[:, 1:] > 0
        losses = nn.functional.cross_entropy(self.model(batch[:, :-1]).transpose(1, 2), batch[:, 1:], reduction="none")
        return {"loss": losses[mask].mean(), "num_items": COUNTS[self.kind](mask)}

    test_step = train_step


def sequences():
    torch.manual_seed(0)
    return [torch.randint(1, 9, (n,)) for n in (11, 101, 3, 40, 7, 60, 2, 19, 33, 5)]


def padded(rows):
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def trained(kind, dtype=torch.float64, **options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = Tokens(model, device="cpu", optimizer=optimizer, seed=0, log_bar=False, **options)
    trainer.kind = kind
    trainer.run(3, DataLoader(sequences(), batch_size=4, collate_fn=padded))
    return trainer


@pytest.mark.parametrize(
    "options", [{"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 4}, {"shards": 3}]
)
@pytest.mark.parametrize("kind", COUNTS)
def test_items_are_divided_in_float64(kind, options):
    whole, cut = trained("int"), trained(kind, **options)
    assert largest_difference(weights(cut.model), weights(whole.model)) < 1e-14
    assert cut.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], rel=1e-14)


def test_a_loss_in_float32_keeps_its_precision():
    cut = trained("tensor", torch.float32, gradient_accumulation_steps=2)
    assert all(p.grad.dtype == torch.float32 for p in cut.model.parameters())
    whole = trained("tensor", torch.float32)
    assert largest_difference(weights(cut.model), weights(whole.model)) < 1e-6
