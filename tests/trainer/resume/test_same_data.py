"""A run that goes on has the data that it had; another split, other samples, another length are refused."""

import time

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from tests.helpers import PlainTrainer, assert_equal, data, make, weights
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.folder import committed
from zae_engine.trainer.addons import StateManagerAddon


class Stopped(BaseException):
    pass


class Managed(PlainTrainer):
    stops = False

    def metric_on_epoch_end(self):
        if self.stops and self.mode == "train" and self.progress_checker.get_epoch() == 2:
            raise Stopped
        return {}


def managed(folder, **options):
    return make(Managed.add_on(StateManagerAddon), save_path=folder, **options)


def killed(folder, loader, held_out=None):
    """Leave a run that ended in its second epoch, and the trainer that would go on with it in a new process."""
    trainer = managed(folder)
    trainer.stops = True
    with pytest.raises(Stopped):
        trainer.run(3, loader, held_out, resume="auto")
    return managed(folder)


def split(seed, dataset=None):
    return random_split(dataset or data(45), [30, 15], generator=torch.Generator().manual_seed(seed))


def nested(seed):
    first, second = split(0)
    inner = ConcatDataset(
        [first, Subset(second, torch.randperm(15, generator=torch.Generator().manual_seed(seed))[:9])]
    )
    return inner, Subset(Wrapped(inner), range(5))


class Wrapped(Dataset):
    """A user's own dataset around another one."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        return self.inner[i]


def relabelled(seed):
    x, y = data(45).tensors
    return TensorDataset(x, y[torch.randperm(45, generator=torch.Generator().manual_seed(seed))])


def sampled(sampler):
    return DataLoader(data(45), 8, sampler=sampler)


def picked(seed):
    return SubsetRandomSampler(torch.randperm(45, generator=torch.Generator().manual_seed(seed))[:20].tolist())


PAIRS = {
    "split": (
        lambda k: tuple(DataLoader(part, 8, shuffle=True) for part in split(k)),
        "the loader: another split: Subset",
    ),
    "validation": (
        lambda k: (DataLoader(split(0)[0], 8), DataLoader(split(k)[1], 8)),
        r"valid_loader: another split: Subset\.indices 15",
    ),
    "named": (
        lambda k: (DataLoader(split(0)[0], 8), {"a": DataLoader(data(9), 8), "b": DataLoader(split(k)[1], 8)}),
        "valid_loader 'b': another split",
    ),
    "nested": (
        lambda k: (DataLoader(nested(k)[0], 8), None),
        r"the loader: another split: ConcatDataset\.datasets\[1\]\.indices 9",
    ),
    "wrapped": (
        lambda k: (DataLoader(data(9), 8), DataLoader(nested(k)[1], 8)),
        r"valid_loader: another split: Subset\.dataset\.inner\.datasets\[1\]\.indices",
    ),
    "sampler": (lambda k: (sampled(picked(k)), None), r"another split: SubsetRandomSampler\.indices 20"),
    "weights": (
        lambda k: (sampled(WeightedRandomSampler([1.0 + k * i for i in range(45)], 20)), None),
        r"another split: WeightedRandomSampler\.weights",
    ),
    "labels": (lambda k: (DataLoader(relabelled(k), 8), None), r"the loader: other samples: \d+ of the 1\d that were"),
    "validated labels": (
        lambda k: (DataLoader(data(45), 8), DataLoader(relabelled(k), 8)),
        "valid_loader: other samples",
    ),
    "length": (
        lambda k: (DataLoader(data(45), 8), DataLoader(data(20 + k), 8)),
        "valid_loader: its length: 20 in the checkpoint, 21 now",
    ),
    "batches": (
        lambda k: ([torch.utils.data.default_collate([relabelled(k)[i] for i in range(8)])] * 2, None),
        "the loader: other samples: 2 of the 2",
    ),
    "augmented": (lambda k: (DataLoader(Augmented(k), 8), None), "the loader: other samples"),
    "labels beside a generator": (lambda k: (DataLoader(OwnNoise(k), 8), None), "the loader: other samples"),
}


class Augmented(Dataset):
    """Its noise comes from the global streams, and so does whether there is any."""

    def __init__(self, seed=0):
        self.data = relabelled(seed)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        x, y = self.data[i]
        return x + torch.randn(8) * (torch.rand(()) < 0.3), y


class OwnNoise(Augmented):
    """Its noise comes, now and then, from a generator of its own, which another process has elsewhere."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.own = np.random.default_rng()

    def __getitem__(self, i):
        x, y = self.data[i]
        return x + float(self.own.random() < 0.02), y


@pytest.mark.parametrize("name", PAIRS)
def test_other_data_are_refused_by_a_resume_and_found_by_verify_resume(name, tmp_path):
    make_loaders, message = PAIRS[name]
    again = killed(tmp_path, *make_loaders(0))
    with pytest.raises(CheckpointError, match=f"(?s)going on would make another model.*{message}"):
        again.run(3, *make_loaders(1), resume="auto")
    found = again.verify_resume(make_loaders(1)[0], valid_loader=make_loaders(1)[1])
    assert not found
    assert message.partition(":")[0] in found.cause
    again.run(3, *make_loaders(0), resume="auto")
    assert len(again.history) == 3


class Named(Dataset):
    """Its ids are no numbers."""

    def __getitem__(self, name):
        return data(45)[int(name[1:])]

    def __len__(self):
        return 12


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data(24))


class InWorkers(Augmented):
    """Must not be asked for samples in the process that trains."""

    def __getitem__(self, i):
        assert torch.utils.data.get_worker_info() is not None
        return super().__getitem__(i)


class Parts(OwnNoise):
    """Has now one part more, and now none."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return (x, y, 1) if self.own.random() < 0.5 else (x, y)


def two_parts(rows):
    return torch.utils.data.default_collate([row[:2] for row in rows])


SAME = {
    "split": lambda: (DataLoader(split(3)[0], 8, shuffle=True), {"a": DataLoader(split(3)[1], 8)}),
    "augmented": lambda: (DataLoader(Augmented(), 8, shuffle=True), DataLoader(Augmented(), 8)),
    "workers": lambda: (DataLoader(Augmented(), 8, shuffle=True, num_workers=1), None),
    "in a worker only": lambda: (DataLoader(InWorkers(), 8, shuffle=True, num_workers=1), None),
    "parts": lambda: (DataLoader(Parts(), 8, collate_fn=two_parts), None),
    "own noise": lambda: (DataLoader(OwnNoise(), 8), None),
    "own noise in a worker": lambda: (DataLoader(OwnNoise(), 8, num_workers=1), None),
    "names": lambda: (DataLoader(Named(), 8, sampler=[f"n{i}" for i in range(12)]), None),
    "stream": lambda: (DataLoader(Stream(), 8), DataLoader(Stream(), 8)),
    "batches": lambda: (list(DataLoader(data(24), 8)), list(DataLoader(data(9), 8))),
}


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("name", SAME)
def test_the_same_data_are_gone_on_with(name, tmp_path):
    again = killed(tmp_path, *SAME[name]())
    again.run(3, *SAME[name](), resume="auto")
    assert len(again.history) == 3


def test_a_set_that_is_new_or_gone_and_data_of_before_are_no_other_data(tmp_path):
    again = killed(tmp_path, DataLoader(data(45), 8), {"a": DataLoader(data(9), 8)})
    again.run(3, DataLoader(data(45), 8), {"b": DataLoader(data(7), 8)}, resume="auto")
    assert len(again.history) == 3


class Counting(Augmented):
    """Tells who has asked for samples, and draws from all generators there are."""

    def __init__(self):
        super().__init__()
        self.own, self.torch = np.random.RandomState(3), torch.Generator().manual_seed(4)

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + self.own.rand() + torch.rand(8, generator=self.torch) + np.random.rand(), y


def test_looking_at_samples_moves_no_stream_and_no_generator(tmp_path):
    loaders = [DataLoader(Counting(), 8, shuffle=True, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    plain, kept = make(seeded_samples=True), managed(tmp_path / "run")
    torch.manual_seed(7)
    plain.run(2, loaders[0])
    after = torch.rand(3)
    torch.manual_seed(7)
    kept.run(2, loaders[1])
    assert_equal(weights(kept.model), weights(plain.model))
    assert torch.equal(torch.rand(3), after)


def test_rounding_is_no_other_data(tmp_path):
    x, y = data(45).tensors
    again = killed(tmp_path, DataLoader(TensorDataset(x, y), 8))
    again.run(3, DataLoader(TensorDataset(x * (1 + 1e-6), y), 8), resume="auto")
    assert len(again.history) == 3


class Slow(Augmented):
    """Needs a while for what it is asked for first."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __getitem__(self, i):
        self.asked.append(i)
        if len(self.asked) <= 2:
            time.sleep(0.6)
        return super().__getitem__(i)


def test_a_slow_dataset_is_looked_at_for_a_second(tmp_path):
    slow = Slow()
    managed(tmp_path).run(1, DataLoader(slow, 8))
    (place,) = committed(tmp_path / "checkpoints")[-1].manifest["data"]["the loader"]["samples"]
    assert slow.asked[:2] == [int(place)] * 2
    assert len(slow.asked) >= 2 + 45
