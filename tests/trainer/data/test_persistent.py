"""The order and the randomness of samples depend on seed and epoch only, whether workers stay or not."""

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from tests.helpers import assert_equal, weights
from zae_engine.trainer import Trainer


class Noisy(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return torch.tensor([float(i)]), torch.rand(1)


class Stream(IterableDataset):
    """Shuffles with the worker's streams, and with a generator that is seeded as torch's docs have it."""

    def __iter__(self):
        info = get_worker_info()
        own = torch.Generator().manual_seed(info.seed)
        for i in torch.randperm(12).tolist()[info.id :: info.num_workers]:
            yield torch.tensor([float(i)]), torch.rand(1, generator=own)


class Lazy(Sampler):
    def __len__(self):
        return 12

    def __iter__(self):
        return iter(int(torch.randint(12, ())) for _ in range(12))


class Seen(Trainer):
    def train_step(self, batch):
        kind = "train" if self.model.training else "test"
        self.seen.append((kind, [(int(i), round(a.item(), 6)) for i, a in zip(*batch, strict=True)]))
        return {"loss": (self.model(batch[1]) ** 2).mean()}

    test_step = train_step


def seeded():
    return torch.Generator().manual_seed(5)


LOADERS = {
    "shuffled": lambda **k: DataLoader(Noisy(), 4, shuffle=True, **k),
    "own generator": lambda **k: DataLoader(Noisy(), 4, shuffle=True, generator=seeded(), **k),
    "sampler's generator": lambda **k: DataLoader(
        Noisy(), 4, sampler=RandomSampler(range(12), generator=seeded()), **k
    ),
    "weighted": lambda **k: DataLoader(Noisy(), 4, sampler=WeightedRandomSampler([1.0] * 12, 12), **k),
    "subset": lambda **k: DataLoader(Noisy(), 4, sampler=SubsetRandomSampler(range(12)), **k),
    "of the user's": lambda **k: DataLoader(Noisy(), 4, sampler=Lazy(), **k),
    "batches": lambda **k: DataLoader(Noisy(), batch_sampler=BatchSampler(RandomSampler(range(12)), 4, False), **k),
    "own batches": lambda **k: DataLoader(Noisy(), batch_sampler=BatchSampler(Lazy(), 4, False), **k),
}
WORKERS = {"num_workers": 2, "multiprocessing_context": "fork"}


def made(kind=Seen, **options):
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = kind(model, device="cpu", optimizer=optimizer, seed=3, log_bar=False, **options)
    trainer.seen = []
    return trainer


def seen(loader, held_out=None, epochs=3):
    trainer = made()
    trainer.run(epochs, loader, held_out, valid_every="2st")
    return trainer.seen, weights(trainer.model)


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("name", LOADERS)
def test_workers_that_stay_draw_the_order_of_those_that_do_not(name):
    make = LOADERS[name]
    wanted, model = seen(make(), make())
    found, same = seen(make(**WORKERS, persistent_workers=True), make(**WORKERS, persistent_workers=True))
    assert found == wanted
    assert_equal(same, model)
    assert len({str(batch) for _, batch in wanted}) > 9  # each epoch has an order of its own


@pytest.mark.usefixtures("starts_processes")
def test_a_stream_whose_workers_stay_is_the_stream_of_new_workers():
    stay, new = (lambda p=p: DataLoader(Stream(), 4, **WORKERS, persistent_workers=p) for p in (True, False))
    assert seen(stay(), stay())[0] == seen(new(), new())[0]
