"""The weights are those of the loop that one would write by hand."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.helpers import (
    MLPTrainer,
    PlainTrainer,
    assert_equal,
    data,
    largest_difference,
    loader,
    make,
    mlp,
    sgd,
    weights,
)
from tests.nurse import environment
from zae_engine.trainer.step.update import DelegatedUpdate, DirectUpdate

ROOT = Path(__file__).parents[3]


def by_hand(epochs=2, clip=0.0, on_batch=None, on_epoch=None, bf16=False, batches=None):
    """The loop of the PyTorch tutorials."""
    model = mlp()
    optimizer = sgd(model)
    per_batch = on_batch(optimizer) if on_batch else None
    per_epoch = on_epoch(optimizer) if on_epoch else None
    for _ in range(epochs):
        for x, y in loader() if batches is None else batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if per_batch:
                per_batch.step()
        if per_epoch:
            per_epoch.step()
    return weights(model)


def by_trainer(epochs=2, scheduler=None, batches=None, **options):
    model = mlp()
    optimizer = sgd(model)
    trainer = make(model=model, optimizer=optimizer, scheduler=scheduler(optimizer) if scheduler else None, **options)
    trainer.run(epochs, loader() if batches is None else batches)
    return weights(model)


def exponential(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_equal_to_the_bit_with_and_without_clipping(clip):
    assert_equal(by_trainer(gradient_clip=clip), by_hand(clip=clip))


def test_equal_to_the_bit_with_a_scheduler_per_batch():
    assert_equal(by_trainer(scheduler=exponential, scheduler_step_on_batch=True), by_hand(on_batch=exponential))


def test_equal_to_the_bit_with_a_scheduler_per_epoch():
    assert_equal(by_trainer(scheduler=exponential), by_hand(on_epoch=exponential))


def test_equal_to_the_bit_in_bf16():
    got = by_trainer(mixed_precision="bf16")
    assert_equal(got, by_hand(bf16=True))
    assert largest_difference(got, by_hand()) > 0  # bf16 was really used


def test_equal_to_the_bit_with_a_generator_of_the_loader():
    def shuffled():
        return loader(shuffle=True, generator=torch.Generator().manual_seed(3))

    assert_equal(by_trainer(batches=shuffled()), by_hand(batches=shuffled()))


def test_validation_bar_and_metrics_change_nothing():
    model = mlp()
    trainer = make(MLPTrainer, model=model, dropout=0.0, log_bar=True)
    trainer.run(2, loader(), loader(30, shuffle=True), valid_every="2st")
    assert_equal(weights(model), by_hand())


@pytest.mark.parametrize("samples", [45, 43, 48])
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_does_not_change_the_result(samples, parts):
    whole = by_trainer(batches=loader(samples))
    assert largest_difference(by_trainer(batches=loader(samples), gradient_accumulation_steps=parts), whole) <= 1e-6


def test_accumulation_in_float64_differs_by_rounding_only():
    def train(parts):
        model = mlp().double()
        trainer = make(model=model, optimizer=sgd(model), gradient_accumulation_steps=parts)
        trainer.run(2, [(x.double(), y) for x, y in loader()])
        return weights(model)

    assert largest_difference(train(1), train(4)) <= 1e-14


def test_accumulation_does_not_change_the_logs():
    histories = []
    for parts in (1, 4):
        trainer = make(MLPTrainer, gradient_accumulation_steps=parts, gradient_clip=0.5)
        histories.append(trainer.run(1, loader())[-1])
    for name in ("train_loss", "train_acc", "train_grad_norm"):
        assert histories[0][name] == pytest.approx(histories[1][name], abs=1e-6)


class TokenTrainer(PlainTrainer):
    """A mean over the items that are not masked, so micro-batches of one size weigh differently."""

    def train_step(self, batch):
        x, y = batch
        kept = x[:, 0] > -0.5
        losses = nn.functional.cross_entropy(self.model(x), y, reduction="none")
        return {"loss": losses[kept].mean(), "num_items": kept.sum() if self.tensor_items else int(kept.sum())}


@pytest.mark.parametrize("tensor_items", [True, False])
def test_num_items_weigh_the_micro_batches(tensor_items):
    results = []
    for parts in (1, 2, 4):
        trainer = make(TokenTrainer, gradient_accumulation_steps=parts)
        trainer.tensor_items = tensor_items
        history = trainer.run(2, loader(samples=48, batch_size=16))
        results.append((weights(trainer.model), history[-1]["train_loss"]))
    for got, loss in results[1:]:
        assert largest_difference(got, results[0][0]) <= 1e-6
        assert loss == pytest.approx(results[0][1], abs=1e-6)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_direct_and_delegated_calls_are_equal_to_the_bit(precision, clip, monkeypatch):
    direct = by_trainer(mixed_precision=precision, gradient_clip=clip, gradient_accumulation_steps=2)
    monkeypatch.setattr("zae_engine.trainer.step.update.needs_accelerate", lambda *_: True)
    trainer = make(mixed_precision=precision, gradient_clip=clip, gradient_accumulation_steps=2)
    trainer.run(2, loader())
    assert type(trainer._place.update) is DelegatedUpdate
    assert_equal(weights(trainer.model), direct)


def test_the_direct_calls_are_chosen_on_one_cpu():
    trainer = make()
    assert type(trainer._place.update) is DirectUpdate
    assert trainer._place.update.optimizer is trainer.optimizer


class Noisy(Dataset):
    """Draws from all three generators in the worker."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        x = torch.randn(8) + random.random() + np.random.rand()
        return x.float(), index % 3


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_repeats_to_the_bit_with_dropout_and_workers(workers):
    def train(seed):
        trainer = make(dropout=0.5, seed=seed)
        trainer.run(2, DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=workers))
        return weights(trainer.model)

    first = train(7)
    torch.manual_seed(99)  # what ran before must not matter
    random.seed(99)
    assert_equal(train(7), first)
    assert largest_difference(train(8), first) > 0


def test_a_drawn_seed_is_reported_and_repeats_the_run(capsys):
    first = make(dropout=0.5, seed=None, log_bar=True)
    first.run(1, loader(shuffle=True))
    assert f"seed {first.seed} (drawn)" in capsys.readouterr().err
    again = make(dropout=0.5, seed=first.seed)
    again.run(1, loader(shuffle=True))
    assert_equal(weights(again.model), weights(first.model))


def test_epochs_shuffle_differently():
    orders = []

    class Recorder(PlainTrainer):
        def run_batch(self, batch, **kwargs):
            orders[-1].append(batch[0])
            super().run_batch(batch, **kwargs)

        def run_epoch(self, loader, **kwargs):
            orders.append([])
            super().run_epoch(loader, **kwargs)

    make(Recorder).run(2, loader(shuffle=True))
    assert not torch.equal(torch.cat(orders[0]), torch.cat(orders[1]))


class SubmoduleTrainer(PlainTrainer):
    """Calls a method of its own model, never its forward."""

    def train_step(self, batch):
        x, y = batch
        assert type(self.model) is Encoder
        logits = self.model.head(self.model.encode(x))
        self.seen = (torch.is_autocast_enabled("cpu"), logits.dtype)
        return {"loss": nn.functional.cross_entropy(logits.float(), y)}

    test_step = train_step


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def encode(self, x):
        return self.body(x).relu()


def test_a_step_may_call_any_method_and_autocast_still_applies():
    trainer = make(SubmoduleTrainer, model=Encoder(), mixed_precision="bf16")
    trainer.run(1, loader())
    assert trainer.seen == (True, torch.bfloat16)
    assert list(trainer.model.state_dict()) == ["body.weight", "body.bias", "head.weight", "head.bias"]
    assert "forward" not in vars(trainer.model)  # nothing was patched into the user's module


COMPILED = """
from tests.helpers import *
from tests.trainer.step.test_exact import Encoder

class Compiled(PlainTrainer):
    def train_step(self, batch):
        x, y = batch
        self.compiled = torch.compiler.is_compiling()
        return {"loss": nn.functional.cross_entropy(self.model.head(self.model.encode(x)), y)}

trainer = make(Compiled, model=Encoder())
trainer.run(1, loader(samples=16))
print(type(trainer._place.prepared).__name__, trainer.compiled, next(iter(trainer.model.state_dict())))
"""


def test_compile_covers_the_whole_step(nursery):
    # In a process of its own, since Accelerate keeps the choice of a compiler as long as the process lives.
    done = nursery.run("-c", COMPILED, env=environment() | {"ACCELERATE_DYNAMO_BACKEND": "EAGER"})
    assert done.stdout.split() == ["OptimizedModule", "True", "body.weight"], done.stderr


def test_a_custom_optimizer_replaced_between_runs_is_used():
    trainer = make()
    trainer.run(1, loader())
    trainer.optimizer = sgd(trainer.model, lr=0.0)
    before = weights(trainer.model)
    trainer.run(1, loader())
    assert_equal(weights(trainer.model), before)


def test_data_are_seen_once_an_epoch():
    seen = []

    class Recorder(PlainTrainer):
        def train_step(self, batch):
            seen.append(batch[0])
            return super().train_step(batch)

    make(Recorder, gradient_accumulation_steps=3).run(1, loader())
    assert torch.equal(torch.cat(seen), data().tensors[0])
