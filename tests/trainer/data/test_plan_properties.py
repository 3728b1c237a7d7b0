"""What holds of the batch plan for any loader and any number of processes.

Several processes are simulated in one: one plan a rank, all of them over the same draws.
"""

from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from tests.searching import holds_for
from tests.trainer.data.simulated import Alike, in_threads
from zae_engine.trainer.data.cut import even_edges
from zae_engine.trainer.data.layout import Layout, Start
from zae_engine.trainer.data.plan import BatchPlan


class Stream(IterableDataset):
    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return iter(torch.randperm(self.size).tolist())


class Items(Dataset):
    """Its items are batches."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return torch.tensor(self.items[index])


@dataclass(frozen=True)
class Case:
    kind: str
    size: int
    batch_size: int
    drop_last: bool
    layout: Layout
    start: int
    seed: int

    def loader(self):
        return LOADERS[self.kind](self)

    def settings(self, **more):
        return {"batch_size": self.batch_size, "drop_last": self.drop_last} | more

    def sampled(self, sampler):
        return DataLoader(range(self.size), **self.settings(sampler=sampler))

    def at(self, index):
        return replace(self.layout, index=index)


def with_generator(case):
    generator = torch.Generator().manual_seed(case.seed + 1)
    return DataLoader(range(case.size), **case.settings(shuffle=True, generator=generator))


def ragged(case):
    """Lists of ids of other lengths."""
    generator, ids, found = torch.Generator().manual_seed(case.size), list(range(case.size)), []
    while ids:
        size = int(torch.randint(1, case.batch_size + 1, (), generator=generator))
        found.append(ids[:size])
        ids = ids[size:]
    return found


KNOWN = {
    "in order": lambda c: DataLoader(range(c.size), **c.settings()),
    "shuffled": lambda c: DataLoader(range(c.size), **c.settings(shuffle=True)),
    "generator": with_generator,
    "weighted": lambda c: c.sampled(WeightedRandomSampler(torch.arange(c.size) + 1.0, c.size + 3)),
    "subset": lambda c: c.sampled(SubsetRandomSampler(range(0, c.size, 2))),
    "replacement": lambda c: c.sampled(RandomSampler(range(c.size), replacement=True, num_samples=c.size + 5)),
    "twice": lambda c: c.sampled(RandomSampler(range(c.size), num_samples=2 * c.size + 1)),
    "some": lambda c: c.sampled(RandomSampler(range(c.size), num_samples=max(1, c.size // 2))),
    "batch sampler": lambda c: DataLoader(
        range(c.size), batch_sampler=BatchSampler(SequentialSampler(range(c.size)), c.batch_size, c.drop_last)
    ),
    "own batches": lambda c: DataLoader(range(c.size), batch_sampler=ragged(c)),
}
GIVEN = {
    "list": lambda c: [torch.tensor(ids) for ids in ragged(c)],
    "stream": lambda c: DataLoader(Stream(c.size), batch_size=c.batch_size, drop_last=c.drop_last),
}
LOADERS = KNOWN | GIVEN


@st.composite
def cases(draw, kinds=tuple(LOADERS), split_batches=None):
    kind = draw(st.sampled_from(sorted(kinds)))
    processes = draw(st.integers(1, 9))
    shards = draw(st.none() | st.integers(1, 4).map(lambda many: many * processes))
    split = draw(st.booleans()) if split_batches is None and kind in KNOWN else split_batches is not False
    split = split or shards is not None  # shards of each process's batch are refused
    micro_batches = draw(st.integers(1, 5)) if shards is None else 1
    return Case(
        kind=kind,
        size=draw(st.integers(1, 200)),
        batch_size=draw(st.integers(1, 40)),
        drop_last=draw(st.booleans()),
        layout=Layout(processes, 0, micro_batches, shards, split),
        start=draw(st.integers(0, 8)),
        seed=draw(st.integers(0, 99)),
    )


def truth(case):
    """The global batches as torch gives them (a stream's: as one process has them), and the generator's end."""
    torch.manual_seed(case.seed)
    loader = case.loader()
    batches = [batch.tolist() for batch in (BatchPlan(loader) if case.kind == "stream" else loader)]
    many = case.layout.loader_batches
    groups = (batches[i : i + many] for i in range(0, len(batches), many))
    return [list(chain.from_iterable(group)) for group in groups], state(loader)


def state(loader):
    generator = getattr(loader, "generator", None)
    return None if generator is None else generator.get_state().tolist()


def walk(case, index, start=0, said=None):
    """The windows of one process, and what is left of the loader's generator."""
    torch.manual_seed(case.seed)
    loader = case.loader()
    plan = BatchPlan(loader, case.at(index), Alike(case.layout.processes, index, said), start=Start(start))
    return [plan.window(batch) for batch in plan], state(loader)


def ids(window):
    return [int(i) for micro in window.micros if micro.samples for i in micro.batch]


def every_process(case, start=0):
    """For each global batch, the processes' windows."""
    said = []
    walked = [walk(case, index, start, said) for index in range(case.layout.processes)]
    assert len({len(windows) for windows, _ in walked}) == 1
    assert all(end == walked[0][1] for _, end in walked)
    return list(zip(*(windows for windows, _ in walked), strict=True))


@holds_for(cases())
def test_the_shares_of_all_processes_are_the_global_batch_in_order(case):
    wanted, _ = truth(case)
    found = every_process(case)
    assert [[i for window in windows for i in ids(window)] for windows in found] == wanted
    for windows, batch in zip(found, wanted, strict=True):
        assert all(window.samples == len(batch) for window in windows)
        assert sum(window.here for window in windows) == len(batch)


@holds_for(cases())
def test_every_process_has_as_many_micro_batches_and_each_knows_its_size(case):
    for windows in every_process(case):
        assert len({len(window.micros) for window in windows}) == 1
        assert 1 <= len(windows[0].micros) <= max(case.layout.micro_batches, (case.layout.shards or 0))
        for window in windows:
            assert [micro.number for micro in window.micros] == list(range(len(window.micros)))
            assert all(len(micro.batch) == micro.samples for micro in window.micros if micro.samples)
            assert all(len(micro.batch) >= 1 for micro in window.micros)  # a stand-in can be run


@holds_for(cases())
def test_a_process_without_a_share_gets_a_stand_in_of_no_samples(case):
    for windows in every_process(case):
        few = windows[0].samples < case.layout.processes
        idle = [window for window in windows if window.here == 0]
        assert all(micro.samples == 0 for window in idle for micro in window.micros)
        if case.layout.split_batches:
            assert len(idle) == (case.layout.processes - windows[0].samples if few else 0)


@holds_for(cases(split_batches=True))
def test_shares_and_micro_batches_are_nearly_equal(case):
    for windows in every_process(case):
        here = [window.here for window in windows]
        cut_by_shards = case.layout.shards // case.layout.processes if case.layout.shards else 1
        assert max(here) - min(here) <= cut_by_shards
        assert here == sorted(here, reverse=True) or case.layout.processes > 2
        for window in windows:
            sizes = [micro.samples for micro in window.micros]
            assert max(sizes) - min(sizes) <= 1


@holds_for(cases(), st.integers(1, 9))
def test_micro_batches_weigh_their_share_of_the_samples(case, multiple):
    scale = 1 if case.layout.shards else case.layout.processes  # processes average, shards are summed
    for windows in every_process(case):
        weights = [(window.share(None, m), m) for window in windows for m in window.micros]
        found = [1.0 if w is None else w for w, _ in weights]
        assert sum(found) == pytest.approx(scale, rel=1e-12)
        assert found == pytest.approx([m.samples * scale / windows[0].samples for _, m in weights], rel=1e-12)
        assert all(window.correction() is None for window in windows)


@holds_for(cases())
def test_the_walk_goes_on_anywhere_as_if_it_had_begun_at_the_front(case):
    wanted, end = truth(case)
    assume(case.start <= len(wanted))
    found = every_process(case, case.start)
    assert [[i for window in windows for i in ids(window)] for windows in found] == wanted[case.start :]
    assert walk(case, 0, case.start)[1] == end


@holds_for(cases(KNOWN), st.integers(1, 9))
def test_shards_are_the_same_for_every_number_of_processes(case, other):
    shards = case.layout.processes * other
    cut = []
    for processes in (1, other, case.layout.processes, shards if shards <= 9 else 1):
        layout = Layout(processes, 0, shards=shards)
        windows = every_process(replace(case, layout=layout))
        cut.append([[ids_of(m) for window in batch for m in window.micros] for batch in windows])
    assert all(one == cut[0] for one in cut)


def ids_of(micro):
    return [int(i) for i in micro.batch] if micro.samples else []


@holds_for(cases(("in order", "shuffled", "own batches", "list")))
def test_the_length_is_that_of_the_walk(case):
    plan = BatchPlan(case.loader(), case.layout, Alike(case.layout.processes, 0))
    assert plan.batches == len(walk(case, 0)[0])


@holds_for(st.integers(0, 200), st.integers(1, 40), few=100)
def test_edges_cut_evenly(total, parts):
    sizes = [stop - start for start, stop in pairwise(even_edges(total, parts))]
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == max(sizes)


@holds_for(st.integers(1, 9), st.integers(1, 9), st.integers(0, 200))
def test_shares_lie_one_after_the_other(processes, each, samples):
    for shards in (None, processes * each):
        spans = [Layout(processes, index, shards=shards).mine(samples) for index in range(processes)]
        assert [spans[0][0], spans[-1][1]] == [0, samples]
        assert all(one[1] == other[0] for one, other in pairwise(spans))


def test_an_empty_dataset_has_no_batch_on_any_number_of_processes():
    for processes in (1, 3):
        plan = BatchPlan(DataLoader(range(0), batch_size=4), Layout(processes), Alike(processes, 0))
        assert list(plan) == []
        assert plan.batches == 0


def test_a_distributed_sampler_is_undone():
    for processes in (1, 2, 5):
        for shuffle in (True, False):
            found, said = [], []
            for index in range(processes):
                sampler = DistributedSampler(range(53), processes, index, shuffle=shuffle, seed=3)
                sampler.set_epoch(2)
                loader = DataLoader(range(53), batch_size=10, sampler=sampler)
                plan = BatchPlan(loader, Layout(processes, index), Alike(processes, index, said), start=Start(1))
                found.append([ids(plan.window(batch)) for batch in plan])
            whole = DistributedSampler(range(53), 1, 0, shuffle=shuffle, seed=3)
            whole.set_epoch(2)
            assert [i for batch in zip(*found, strict=True) for part in batch for i in part] == list(whole)[10:]


def shared_items(processes, start, **settings):
    """What the processes have of a loader whose items are batches."""
    said, found = [], []
    for index in range(processes):
        torch.manual_seed(0)
        loader = DataLoader(Items([[4 * i, 4 * i + 1, 4 * i + 2] for i in range(5)]), batch_size=None, shuffle=True)
        each = Alike(processes, index, said)
        plan = BatchPlan(loader, Layout(processes, index), each, start=Start(start), **settings)
        found.append([ids(plan.window(batch)) for batch in plan])
    return [list(chain.from_iterable(parts)) for parts in zip(*found, strict=True)]


def whole_items():
    torch.manual_seed(0)
    loader = DataLoader(Items([[4 * i, 4 * i + 1, 4 * i + 2] for i in range(5)]), batch_size=None, shuffle=True)
    return [item.tolist() for item in loader]


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_items_that_are_batches_are_shared_out(processes, start):
    assert shared_items(processes, start, seeded=True) == whole_items()[start:]


@pytest.mark.parametrize(("processes", "start"), [(1, 2), (2, 0), (4, 2)])
def test_items_that_are_batches_are_shared_out_without_seeds(processes, start):
    assert shared_items(processes, start) == whole_items()[start:]


def test_the_length_of_items_that_are_batches_is_that_of_the_walk():
    loader = DataLoader(Items([[i] for i in range(6)]), batch_size=None)
    plan = BatchPlan(loader, Layout(2, 0, split_batches=False), Alike(2, 0), seeded=True)
    assert plan.batches == len(list(plan))


# ---------------------------------------------------------------------- items that differ from sample to sample


def trained(batch, layout, processes):
    """The gradient that one process has, of a mean over the items of a batch."""
    weight = nn.Parameter(torch.linspace(-1, 1, 3, dtype=torch.float64))
    window = BatchPlan(None, replace(layout, index=processes.index), processes).window(batch)
    for micro in window.micros:
        x, items = micro.batch["x"], micro.batch["items"]
        total = items.sum()
        loss = (items * (x @ weight) ** 2).sum() / total.clamp(min=1)
        share = window.share(total, micro)
        (loss if share is None else loss * share).backward()
    factor = window.correction()
    return weight.grad if factor is None else weight.grad * factor


@holds_for(
    st.integers(1, 5),
    st.integers(1, 3),
    st.lists(st.integers(0, 7), min_size=1, max_size=25),
    st.booleans(),
    st.integers(0, 99),
)
def test_gradients_of_all_processes_are_those_of_the_mean_over_all_items(processes, parts, items, by_shards, seed):
    x = torch.randn(len(items), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    items = torch.tensor(items, dtype=torch.float64)
    assume(items.sum() > 0)
    layout = Layout(processes, 0, 1, processes * parts) if by_shards else Layout(processes, 0, parts)
    found = in_threads(processes, lambda each: trained({"x": x, "items": items}, layout, each))
    together = torch.stack(found).sum(0) if by_shards else torch.stack(found).mean(0)
    weight = torch.linspace(-1, 1, 3, dtype=torch.float64)
    exact = (items[:, None] * 2 * (x @ weight)[:, None] * x).sum(0) / items.sum()
    torch.testing.assert_close(together, exact, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------------- batches that hold more than one tensor


@holds_for(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4))
def test_tensors_and_lists_of_one_batch_are_shared_out_alike(samples, processes, parts):
    batch = {"x": torch.arange(samples), "names": [f"n{i}" for i in range(samples)], "all": 7}
    found = [BatchPlan(None, Layout(processes, i, parts), Alike(processes, i)).window(batch) for i in range(processes)]
    micros = [micro for window in found for micro in window.micros if micro.samples]
    assert torch.cat([micro.batch["x"] for micro in micros]).equal(batch["x"])
    assert [name for micro in micros for name in micro.batch["names"]] == batch["names"]
    edges = [0, *accumulate(micro.samples for micro in micros)]
    assert edges[-1] == samples
    assert all(micro.batch["all"] == 7 for window in found for micro in window.micros)
