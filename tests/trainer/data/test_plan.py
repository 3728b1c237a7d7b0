"""From a loader to global batches, and from a batch to its window."""

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from zae_engine.trainer.data.layout import Layout
from zae_engine.trainer.data.plan import BatchPlan, named
from zae_engine.trainer.data.sample_ids import in_dataset_order
from zae_engine.trainer.data.window import Micro


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(6))


class Backwards(torch.utils.data.Sampler):
    def __iter__(self):
        return iter(range(9, -1, -1))

    def __len__(self):
        return 10


class Doubling(DataLoader):
    """A loader that does something of its own to each batch."""

    def __iter__(self):
        return (batch * 2 for batch in super().__iter__())


def flat(loader):
    return [int(x) for batch in loader for x in batch]


def tens(samples):
    return torch.tensor(samples) * 10


# ---------------------------------------------------------------------- BatchPlan


@pytest.mark.parametrize(
    ("loader", "batches", "size"),
    [
        (DataLoader(range(10), batch_size=4), 3, 4),
        (DataLoader(range(10), batch_size=4, drop_last=True), 2, 4),
        (DataLoader(range(10), batch_sampler=BatchSampler(SequentialSampler(range(10)), 5, False)), 2, 5),
        (DataLoader(range(10), batch_sampler=[[0, 1], [2]]), 2, None),
        (DataLoader(range(10), batch_size=None), 10, None),
        (DataLoader(Stream(), batch_size=2), None, 2),
        ([torch.ones(2)] * 7, 7, None),
        ((torch.ones(2) for _ in range(3)), None, None),
        (None, None, None),
    ],
    ids=["size", "drop_last", "batch_sampler", "own_batches", "single", "stream", "list", "generator", "none"],
)
def test_the_plan_tells_what_the_loader_tells(loader, batches, size):
    plan = BatchPlan(loader)
    assert plan.batches == batches
    assert plan.batch_size == size


def test_none_batches_are_left_out():
    assert list(BatchPlan([1, None, 2, None])) == [1, 2]
    assert list(BatchPlan(x if x % 2 else None for x in range(6))) == [1, 3, 5]


def test_a_plan_over_a_list_starts_anew_each_time():
    plan = BatchPlan([1, 2])
    assert [list(plan), list(plan)] == [[1, 2], [1, 2]]
    assert list(BatchPlan(None)) == []


@pytest.mark.parametrize(
    ("size", "parts", "words"),
    [
        (256, 4, "batch 256 = 1 process × 4 micro-batches × 64 samples"),
        (256, 1, "batch 256 = 1 process × 1 micro-batch × 256 samples"),
        (10, 4, "batch 10 = 1 process × 4 micro-batches × 3 samples"),
    ],
)
def test_the_layout_is_described(size, parts, words):
    assert BatchPlan(DataLoader(range(300), batch_size=size), Layout(micro_batches=parts)).describe() == words


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(8, 3, micro_batches=4), "batch 256 = 8 processes × 4 micro-batches × 8 samples"),
        (Layout(2, split_batches=False), "batch 512 = 2 processes × 1 micro-batch × 256 samples"),
        (Layout(2, shards=8), "batch 256 = 8 shards × 32 samples on 2 processes"),
    ],
)
def test_the_layout_of_several_processes_is_described(layout, words):
    assert BatchPlan(DataLoader(range(300), batch_size=256), layout).describe() == words


def test_the_layout_of_a_loader_without_a_size_is_described():
    assert BatchPlan([1]).describe() == "batches as the loader gives them, in 1 micro-batch"
    assert BatchPlan([1], Layout(micro_batches=2)).describe() == "batches as the loader gives them, in 2 micro-batches"


def test_loaders_are_named():
    assert named(None) == {}
    assert named([1, 2]) == {"": [1, 2]}
    assert named({"a": [1], "b": [2]}) == {"a": [1], "b": [2]}


# ---------------------------------------------------------------------- Window


def window_of(batch, parts=1):
    return BatchPlan(None, Layout(micro_batches=parts)).window(batch)


def shares(samples, parts, items):
    window = window_of(torch.zeros(samples), parts)
    found = [window.share(n, micro) for n, micro in zip(items, window.micros, strict=True)]
    return found, window.correction()


def test_a_window_that_is_not_cut_needs_no_arithmetic():
    batch = {"x": torch.ones(4)}
    window = window_of(batch)
    assert window.micros == [Micro(batch, 4, 0)]
    assert window.micros[0].batch is batch
    assert window.share(None, window.micros[0]) is None
    assert window.correction() is None
    assert window.merged([{"loss": 1.0}]) == {"loss": 1.0}


def test_micro_batches_weigh_their_samples():
    assert shares(8, 2, [4, 4]) == ([0.5, 0.5], None)
    assert shares(10, 4, [3, 3, 3, 1]) == ([0.3, 0.3, 0.3, 0.1], None)


def test_counts_that_differ_from_the_estimate_are_corrected():
    found, factor = shares(4, 2, [6, 2])  # estimated 12 in all, are 8
    assert found == [0.5, 2 / 12]
    assert factor == 12 / 8


def test_counts_may_be_tensors():
    found, factor = shares(4, 2, [torch.tensor(6), torch.tensor(2)])
    assert [x.item() for x in found] == pytest.approx([0.5, 2 / 12])
    assert factor.item() == pytest.approx(12 / 8)


def test_a_first_micro_batch_without_items_is_corrected():
    for kind in (int, torch.tensor):
        found, factor = shares(4, 2, [kind(0), kind(5)])
        assert sum(float(x * factor) for x in found) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_a_window_without_any_items_leaves_the_gradients_finite(kind):
    _, factor = shares(4, 2, [kind(0), kind(0)])
    gradient = torch.zeros(1) if factor is None else torch.zeros(1) * factor
    assert gradient.item() == 0.0


@pytest.mark.parametrize("as_tensors", [False, True], ids=["numbers", "tensors"])
def test_gradients_are_those_of_the_exact_weighted_mean(as_tensors):
    torch.manual_seed(0)
    for _ in range(40):
        samples, parts = (int(n) for n in torch.randint(2, 14, (2,)))
        x, items = torch.randn(samples, 3, dtype=torch.float64), torch.randint(0, 9, (samples,))
        items[-1] += 1
        weight = nn.Parameter(torch.randn(3, dtype=torch.float64))
        window = window_of({"x": x, "items": items}, parts)
        backward_in_parts(weight, window, as_tensors)
        exact = (items[:, None] * 2 * (x @ weight)[:, None] * x).sum(0) / items.sum()
        precise = 1e-6 if as_tensors else 1e-12  # shares of integer tensors are float32
        torch.testing.assert_close(weight.grad, exact.detach(), rtol=precise, atol=precise)


def backward_in_parts(weight, window, as_tensors):
    """Each micro-batch's loss is the mean over its items, 0 where it has none."""
    for micro in window.micros:
        x, items = micro.batch["x"], micro.batch["items"]
        total = items.sum()
        loss = (items * (x @ weight) ** 2).sum() / total.clamp(min=1)
        share = window.share(total if as_tensors else total.item(), micro)
        (loss if share is None else loss * share).backward()
    factor = window.correction()
    if factor is not None:
        weight.grad.mul_(factor)


# ---------------------------------------------------------------------- in_dataset_order


def test_a_shuffled_loader_is_walked_in_order_and_itself_still_shuffles():
    loader = DataLoader(range(64), batch_size=5, shuffle=True)
    ordered = in_dataset_order(loader)
    assert flat(ordered) == list(range(64))
    assert [len(batch) for batch in ordered] == [5] * 12 + [4]
    assert isinstance(loader.sampler, RandomSampler)
    assert flat(loader) != list(range(64))


def test_drop_last_and_the_collate_function_stay():
    ordered = in_dataset_order(DataLoader(range(10), batch_size=4, shuffle=True, drop_last=True, collate_fn=tens))
    assert [batch.tolist() for batch in ordered] == [[0, 10, 20, 30], [40, 50, 60, 70]]


def test_a_batch_sampler_that_shuffles_is_walked_in_order():
    batches = BatchSampler(RandomSampler(range(7)), batch_size=3, drop_last=False)
    ordered = in_dataset_order(DataLoader(range(7), batch_sampler=batches, collate_fn=tens))
    assert [batch.tolist() for batch in ordered] == [[0, 10, 20], [30, 40, 50], [60]]


def test_single_samples_are_walked_in_order():
    ordered = in_dataset_order(DataLoader(range(20), batch_size=None, shuffle=True))
    assert list(ordered) == list(range(20))


def test_workers_and_their_settings_stay():
    loader = DataLoader(
        range(4),
        shuffle=True,
        num_workers=2,
        prefetch_factor=3,
        worker_init_fn=print,
        timeout=5,
        persistent_workers=True,
    )
    ordered = in_dataset_order(loader)
    assert (ordered.num_workers, ordered.prefetch_factor, ordered.timeout) == (2, 3, 5)
    assert ordered.worker_init_fn is print
    assert not ordered.persistent_workers  # they would outlive the walk


def test_a_dataset_of_tensors_is_walked_in_order():
    data = TensorDataset(torch.arange(12), torch.arange(12) * 2)
    ordered = in_dataset_order(DataLoader(data, batch_size=5, shuffle=True, generator=torch.Generator()))
    assert [int(y) for _, batch in ordered for y in batch] == [2 * x for x in range(12)]


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(range(10), batch_size=2),
        DataLoader(range(10), sampler=Backwards()),
        DataLoader(range(10), sampler=WeightedRandomSampler([1.0] * 10, 10)),
        DataLoader(range(10), sampler=RandomSampler(range(10), replacement=True)),
        DataLoader(range(10), sampler=RandomSampler(range(10), num_samples=4)),
        DataLoader(range(10), batch_sampler=[[3, 1], [2]]),
        DataLoader(Stream(), batch_size=2),
        [1, 2, 3],
    ],
    ids=["sequential", "custom", "weighted", "replacement", "some", "batch_sampler", "stream", "list"],
)
def test_any_other_order_is_the_users_choice(loader):
    assert in_dataset_order(loader) is loader


def test_a_sampler_that_shuffles_a_part_of_the_dataset_keeps_to_that_part():
    loader = DataLoader(range(10), batch_size=2, sampler=RandomSampler(range(5)))
    ordered = in_dataset_order(loader)
    assert sorted(flat(loader)) == [0, 1, 2, 3, 4]
    assert flat(ordered) == [0, 1, 2, 3, 4]


def test_a_loader_class_of_ones_own_stays_what_it_is():
    loader = Doubling(range(6), batch_size=2, shuffle=True)
    assert sorted(flat(loader)) == [0, 2, 4, 6, 8, 10]
    assert sorted(flat(in_dataset_order(loader))) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_distributed_sampler_s_length_is_that_of_its_whole_order(drop_last):
    sampler = DistributedSampler(range(203), num_replicas=2, rank=0)
    assert BatchPlan(DataLoader(range(203), 32, sampler=sampler, drop_last=drop_last)).batches == 7 - drop_last
    assert BatchPlan(DataLoader(range(203), batch_size=None, sampler=sampler)).batches == 203
