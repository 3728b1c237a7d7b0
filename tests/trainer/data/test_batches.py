"""Every form of batch and every kind of loader."""

from collections import defaultdict, namedtuple
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    WeightedRandomSampler,
)

from tests.helpers import PlainTrainer, assert_equal, data, largest_difference, loader, make, mlp, sgd, weights
from zae_engine.trainer.data.plan import BatchPlan

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Record:
    x: Tensor
    y: Tensor
    name: str = "a"


class Opaque:
    """An object that knows how to go to a device."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device):
        return Opaque(self.x.to(device), self.y.to(device))


FORMS = {
    "tuple": (lambda x, y: (x, y), lambda b: b),
    "list": (lambda x, y: [x, y], lambda b: b),
    "dict": (lambda x, y: {"input": x, "target": y, "ids": ["s"] * len(x)}, lambda b: (b["input"], b["target"])),
    "defaultdict": (lambda x, y: defaultdict(list, input=x, target=y), lambda b: (b["input"], b["target"])),
    "namedtuple": (Pair, lambda b: (b.x, b.y)),
    "dataclass": (Record, lambda b: (b.x, b.y)),
    "nest": (lambda x, y: {"a": [Pair(x, y)], "b": "text"}, lambda b: (b["a"][0].x, b["a"][0].y)),
    "tensor": (lambda x, y: torch.cat([x, y[:, None].float()], 1), lambda b: (b[:, :8], b[:, 8].long())),
}


class FormTrainer(PlainTrainer):
    def train_step(self, batch):
        return super().train_step(self.take(batch))

    def test_step(self, batch):
        return self.train_step(batch)


def train(batches, take, **options):
    trainer = make(FormTrainer, **options)
    trainer.take = take
    trainer.run(1, batches, batches)
    return trainer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parts", [1, 2])
def test_every_form_of_batch_trains_alike(form, parts):
    wrap, take = FORMS[form]
    got = train([wrap(x, y) for x, y in loader()], take, gradient_accumulation_steps=parts)
    wanted = train(list(loader()), lambda b: b, gradient_accumulation_steps=parts)
    assert largest_difference(weights(got.model), weights(wanted.model)) <= 1e-6  # other strides, other kernels
    assert got.history[-1]["test_loss"] == pytest.approx(wanted.history[-1]["test_loss"], abs=1e-6)
    assert got.log_train["num_items"] == [8, 8, 8, 8, 8, 5]


def test_an_object_passes_through_and_cannot_be_cut():
    batches = [Opaque(x, y) for x, y in loader()]
    trainer = train(batches, lambda b: (b.x, b.y))
    assert_equal(weights(trainer.model), weights(train(list(loader()), lambda b: b).model))
    with pytest.raises(TypeError, match=r"gradient_accumulation_steps=2 .* cut .* Opaque"):
        train(batches, lambda b: (b.x, b.y), gradient_accumulation_steps=2)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data())


class Ready:
    """Whole batches, by number."""

    def __init__(self):
        self.batches = list(loader())

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        return self.batches[index]


LOADERS = {
    "workers": lambda: loader(num_workers=2),
    "persistent": lambda: loader(num_workers=1, persistent_workers=True),
    "batch_sampler": lambda: DataLoader(data(), batch_sampler=BatchSampler(SequentialSampler(data()), 8, False)),
    "no batch size": lambda: DataLoader(Ready(), batch_size=None),
    "stream": lambda: DataLoader(Stream(), batch_size=8),
    "list": lambda: list(loader()),
    "getitem only": lambda: Ready(),
}


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("kind", LOADERS)
def test_every_kind_of_loader_trains_alike(kind):
    trainer, plain = make(), make()
    trainer.run(2, LOADERS[kind](), LOADERS[kind]())
    plain.run(2, loader(), loader())
    assert_equal(weights(trainer.model), weights(plain.model))
    assert trainer.history.column("test_loss") == plain.history.column("test_loss")


def test_a_generator_serves_one_epoch():
    trainer = make()
    trainer.run(1, (batch for batch in loader()))
    assert trainer.history[-1]["step"] == 6
    with pytest.raises(ValueError, match="generator, which can be walked once, but the run takes 2 epochs"):
        trainer.run(2, (batch for batch in loader()))


def test_a_weighted_sampler_is_the_users_own():
    sampler = WeightedRandomSampler([1.0] * 44 + [100.0], 20)
    trainer = make()
    trainer.run(1, DataLoader(data(), batch_size=8, sampler=sampler))
    assert trainer.log_train["num_items"] == [8, 8, 4]


def test_a_batch_of_none_is_left_out():
    trainer = make()
    trainer.run(1, [None, *loader(), None])
    assert trainer.progress_checker.get_step() - 1 == 6


def test_batch_sizes_are_known_as_in_0_7_6():
    trainer = make()
    train_loader, valid_loader = loader(), loader(batch_size=16)
    trainer.run(1, train_loader, valid_loader)
    assert (trainer.batch_size, trainer.valid_batch_size) == (8, 16)
    assert trainer.loader is train_loader
    assert trainer.valid_loader is valid_loader


def test_a_loader_without_samples_warns_and_ends_cleanly():
    trainer = make()
    before = weights(trainer.model)
    with pytest.warns(UserWarning, match="the loader gave no batch"):
        history = trainer.run(3, DataLoader(data(0), batch_size=8))
    assert len(history) == 0
    assert_equal(weights(trainer.model), before)


def test_a_validation_loader_without_samples_warns():
    trainer = make()
    with pytest.warns(UserWarning, match="valid_loader of this run gave no batch, so this validation decides nothing"):
        history = trainer.run(2, loader(), [])
    assert len(history) == 2
    assert "test_loss" not in history[-1]
    assert trainer.weight_buffer["epoch"] == []  # a training loss is no validation's


class Now:
    """Has something to give in some of its walks only."""

    def __init__(self, *walks):
        self.walks, self.walk = walks, 0

    def __iter__(self):
        self.walk += 1
        return iter(loader(16) if self.walk in self.walks else ())


class OneByOne(PlainTrainer):
    """Gets better with each evaluation of the set that it is asked about last."""

    def test_step(self, batch):
        return {"loss": torch.tensor(1.0 / self.progress_checker.get_step())}


@pytest.mark.filterwarnings("ignore:valid_loader .* gave no batch")
@pytest.mark.parametrize("named", [False, True])
def test_an_empty_validation_decides_nothing_and_is_asked_again(named):
    sometimes = Now(1, 3)
    model = mlp()
    optimizer = sgd(model)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    trainer = make(OneByOne, model=model, optimizer=optimizer, scheduler=plateau)
    history = trainer.run(4, loader(16), {"often": loader(8), "seldom": sometimes} if named else sometimes)
    name = "test_seldom_loss" if named else "test_loss"
    assert [name in row for row in history] == [True, False, True, False]
    assert sometimes.walk == 4
    assert trainer.weight_buffer["epoch"] == [2]
    assert plateau.last_epoch == 2


def test_the_model_that_trained_is_the_users_own():
    model = nn.Sequential(nn.Linear(8, 3))
    trainer = make(model=model)
    trainer.run(1, loader())
    assert trainer.model is model
    assert model[0].weight.grad is not None  # the last step's gradients can be looked at


class Understated(IterableDataset):
    """Says that it has 20 samples, and gives 28."""

    def __len__(self):
        return 20

    def __iter__(self):
        return iter([(torch.full((8,), i / 28), i % 3) for i in range(28)])


class Short(list):
    """A loader of one's own that counts wrong."""

    def __len__(self):
        return 2


MORE = {"stream": lambda: DataLoader(Understated(), 4), "own": lambda: Short(loader(28, 4))}


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize("kind", MORE)
def test_a_loader_that_gives_more_than_its_length_is_named_once(kind):
    trainer = make()
    with pytest.warns(UserWarning, match=r"gives more batches than its length says: len\(\) is \d, and this") as said:
        trainer.run(2, MORE[kind](), MORE[kind]())
    words = [str(w.message).split(" gives")[0] for w in said if "gives more" in str(w.message)]
    assert words == ["the loader", "valid_loader"]
    assert len(trainer.get_loss_history()) == 14  # all of them are trained on


@pytest.mark.filterwarnings("ignore:Length of IterableDataset", "ignore:the loader gives more batches")
@pytest.mark.parametrize(("spare", "done"), [(0, 5), (3, 6)])
def test_a_schedule_that_a_longer_loader_outlasts_is_refused_as_soon_as_that_shows(spare, done):
    model = mlp()
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=15 + spare)
    trainer = make(model=model, optimizer=optimizer, scheduler=schedule, scheduler_step_on_batch=True)
    message = rf"len\(\) is 5, and this is number {done + 1}; correct its __len__. With so many, OneCycleLR lasts"
    with pytest.raises(ValueError, match=message):
        trainer.run(3, MORE["stream"]())
    assert len(trainer.get_loss_history()) == done


class Ends(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        if i == 20:
            raise StopIteration
        return data(40)[i]


@pytest.mark.parametrize("profiled", [False, True])
def test_a_loader_s_batches_are_its_own_with_a_profiler_and_without(profiled):
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) if profiled else nullcontext() as found
    ):
        whole, ended = [list(BatchPlan(DataLoader(each, batch_size=8))) for each in (data(40), Ends())]
    wanted = list(DataLoader(data(40), batch_size=8))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(whole, wanted, strict=True))
    assert len(ended) == 2  # a dataset may end its loader, which torch's own iterator allows, too
    names = {event.key for event in found.key_averages()} if found else set()
    assert any(name.startswith("enumerate(DataLoader)") for name in names) is profiled


@pytest.mark.parametrize("keeps", [False, True])
def test_batches_that_are_arrays_are_walked_over(keeps):
    batches = list(BatchPlan(DataLoader(np.eye(6), batch_size=2, collate_fn=np.stack), keeps_ids=keeps))
    assert np.array_equal(np.concatenate(batches), np.eye(6))
