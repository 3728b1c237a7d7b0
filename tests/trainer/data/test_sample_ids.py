"""The ids of a loader's batches: torch's own, from any batch on, with the generators left as torch leaves them."""

import gc
import random
import weakref

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from tests.searching import holds_for
from zae_engine.trainer.data.layout import Layout, Start
from zae_engine.trainer.data.sample_ids import (
    Shares,
    _permuted,
    agree_on_generators,
    check_shared,
    global_ids,
    is_known,
    set_epoch,
    shared_copy,
    undistributed,
)
from zae_engine.trainer.data.seeded_samples import SeededSamples


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def one_by_one(size, **options):
    return RandomSampler(range(size), **options)


SAMPLERS = {
    "in order": lambda size, g: SequentialSampler(range(size)),
    "shuffled": lambda size, g: one_by_one(size, generator=g),
    "replacement": lambda size, g: one_by_one(size, replacement=True, num_samples=size + 40, generator=g),
    "twice": lambda size, g: one_by_one(size, num_samples=2 * size + 1, generator=g),
    "some": lambda size, g: one_by_one(size, num_samples=(size + 1) // 2, generator=g),
    "subset": lambda size, g: SubsetRandomSampler(range(0, size, 3), generator=g),
    "weighted": lambda size, g: WeightedRandomSampler(torch.arange(size) + 1.0, size, generator=g),
}


@holds_for(
    st.sampled_from(sorted(SAMPLERS)),
    st.integers(1, 200),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 12), min_size=1, max_size=4),
)
def test_ids_and_generators_are_torchs_over_several_epochs(kind, size, batch_size, drop_last, own, starts):
    """Each epoch begins at another batch; the next one is still torch's."""
    mine, torchs = (generator(), generator()) if own else (None, None)
    sampler, other = SAMPLERS[kind](size, mine), SAMPLERS[kind](size, torchs)
    loader = DataLoader(range(size), batch_size=batch_size, sampler=sampler, drop_last=drop_last)
    wanted, found, states = [], [], []
    for way in (wanted, found):
        torch.manual_seed(11)
        for start in starts:
            if way is wanted:
                way.append(list(BatchSampler(other, batch_size, drop_last))[start:])
            else:
                way.append(list(global_ids(loader, start)))
        states.append(torch.get_rng_state())
    assert found == wanted
    assert torch.equal(*states)
    assert not own or torch.equal(mine.get_state(), torchs.get_state())


@pytest.mark.parametrize("size", [1, 7, 65535, 65536, 65537, 140000])
@pytest.mark.parametrize("start", [0, 1, 65536, 65537])
def test_a_permutation_is_given_in_blocks(size, start):
    mine, torchs = generator(), generator()
    assert list(_permuted(mine, size, start)) == list(one_by_one(size, generator=torchs))[start:]
    assert torch.equal(mine.get_state(), torchs.get_state())


def test_an_order_without_a_generator_is_that_of_torchs_own():
    for start in (0, 5):
        torch.manual_seed(4)
        wanted = list(one_by_one(50))[start:], torch.rand(())
        torch.manual_seed(4)
        assert (list(_permuted(None, 50, start)), torch.rand(())) == wanted


def test_ids_without_batching_come_by_themselves():
    loader = DataLoader(range(5), batch_size=None)
    assert list(global_ids(loader)) == [[0], [1], [2], [3], [4]]
    assert list(global_ids(loader, 3)) == [[3], [4]]


def test_nothing_is_loaded_for_the_ids():
    loader = DataLoader([None] * 5, batch_size=2, collate_fn=pytest.fail)
    assert list(global_ids(loader, 1)) == [[2, 3], [4]]


class Evens(Sampler):
    """A batch sampler of one's own."""

    def __iter__(self):
        return iter([(0, 2), (4,), (6, 8)])

    def __len__(self):
        return 3


class Rounded(BatchSampler):
    """A batch sampler that does something else."""

    def __iter__(self):
        return ([i // 2 for i in batch] for batch in super().__iter__())


def test_batches_of_ones_own_are_taken_as_they_come():
    assert list(global_ids(DataLoader(range(9), batch_sampler=Evens()), 1)) == [[4], [6, 8]]
    rounded = Rounded(SequentialSampler(range(5)), 2, False)
    assert list(global_ids(DataLoader(range(9), batch_sampler=rounded))) == [[0, 0], [1, 1], [2]]


class Mine(RandomSampler):
    """What it gives may be anything."""


@pytest.mark.parametrize(
    ("loader", "known"),
    [
        (DataLoader(range(9)), True),
        (DataLoader(range(9), shuffle=True), True),
        (DataLoader(range(9), batch_size=None, shuffle=True), True),
        (DataLoader(range(9), sampler=WeightedRandomSampler([1.0] * 9, 9)), True),
        (DataLoader(range(9), sampler=DistributedSampler(range(9), 2, 0)), True),
        (DataLoader(range(9), sampler=Mine(range(9))), False),
        (DataLoader(range(9), sampler=list(range(9))), False),
        (DataLoader(range(9), batch_size=None, sampler=Mine(range(9))), False),
        (DataLoader(range(9), batch_sampler=Evens()), False),
        (DataLoader(range(9), batch_sampler=Rounded(SequentialSampler(range(9)), 2, False)), False),
    ],
)
def test_orders_that_depend_on_the_generators_only_are_known(loader, known):
    assert is_known(loader) is known


# ---------------------------------------------------------------------- what wants to know the epoch


class Told:
    """Remembers the epochs that it was told."""

    def __init__(self, size=6):
        self.size, self.epochs = size, []

    def __len__(self):
        return self.size

    def __iter__(self):
        return iter(range(self.size))

    def __getitem__(self, index):
        return index

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_sampler_batch_sampler_and_dataset_are_told_the_epoch_once():
    parts = [Told() for _ in range(4)]
    loaders = (
        DataLoader(parts[0], sampler=parts[1]),
        DataLoader(parts[0], batch_sampler=BatchSampler(parts[2], 2, False)),
        DataLoader(parts[0], batch_sampler=parts[3]),
    )
    for epoch, loader in enumerate(loaders):
        set_epoch(loader, epoch)
    assert [part.epochs for part in parts] == [[0, 1, 2], [0], [1], [2]]


def test_one_object_in_two_places_is_told_once():
    both = Told()
    set_epoch(DataLoader(both, sampler=both), 4)
    assert both.epochs == [4]


def test_what_has_no_epoch_is_left_alone():
    set_epoch([1, 2], 0)
    set_epoch(DataLoader(range(4), shuffle=True), 0)
    set_epoch((x for x in ()), 0)


# ---------------------------------------------------------------------- DistributedSampler


@holds_for(st.integers(1, 60), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 5))
def test_a_distributed_sampler_is_taken_for_its_whole_order(size, replicas, shuffle, drop_last, epoch):
    found = []
    for rank in range(replicas):
        sampler = DistributedSampler(range(size), replicas, rank, shuffle, seed=7, drop_last=drop_last)
        sampler.set_epoch(epoch)
        before = dict(vars(sampler))
        found.append(list(undistributed(sampler)))
        assert vars(sampler) == before
    whole = DistributedSampler(range(size), 1, 0, shuffle, seed=7)
    whole.set_epoch(epoch)
    assert all(one == list(whole) for one in found)
    assert sorted(found[0]) == list(range(size))


def test_other_samplers_are_no_distributed_ones():
    sampler = SequentialSampler(range(3))
    assert undistributed(sampler) is sampler


class Said:
    """Processes, of which the others say something else, or the same."""

    def __init__(self, count, others=None):
        self.count, self.others = count, others

    def gather(self, value):
        return [value] * (self.count - 1) + [value if self.others is None else self.others]


def test_a_distributed_sampler_is_warned_of():
    sampler = DistributedSampler(range(9), 2, 0)
    for loader in (
        DataLoader(range(9), batch_size=4, sampler=sampler),
        DataLoader(range(9), batch_size=None, sampler=sampler),
        DataLoader(range(9), batch_sampler=BatchSampler(sampler, 2, False)),
    ):
        with pytest.warns(UserWarning, match="taken for its order only"):
            check_shared(loader, Said(1))


def test_a_dataset_that_is_another_on_another_process_is_warned_of():
    with pytest.warns(UserWarning, match="first sample of the loader's range is not the same on every process"):
        check_shared(DataLoader(range(9)), Said(3, ("another hash", ())))


class Noise:
    """Its samples are drawn from the global streams, which are set alike for the look."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return random.random(), np.random.rand(), torch.rand(2)


def test_samples_that_are_drawn_are_looked_at_with_the_same_streams():
    hashes = set()
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        listening = Said(2)
        listening.gather = lambda value: hashes.add(value) or [value]
        check_shared(DataLoader(Noise()), listening)
    assert len(hashes) == 1
    assert "" not in {sample for sample, _ in hashes}


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(range(9), shuffle=True),
        [1, 2],
        DataLoader(range(9), batch_sampler=Evens()),
        DataLoader({"a": 1}, sampler=["a"]),
        DataLoader([]),
    ],
    ids=["shuffled", "list", "batch_sampler", "names", "empty"],
)
def test_nothing_is_said_of_other_loaders(loader):
    check_shared(loader, Said(1))
    check_shared(loader, Said(2))


# ---------------------------------------------------------------------- the copy over a process's shares


def shares_of(loader, layout, start=0):
    copy, shares = shared_copy(loader, seeded=False)
    queue = shares.begin(layout, None, Start(start), "key")
    return [batch.tolist() for batch in copy], list(queue)


def test_a_copy_walks_over_the_shares_and_says_what_they_are_of():
    batches, queue = shares_of(DataLoader(range(10), batch_size=4), Layout(3, 1))
    assert batches == [[2], [6], [9]]
    assert [(share.samples, share.here) for share in queue] == [(4, 1), (4, 1), (2, 1)]


def test_a_process_without_a_share_loads_the_first_sample():
    batches, queue = shares_of(DataLoader(range(10), batch_size=4), Layout(3, 2), start=2)
    assert batches == [[8]]
    assert [(share.samples, share.here) for share in queue] == [(2, 0)]


@pytest.mark.parametrize("batch_size", [4, None])
def test_one_loader_has_one_copy_of_each_kind(batch_size):
    loader = DataLoader(range(10), batch_size=batch_size)
    first = shared_copy(loader, seeded=False)
    first[1].begin(Layout(), None, Start(), "")
    assert shared_copy(loader, seeded=False)[0] is first[0]
    assert shared_copy(loader, seeded=False)[1] is first[1]
    seeded, shares = shared_copy(loader, seeded=True)
    assert isinstance(seeded.dataset, SeededSamples)
    assert isinstance(shares, Shares)
    assert loader.dataset == range(10)


class Unsized:
    """A batch sampler without a length."""

    def __iter__(self):
        return iter([[0, 2], [4]])


@pytest.mark.parametrize(
    ("loader", "start"),
    [
        (DataLoader(range(10), batch_size=4), 3),
        (DataLoader(range(10), batch_size=4), 5),
        (DataLoader(range(10), batch_sampler=Unsized()), 0),
    ],
    ids=["to the end", "beyond", "unsized"],
)
def test_a_copy_is_found_again_after_any_walk(loader, start):
    found = [shares_of(loader, Layout(2), begin)[0] for begin in (start, 0)]
    assert found[0] == found[1][start:]
    assert len(found[1]) >= 2


def test_a_copy_does_not_keep_the_loader():
    loader = DataLoader(range(10), batch_size=4, shuffle=True)
    shared_copy(loader, seeded=True)
    there = weakref.ref(loader)
    del loader
    gc.collect()
    assert there() is None


class Doubling(DataLoader):
    """A loader that does something of its own to each batch."""

    def __iter__(self):
        return (batch * 2 for batch in super().__iter__())


def test_a_loader_class_of_ones_own_stays_what_it_is():
    assert shares_of(Doubling(range(6), batch_size=4), Layout(2, 1))[0] == [[4, 6], [10]]


@pytest.mark.parametrize(
    ("layout", "start", "length"),
    [
        (Layout(), 0, 3),
        (Layout(2), 1, 2),
        (Layout(2, split_batches=False), 0, 2),
        (Layout(2, split_batches=False), 1, 1),
    ],
)
def test_shares_have_the_length_of_their_walk(layout, start, length):
    shares = Shares(DataLoader(range(10), batch_size=4))
    shares.begin(layout, None, Start(start), "")
    assert len(shares) == length == len(list(shares))


# ---------------------------------------------------------------------- samplers that nothing is known about


class Drawing(Sampler):
    """Draws from all three global generators while it is walked."""

    def __len__(self):
        return 30

    def __iter__(self):
        for _ in range(30):
            yield random.randrange(9) + np.random.randint(9) + int(torch.randint(9, ()))


def test_a_sampler_draws_the_same_whatever_is_drawn_between_its_batches():
    walks = []
    for noise in (False, True):
        torch.manual_seed(5)
        loader = DataLoader(range(99), batch_size=4, sampler=Drawing())
        copy, shares = shared_copy(loader, seeded=False)
        shares.begin(Layout(), None, Start(), "")
        found = []
        for batch in copy:
            found.append(batch.tolist())
            if noise:
                _ = random.random(), np.random.rand(), torch.rand(3)
        walks.append(found)
    assert walks[0] == walks[1]


def test_a_sampler_leaves_the_global_streams_alone():
    def streams():
        return random.random(), np.random.rand(), torch.rand(()).item()

    found = []
    for walking in (False, True):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        copy, shares = shared_copy(DataLoader(range(99), batch_size=4, sampler=Drawing()), seeded=False)
        shares.begin(Layout(), None, Start(), "")
        walk = iter(copy)
        next(walk)  # draws the seed of its streams, and the loader's own
        if walking:
            assert len(list(walk)) == 7
        found.append(streams())
    assert found[0] == found[1]


class First:
    """Process 0 has said something."""

    def __init__(self, said):
        self.said = said

    def from_first(self, value):
        return self.said


def test_the_generators_of_a_loader_get_the_first_processes_state():
    mine, firsts = generator(1), generator(2)
    agree_on_generators(DataLoader(range(4), shuffle=True, generator=mine), First([firsts.get_state()]))
    assert torch.equal(mine.get_state(), firsts.get_state())
    agree_on_generators([1, 2], First([]))
