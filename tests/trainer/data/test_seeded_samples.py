"""A sample's random augmentation belongs to the sample, and to nothing else."""

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from tests.searching import holds_for
from zae_engine.trainer.data.layout import Layout
from zae_engine.trainer.data.plan import BatchPlan
from zae_engine.trainer.data.random_streams import OwnStreams, mix, seed_host
from zae_engine.trainer.data.seeded_samples import Ids, SeededSamples, draws_nothing

DRAWS = {"python": random.random, "numpy": np.random.rand, "torch": lambda: float(torch.rand(()))}


class Drawing(Dataset):
    """Draws from all three global generators; normal numbers come in pairs, of which one waits for the next draw."""

    def __init__(self, size=23):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        drawn = random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.randn(()))
        return index, torch.tensor(drawn, dtype=torch.float64)


class One(Drawing):
    """Draws from one of the generators only."""

    def __init__(self, which, size=23):
        super().__init__(size)
        self.which = which

    def __getitem__(self, index):
        return index, DRAWS[self.which]()


class Sometimes(Drawing):
    """Draws for some ids only."""

    def __getitem__(self, index):
        return super().__getitem__(index) if index % 5 == 3 else (index, torch.zeros(5, dtype=torch.float64))


class Many(Drawing):
    """Loads many samples at once, and remembers which."""

    def __init__(self, size=23, draws=True):
        super().__init__(size)
        self.draws, self.asked = draws, []

    def __getitems__(self, ids):
        self.asked.append(list(ids))
        assert type(ids) is list
        return [super(Many, self).__getitem__(i) if self.draws else (i, 0.0) for i in ids]


class Plain(Drawing):
    def __getitem__(self, index):
        return index, float(index)


class Batches(Drawing):
    """Its items are batches."""

    def __getitem__(self, index):
        return torch.tensor([index]), super().__getitem__(index)[1][None]


def plan(dataset, key="0/train/1", layout=None, **settings):
    options = {"batch_size": 4} | settings
    return BatchPlan(DataLoader(dataset, **options), layout or Layout(), seeded=True, key=key)


def samples(batches):
    """Each sample's values by its id."""
    found = {}
    for numbers, values in batches:
        for i, value in zip(numbers.tolist(), values, strict=True):
            assert i not in found
            found[i] = value.tolist()
    return found


WANTED = samples(plan(Drawing(), batch_size=1))


def streams():
    """What the global generators give next, read without moving them."""
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return (*state, np.random.get_state()[2])


# ---------------------------------------------------------------------- the same sample


def test_every_sample_has_draws_of_its_own():
    assert len({tuple(values) for values in WANTED.values()}) == 23
    assert all(len(set(values)) == 5 for values in WANTED.values())


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Drawing, Many, Batches])
def test_a_sample_is_the_same_for_any_number_of_workers(kind, workers):
    settings = {"batch_size": None} if kind is Batches else {}
    for shuffle in (False, True):
        assert samples(plan(kind(), num_workers=workers, shuffle=shuffle, **settings)) == WANTED


@holds_for(st.integers(1, 30), st.booleans(), st.booleans(), st.integers(0, 99))
def test_a_sample_is_the_same_in_any_batch(batch_size, shuffle, many, noise):
    torch.manual_seed(noise)
    dataset = Many() if many else Drawing()
    assert samples(plan(dataset, batch_size=batch_size, shuffle=shuffle)) == WANTED


class Count:
    """One of several processes, all of which are alike."""

    def __init__(self, count, index):
        self.count, self.index, self.first = count, index, index == 0

    def from_first(self, value):
        return value


@holds_for(st.integers(1, 6), st.integers(1, 30))
def test_a_sample_is_the_same_on_any_process(processes, batch_size):
    found = {}
    for index in range(processes):
        loader = DataLoader(Drawing(), batch_size=batch_size)
        shares = BatchPlan(loader, Layout(processes, index), Count(processes, index), seeded=True, key="0/train/1")
        micros = [micro for batch in shares for micro in shares.window(batch).micros]
        found |= samples(micro.batch for micro in micros if micro.samples)
    assert found == WANTED


@pytest.mark.parametrize("which", ["python", "numpy", "torch"])
def test_one_generator_is_enough_to_be_noticed(which):
    one = samples(plan(One(which), batch_size=23))
    assert len(set(one.values())) == 23
    assert samples(plan(One(which), batch_size=3, shuffle=True)) == one


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_may_draw_for_some_ids_only(workers):
    wanted = {i: WANTED[i] if i % 5 == 3 else [0.0] * 5 for i in WANTED}
    assert samples(plan(Sometimes(), batch_size=2, num_workers=workers)) == wanted
    assert samples(plan(Sometimes(), batch_size=23, num_workers=workers)) == wanted


def test_every_epoch_has_draws_of_its_own():
    other = samples(plan(Drawing(), key="0/train/2"))
    assert all(one != two for i in WANTED for one, two in zip(WANTED[i], other[i], strict=True))


@pytest.mark.usefixtures("starts_processes")
def test_workers_that_persist_get_each_epochs_key():
    loader = DataLoader(Drawing(), batch_size=4, num_workers=2, persistent_workers=True, shuffle=True)
    for key in ("0/train/1", "0/train/2", "0/train/1"):
        found = samples(BatchPlan(loader, seeded=True, key=key))
        assert (found == WANTED) == (key == "0/train/1")
        assert found == samples(plan(Drawing(), key=key))


def test_ids_may_be_names():
    dataset = SeededSamples({"a": 1, "b": 2})
    assert dataset.__getitems__(Ids(["b", "a"], "k")) == [2, 1]


def look_at_the_dataset(_):
    """What a worker_init_fn is often for: to open a file, or to take the worker's part of a stream."""
    assert torch.utils.data.get_worker_info().dataset.size == 23


@pytest.mark.usefixtures("starts_processes")
def test_a_worker_sees_the_users_dataset():
    found = samples(plan(Drawing(), num_workers=1, worker_init_fn=look_at_the_dataset))
    assert found == WANTED


# ---------------------------------------------------------------------- the others' streams


@pytest.mark.parametrize("kind", [Drawing, Sometimes, Many, Plain])
def test_the_global_streams_stay_where_they_were(kind):
    dataset = SeededSamples(kind())
    before = streams()
    dataset.__getitems__(Ids(range(8), "k"))
    dataset.__getitems__(Ids(range(8, 16), "k"))
    dataset[Ids([3], "k")]
    assert streams() == before


def test_the_global_streams_are_put_back_after_an_error():
    dataset = SeededSamples([1, 2])
    before = streams()
    with pytest.raises(IndexError):
        dataset.__getitems__(Ids([0, 5], "k"))
    assert streams() == before


def test_a_normal_number_that_waits_is_kept():
    np.random.seed(0)
    wanted = np.random.randn(4).tolist()
    np.random.seed(0)
    found = [np.random.randn()]
    with OwnStreams():
        np.random.randn()
    assert found + np.random.randn(3).tolist() == wanted


def test_streams_of_ones_own_go_on_where_they_were():
    one, other = OwnStreams(3), OwnStreams(3)
    found = []
    for at_once in (2, 1):
        for _ in range(2 // at_once):
            with one if at_once == 2 else other:
                found += [(random.random(), np.random.rand(), float(torch.rand(()))) for _ in range(at_once)]
        seed_host(99)
    assert found[:2] == found[2:]
    assert found[0] != found[1]


# ---------------------------------------------------------------------- what it costs, and what it is


def test_a_dataset_that_draws_nothing_is_loaded_once_and_as_it_is():
    inner = Many(draws=False)
    dataset = SeededSamples(inner)
    assert dataset.__getitems__(Ids([3, 1], "k")) == [(3, 0.0), (1, 0.0)]
    assert dataset.__getitems__(Ids([4], "k")) == [(4, 0.0)]
    assert inner.asked == [[3, 1], [4]]


def test_a_batch_is_loaded_again_only_when_the_first_draw_is_noticed():
    inner = Many()
    dataset = SeededSamples(inner)
    dataset.__getitems__(Ids([3, 1], "k"))
    dataset.__getitems__(Ids([4, 5], "k"))
    assert inner.asked == [[3, 1], [3], [1], [4], [5]]


def test_draws_are_a_function_of_key_and_id():
    found = SeededSamples(Drawing()).__getitems__(Ids([7], "some key"))[0][1]
    with OwnStreams():
        seed_host(mix("some key", 7))
        wanted = Drawing()[7][1]
    assert torch.equal(found, wanted)


def test_ids_keep_their_key_on_the_way_to_a_worker():
    ids = pickle.loads(pickle.dumps(Ids([1, 2], "k")))
    assert (ids, ids.key) == ([1, 2], "k")


def test_a_dataset_goes_to_a_worker_without_its_streams():
    dataset = SeededSamples(Drawing(5))
    wanted = dataset.__getitems__(Ids([2], "k"))[0][1]
    there = pickle.loads(pickle.dumps(dataset))
    assert len(there) == 5
    assert torch.equal(there.__getitems__(Ids([2], "k"))[0][1], wanted)


@pytest.mark.parametrize(
    ("dataset", "nothing"),
    [
        (TensorDataset(torch.ones(3)), True),
        (range(3), True),
        ([1, 2], True),
        ((1, 2), True),
        (np.ones(3), True),
        (torch.ones(3), True),
        (Subset(TensorDataset(torch.ones(3)), [0]), True),
        (ConcatDataset([TensorDataset(torch.ones(3)), Subset(TensorDataset(torch.ones(3)), [0])]), True),
        (Drawing(), False),
        (Subset(Drawing(), [0]), False),
        (ConcatDataset([TensorDataset(torch.ones(3)), Drawing()]), False),
        ({"a": 1}, False),
    ],
)
def test_what_is_known_to_draw_nothing(dataset, nothing):
    assert draws_nothing(dataset) is nothing
