"""A run that goes on from any of its checkpoints ends with the bits of the undisturbed one."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from tests.helpers import data, loader, mlp
from tests.trainer.addons.resumed import Drawing, assert_resumes, build
from zae_engine.trainer.addons import EarlyStoppingAddon, StateManagerAddon


@pytest.fixture(params=["some", pytest.param("all", marks=pytest.mark.slow)])
def steps(request):
    """From which steps a test goes on."""
    return request.param


# ---------------------------------------------------------------------- loaders


class Augmented(Dataset):
    """Draws from all three streams for each sample."""

    def __init__(self, samples=21):
        self.data = data(samples)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return x + 0.1 * torch.randn(8) + random.random() + np.random.random_sample(), y


class Stream(IterableDataset):
    """Shuffles and augments by itself."""

    def __iter__(self):
        whole = Augmented()
        for index in random.sample(range(len(whole)), len(whole)):
            x, y = whole[index]
            yield x + torch.randn(8), y


class OddBatches(Sampler):
    """A user's: batches of changing sizes, in an order of its own."""

    def __init__(self, samples=21):
        self.samples = samples

    def __iter__(self):
        order = torch.randperm(self.samples).tolist()
        while order:
            size = random.randint(2, 6)
            yield order[:size]
            order = order[size:]


class ByEpoch(Sampler):
    """Its order is a function of the epoch that it is told."""

    epoch = 0

    def __len__(self):
        return 21

    def __iter__(self):
        return iter(torch.randperm(21, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def set_epoch(self, epoch):
        self.epoch = epoch


class Counting(Sampler):
    """Counts its walks by itself, so that it cannot know where a run goes on; its generator does."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(4)

    def __len__(self):
        return 21

    def __iter__(self):
        return iter(torch.randperm(21, generator=self.generator).tolist())


def noisy(samples):
    x, y = torch.utils.data.default_collate(samples)
    return x + torch.randn(x.shape) + np.random.random_sample(), y


def some_none(samples):
    return None if float(samples[0][0][0]) > 0.5 else torch.utils.data.default_collate(samples)


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


small = partial(loader, 21, 5)

LOADERS = {
    "plain": small,
    "shuffle": lambda: small(shuffle=True),
    "own generator": lambda: small(shuffle=True, generator=seeded()),
    "augmented": lambda: DataLoader(Augmented(), 5, shuffle=True),
    "collate draws": lambda: small(shuffle=True, collate_fn=noisy),
    "drop_last": lambda: small(shuffle=True, drop_last=True),
    "weighted": lambda: small(sampler=WeightedRandomSampler([1.0, 2.0, 3.0] * 7, 21, generator=seeded())),
    "weighted, no generator": lambda: small(sampler=WeightedRandomSampler([1.0, 2.0, 3.0] * 7, 21)),
    "subset": lambda: small(sampler=SubsetRandomSampler(range(3, 20))),
    "replacement": lambda: small(sampler=RandomSampler(range(21), replacement=True, num_samples=17)),
    "batch sampler": lambda: DataLoader(data(21), batch_sampler=OddBatches()),
    "batch sampler of torch": lambda: DataLoader(
        data(21), batch_sampler=BatchSampler(RandomSampler(range(21), generator=seeded()), 4, True)
    ),
    "set_epoch": lambda: small(sampler=ByEpoch()),
    "sampler with a generator": lambda: small(sampler=Counting()),
    "iterable": lambda: DataLoader(Stream(), 5),
    "list": lambda: list(small()),
    "batch_size None": lambda: DataLoader(list(small()), batch_size=None, shuffle=True),
    "None batches": lambda: small(shuffle=True, collate_fn=some_none),
}


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("name", LOADERS)
def test_from_any_step_over(name, tmp_path, steps):
    def script(folder):
        trainer = build(folder)
        trainer.run(2, LOADERS[name](), loader(11, 5), resume="auto")
        return trainer

    assert assert_resumes(tmp_path, script, steps) >= 6


WORKERS = {
    "workers": lambda: DataLoader(Augmented(), 6, shuffle=True, num_workers=2),
    "persistent workers": lambda: DataLoader(Augmented(), 6, shuffle=True, num_workers=1, persistent_workers=True),
    "persistent workers, own generator": lambda: DataLoader(
        Augmented(), 6, shuffle=True, num_workers=1, persistent_workers=True, generator=seeded()
    ),
    "iterable with a worker": lambda: DataLoader(Stream(), 6, num_workers=1),
    "iterable with a worker that stays": lambda: DataLoader(Stream(), 6, num_workers=1, persistent_workers=True),
}


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("name", WORKERS)
def test_from_some_steps_with(name, tmp_path, steps):
    def script(folder):
        trainer = build(folder)
        trainer.run(3, WORKERS[name](), resume="auto")
        return trainer

    assert assert_resumes(tmp_path, script, steps) >= 12


def test_a_generator_of_batches_goes_on_where_a_new_one_is_given(tmp_path, steps):
    def script(folder):
        trainer = build(folder)
        trainer.run(1, (batch for batch in small()), resume="auto")
        return trainer

    assert_resumes(tmp_path, script, steps)


# ---------------------------------------------------------------------- schedulers, optimizers, precision

SCHEDULERS = {
    "StepLR": (lambda o: lr_scheduler.StepLR(o, 1, 0.5), {}),
    "OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=15), {"scheduler_step_on_batch": True}),
    "ReduceLROnPlateau": (lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5), {}),
    "SequentialLR": (
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
        ),
        {"scheduler_step_on_batch": True},
    ),
    "LambdaLR": (lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch), {}),
    "ChainedScheduler": (
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ConstantLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
        ),
        {},
    ),
    "CosineAnnealingWarmRestarts": (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2), {}),
    "CyclicLR": (
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=True),
        {"scheduler_step_on_batch": True},
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_from_any_step_with_the_scheduler(name, tmp_path, steps):
    make, options = SCHEDULERS[name]

    def script(folder):
        trainer = build(folder, scheduler=make, **options)
        trainer.run(3, small(shuffle=True), loader(11, 5), resume="auto")
        return trainer

    assert assert_resumes(tmp_path, script, steps) >= 8


OPTIMIZERS = {
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), 0.01, amsgrad=True),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters(), 0.01),
    "groups": lambda m: torch.optim.SGD(
        [{"params": m[0].parameters(), "lr": 0.05}, {"params": m[3].parameters(), "momentum": 0.5}], lr=0.1
    ),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters(), 0.01),
    "ASGD": lambda m: torch.optim.ASGD(m.parameters(), 0.01, t0=3),
    "foreach Adam": lambda m: torch.optim.Adam(m.parameters(), 0.01, foreach=True),
    "fused AdamW": lambda m: torch.optim.AdamW(m.parameters(), torch.tensor(0.01), fused=True),
    "some parameters only": lambda m: torch.optim.Adam(m[3].parameters(), 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_from_any_step_with_the_optimizer(name, tmp_path, steps):
    def script(folder):
        trainer = build(folder, optimizer=OPTIMIZERS[name])
        trainer.run(1, small(shuffle=True), resume="auto")
        return trainer

    assert_resumes(tmp_path, script, steps)


class Items(Drawing):
    """Counts items, and returns values of many kinds, some of them now and then."""

    def train_step(self, batch):
        values, step = super().train_step(batch), self.progress_checker.get_step()
        values |= {"num_items": (batch[1] > 0).sum() + 1, "whole": step, "flag": step % 2 == 0}
        values |= {"half": torch.tensor(step / 3).bfloat16(), "large": torch.tensor(2**40 + step)}
        values |= {"name": f"step {step}", "pair": (step, torch.tensor([step]))}
        return values | ({"rare": 1.0 / step} if step % 3 == 0 else {})


OPTIONS = {
    "bf16": {"mixed_precision": "bf16"},
    "accumulation": {"gradient_accumulation_steps": 2},
    "clipping": {"gradient_clip": 0.1},
    "shards": {"shards": 4, "gradient_clip": 1.0},
    "values of many kinds": {"kind": Items},
    "items and accumulation": {"kind": Items, "gradient_accumulation_steps": 2},
    "monitor": {"monitor": "sum", "monitor_mode": "max"},
    "stop at nan": {"on_nan": "stop"},
    "ckpt": {"save_format": "ckpt"},
    "not beside": {"save_async": False},
    "unseeded samples": {"seeded_samples": False},
    "early stopping": {"add_ons": (EarlyStoppingAddon, StateManagerAddon), "patience": 3},
    "early stopping outside": {"add_ons": (StateManagerAddon, EarlyStoppingAddon), "patience": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_from_any_step_with(name, tmp_path, steps):
    def script(folder):
        trainer = build(folder, **OPTIONS[name])
        trainer.run(2, DataLoader(Augmented(), 5, shuffle=True), loader(11, 5), valid_every="3st", resume="auto")
        return trainer

    assert assert_resumes(tmp_path, script, steps) == 10


class Measured(Drawing):
    def train_step(self, batch):
        return super().train_step(batch) | {"target": batch[1]}

    test_step = train_step


def test_from_any_step_with_torchmetrics(tmp_path, steps):
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

    def script(folder):
        metrics = {
            "acc": MulticlassAccuracy(3),
            "both": MetricCollection({"auroc": MulticlassAUROC(3), "macro": MulticlassAccuracy(3, average="macro")}),
        }
        trainer = build(folder, Measured, metrics=metrics)
        trainer.run(2, small(shuffle=True), loader(11, 5), valid_every="2st", resume="auto")
        return trainer

    assert_resumes(tmp_path, script, steps)


# ---------------------------------------------------------------------- when it validates, and what it is told

RUNS = {
    "no validation": {},
    "named sets": {"valid_loader": lambda: {"clean": loader(11, 5), "noisy": DataLoader(Augmented(9), 4)}},
    "every 2 epochs": {"valid_loader": lambda: loader(11, 5), "valid_every": "2ep"},
    "a shuffling one": {"valid_loader": lambda: loader(11, 5, shuffle=True, generator=seeded(3)), "valid_every": "2st"},
    "max_steps": {"max_steps": 7},
    "only max_steps": {"max_steps": 12, "n_epoch": None, "valid_loader": lambda: loader(11, 5)},
}


@pytest.mark.parametrize("name", RUNS)
def test_from_any_step_of_a_run_with(name, tmp_path, steps):
    def script(folder):
        options = {"n_epoch": 3} | RUNS[name]
        valid = options.pop("valid_loader", lambda: None)()
        trainer = build(folder)
        trainer.run(options.pop("n_epoch"), small(shuffle=True), valid, **options, resume="auto")
        return trainer

    assert_resumes(tmp_path, script, steps)


def test_from_any_step_of_a_script_with_several_calls(tmp_path, steps):
    def script(folder):
        train, valid = small(shuffle=True, generator=seeded()), loader(11, 5, shuffle=True, generator=seeded(3))
        trainer = build(folder)
        trainer.run(1, train, valid, resume="auto")
        trainer.run(max_steps=3, loader=train, valid_loader=valid, valid_every="2st", resume="auto")
        trainer.run(1, train, resume="auto")
        return trainer

    assert assert_resumes(tmp_path, script, steps) >= 12


# ---------------------------------------------------------------------- models


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 8)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.drop(self.first(x)))[:, :3]


class Extra(nn.Module):
    """Keeps a count and a tensor in its extra state, and uses them."""

    def __init__(self, tensor):
        super().__init__()
        self.inner, self.tensor, self.calls = nn.Linear(8, 3), tensor, 0

    def forward(self, x):
        self.calls += self.training
        return self.inner(x) + self.calls

    def get_extra_state(self):
        return torch.tensor(self.calls) if self.tensor else {"calls": self.calls, "names": ["a", "b"]}

    def set_extra_state(self, state):
        self.calls = int(state) if self.tensor else state["calls"]


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.weight).abs()


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp(0.2).double()

    def forward(self, x):
        return self.inner(x.double())


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def frozen():
    model = mlp(0.3)
    model[0].weight.requires_grad_(False)
    return model


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 4, 2, dropout=0.3, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.rnn(x.reshape(len(x), 4, 2))[0][:, -1])


MODELS = {
    "BatchNorm": normed,
    "frozen": frozen,
    "tied": Tied,
    "extra state": lambda: Extra(False),
    "extra state of tensors": lambda: Extra(True),
    "complex": Complex,
    "float64": Double,
    "RNN": Recurrent,
    "lazy": lambda: nn.Sequential(nn.LazyLinear(16), nn.Dropout(0.2), nn.LazyLinear(3)),
}


def repeatable(model):
    torch.manual_seed(0)
    return model()


SAVED = [(name, "safetensors") for name in MODELS] + [(name, "ckpt") for name in ("tied", "extra state", "complex")]


@pytest.mark.parametrize(("name", "save_format"), SAVED)
def test_from_any_step_of_a_model(name, save_format, tmp_path, steps):
    def script(folder):
        model, opt = partial(repeatable, MODELS[name]), partial(adamw)
        trainer = build(folder, model=model, optimizer=opt, save_format=save_format)
        trainer.run(1, loader(20, 5, shuffle=True), loader(11, 5), valid_every="2st", resume="auto")
        trainer.apply_weights()  # the best, whatever of them a file cannot hold
        return trainer

    assert_resumes(tmp_path, script, steps)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), 0.01)


# ---------------------------------------------------------------------- the user's own state


class Averaging(Drawing):
    """Keeps a running mean and a list of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mean, self.seen = torch.zeros(3), []

    def train_step(self, batch):
        values = super().train_step(batch)
        self.mean = 0.9 * self.mean + 0.1 * values["output"].mean(0)
        self.seen.append((self.progress_checker.get_step(), values["loss"].item()))
        return values | {"loss": values["loss"] + self.mean.sum() * values["loss"], "mean": self.mean.sum()}

    def state_dict(self):
        return super().state_dict() | {"Averaging": {"mean": self.mean, "seen": self.seen}}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.mean, self.seen = state["Averaging"]["mean"], state["Averaging"]["seen"]


def test_from_any_step_with_a_state_of_the_users_own(tmp_path, steps):
    def script(folder):
        trainer = build(folder, Averaging)
        trainer.run(2, small(shuffle=True), resume="auto")
        return trainer

    assert_resumes(tmp_path, script, steps)
