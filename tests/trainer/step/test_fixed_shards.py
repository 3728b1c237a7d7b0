"""Sums in one fixed tree, whoever adds what; and the batches that are cut and joined for it."""

import copy
import operator
import struct
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from tests.searching import holds_for
from tests.trainer.data.simulated import in_threads
from zae_engine.trainer.data.cut import slices
from zae_engine.trainer.data.layout import Layout
from zae_engine.trainer.data.plan import BatchPlan
from zae_engine.trainer.nested_values import fingerprint, join
from zae_engine.trainer.step.fixed_shards import ShardSum, check_divides, check_shards
from zae_engine.trainer.step.shard_pack import ShardPack, add_into
from zae_engine.trainer.step.tree_sum import tree_sum

CPU = torch.device("cpu")


def bits(tensor):
    return tensor.detach().reshape(-1).clone().view(torch.uint8).tolist()


def divisors(number):
    return [n for n in range(1, number + 1) if number % n == 0]


# ---------------------------------------------------------------------- the tree


@holds_for(st.integers(1, 48), st.integers(0, 99))
def test_the_sum_is_the_same_to_the_bit_for_every_number_of_processes(shards, seed):
    generator = torch.Generator().manual_seed(seed)
    nodes = [torch.randn(9, generator=generator) * 10**3 for _ in range(shards)]
    whole = tree_sum(nodes, torch.add)
    for processes in divisors(shards):
        each = shards // processes
        size = each & -each  # the largest power of two that divides it
        branches = [tree_sum(nodes[i : i + size], torch.add) for i in range(0, shards, size)]
        assert bits(tree_sum(branches, torch.add)) == bits(whole)


def test_another_order_of_additions_gives_other_bits():
    """So the test above can fail."""
    nodes = [torch.randn(1000, generator=torch.Generator().manual_seed(i)) for i in range(9)]
    assert not torch.equal(tree_sum(nodes, torch.add), sum(nodes))


@holds_for(st.integers(1, 200))
def test_every_node_is_added_once_and_few_are_held(count):
    alive, most = [0], [0]

    class Counted:
        def __init__(self, value):
            self.value = value
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __add__(self, other):
            return Counted(self.value + other.value)

        def __del__(self):
            alive[0] -= 1

    total = tree_sum((Counted(1 << i) for i in range(count)), operator.add)
    assert total.value == (1 << count) - 1
    assert most[0] <= 2 * count.bit_length() + 2


@pytest.mark.parametrize(
    ("count", "additions"),
    [(1, "a"), (2, "(ab)"), (3, "((ab)c)"), (5, "(((ab)(cd))e)"), (6, "(((ab)(cd))(ef))"), (7, "(((ab)(cd))((ef)g))")],
)
def test_neighbours_are_added_first(count, additions):
    assert tree_sum("abcdefg"[:count], "({}{})".format) == additions


# ---------------------------------------------------------------------- gradients and buffers in one node


class Several(nn.Module):
    """Number types, a layer that is not always used, one that is never, and buffers that move."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.always, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.sometimes, self.never = nn.Linear(4, 4), nn.Linear(4, 4)
        self.wide = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.narrow = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("flag", torch.tensor(True))

    def forward(self, x):
        y = self.norm(self.always(x))
        y = y + self.sometimes(y) if x[0, 0] > 0 else y
        return (y * self.wide * self.narrow.double() * self.frozen).square().mean()


def pack_of(model):
    return ShardPack(list(model.parameters()), [b for b in model.buffers() if b.dtype != torch.bool])


def found_in(model):
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(one, other):
    return one.keys() == other.keys() and all(
        (one[k] is None and other[k] is None)
        or (one[k] is not None and one[k].dtype == other[k].dtype and bits(one[k]) == bits(other[k]))
        for k in one
    )


@pytest.mark.parametrize("used", [True, False])
def test_what_is_taken_is_put_back_as_it_was(used):
    model = Several()
    before = copy.deepcopy(model.state_dict())
    pack = pack_of(model)
    model((torch.arange(15.0).view(5, 3) + 1) * (1 if used else -1)).backward()
    gradients, buffers = found_in(model)
    gradients = {name: None if g is None else g.clone() for name, g in gradients.items()}
    node = pack.take(1.0)
    assert all(p.grad is None for p in model.parameters())
    assert same(dict(model.named_buffers()), {k: v for k, v in before.items() if k in buffers})
    pack.put(node)
    found = found_in(model)
    assert same(found[0], gradients)
    assert gradients["never.weight"] is None
    assert gradients["frozen"] is None
    assert (gradients["sometimes.weight"] is not None) == used
    assert found[1]["norm.num_batches_tracked"] == 1
    for name, buffer in buffers.items():
        torch.testing.assert_close(found[1][name], buffer, rtol=1e-6, atol=1e-7)


def test_a_node_is_sent_as_one_tensor_a_number_type():
    model = Several()
    pack = pack_of(model)
    model(torch.ones(5, 3)).backward()
    node = pack.take(1.0)
    flat = pack.flat(node)
    assert {t.dtype for t in flat} == {torch.float32, torch.float64, torch.bfloat16}
    assert len(flat) == 3
    again, has = pack.apart([t.clone() for t in flat], node)
    assert [[bits(t) for t in group] for group in again] == [[bits(t) for t in group] for group in node]
    assert [t.shape for t in again[0]] == [t.shape for t in node[0]]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained[:2] == ["wide", "narrow"]  # so the order by number types is that of the names
    assert has.tolist() == [float("never" not in name) for name in trained]
    assert all(t.data_ptr() % 16 == 0 for group in again for t in group)


def test_a_shard_without_samples_leaves_nothing():
    model = Several()
    pack = pack_of(model)
    node = pack.take(0.0)
    assert all(not t.any() for group in node for t in group)
    pack.put(node)
    assert all(p.grad is None for p in model.parameters())


def test_a_model_without_buffers_has_none_to_move():
    model = nn.Linear(2, 1)
    pack = pack_of(model)
    model(torch.ones(3, 2)).sum().backward()
    pack.put(pack.take(1.0))
    assert model.weight.grad.tolist() == [[3.0, 3.0]]


def test_buffers_move_by_the_mean_of_their_shards_movements():
    model = nn.BatchNorm1d(1, momentum=1.0)
    pack, nodes = pack_of(model), []
    for x, weight in ((torch.tensor([[1.0], [3.0]]), 0.25), (torch.tensor([[10.0], [14.0], [18.0]]), 0.75)):
        model(x).sum().backward()
        nodes.append(pack.take(weight))
    pack.put(tree_sum(nodes, add_into))
    assert model.running_mean.item() == pytest.approx(0.25 * 2 + 0.75 * 14)
    assert model.num_batches_tracked.item() == 1


# ---------------------------------------------------------------------- the whole, over processes


def summed(x, shards, models, processes):
    """Gradients and buffers that one process has after a window."""
    model = models[processes.index]
    window = BatchPlan(None, Layout(processes.count, processes.index, shards=shards), processes).window(x)
    summing = ShardSum(model, processes, shards, CPU, 0, lambda: 1)
    for micro in summing.micros(window, list(model.parameters())):
        share = window.share(None, micro)
        (model(micro.batch) * (1.0 if share is None else share)).backward()
    return found_in(model)


@holds_for(st.sampled_from([4, 6, 12]), st.integers(0, 99), few=8, many=100)
def test_every_number_of_processes_has_the_same_bits(shards, seed):
    x = torch.randn(3 * shards - 1, 3, generator=torch.Generator().manual_seed(seed))
    found = []
    for processes in [n for n in divisors(shards) if n <= 6]:
        models = [Several() for _ in range(processes)]  # here, since threads share the streams
        found += in_threads(processes, partial(summed, x, shards, models))
    for gradients, buffers in found[1:]:
        assert same(gradients, found[0][0])
        assert same(buffers, found[0][1])
    assert found[0][0]["always.weight"].any()
    assert found[0][0]["never.weight"] is None


def test_fewer_samples_than_shards_are_summed_too():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    model = nn.Linear(3, 1)
    model(x).square().mean().backward()
    wanted = model.weight.grad.clone()
    one = SimpleNamespace(count=1, index=0, stack=lambda blocks: blocks)
    window = BatchPlan(None, Layout(shards=8), one).window(x)
    assert sorted(micro.samples for micro in window.micros) == [0, 0, 0, 1, 1, 1, 1, 1]
    model.zero_grad()
    ran = 0
    for micro in ShardSum(model, one, 8, CPU, 0, lambda: 1).micros(window, list(model.parameters())):
        (model(micro.batch).square().mean() * window.share(None, micro)).backward()
        ran += 1
    assert ran == 5
    torch.testing.assert_close(model.weight.grad, wanted)


@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_refused(layer):
    one = SimpleNamespace(count=1, index=0)
    message = "those of '1', which has sparse=True, are sparse; leave sparse=True out there, or shards= here"
    with pytest.raises(ValueError, match=message):
        ShardSum(nn.Sequential(layer(4, 2), layer(4, 2, sparse=True)), one, 2, CPU, 0, lambda: 1)


def test_each_shard_draws_from_a_stream_of_its_own_whoever_has_it():
    draws = {}
    for processes in (1, 2, 4):
        found = []
        for index in range(processes):
            each = SimpleNamespace(count=processes, index=index, stack=lambda blocks: blocks)
            window = BatchPlan(None, Layout(processes, index, shards=4), each).window(torch.ones(8, 1))
            model = nn.Linear(1, 1)
            for _ in ShardSum(model, each, 4, CPU, 7, lambda: 3).micros(window, list(model.parameters())):
                found.append(float(torch.rand(())))
        draws[processes] = found
    assert draws[1] == draws[2] == draws[4]
    assert len(set(draws[1])) == 4


# ---------------------------------------------------------------------- the option


@pytest.mark.parametrize("shards", [1, 8])
def test_fitting_shards_are_accepted(shards):
    assert check_shards(shards) == shards
    assert check_shards(8, 1) == 8
    assert check_shards(None, 5, False) is None
    check_divides(shards, 1)
    check_divides(8, 4)
    check_divides(None, 3)


@pytest.mark.parametrize(
    ("shards", "processes", "micro_batches", "message"),
    [
        (0, 1, None, "shards=0 is not accepted; write a whole number of at least 1, or None"),
        (True, 1, None, "shards=True is not accepted"),
        (2.0, 1, None, "shards=2.0 is not accepted"),
        ("8", 1, None, "shards='8' is not accepted"),
        (8, 3, None, "shards=8 cannot be shared out evenly over 3 processes; start 1, 2, 4, 8 of them, or"),
        (2, 4, None, "shards=2 cannot be shared out evenly over 4 processes; start 1, 2 of them"),
        (8, 2, 4, "leave gradient_accumulation_steps=4 out"),
    ],
)
def test_shards_that_do_not_fit_are_refused(shards, processes, micro_batches, message):
    with pytest.raises(ValueError, match=message):
        check_divides(check_shards(shards, micro_batches), processes)


def test_shards_of_each_process_are_refused():
    with pytest.raises(ValueError, match=r"shards=8 are pieces of a global batch .* split_batches=False is not"):
        check_shards(8, None, False)


# ---------------------------------------------------------------------- cutting and joining batches


def nest(samples):
    x = torch.arange(2.0 * samples).view(samples, 2)
    return {"x": x, "pair": (torch.arange(samples), [f"n{i}" for i in range(samples)])}


@holds_for(st.integers(1, 40), st.lists(st.integers(1, 40), max_size=6))
def test_slices_that_are_joined_again_are_the_batch(samples, inner):
    edges = sorted({0, samples, *(e for e in inner if e < samples)})
    pieces = slices(nest(samples), list(pairwise(edges)), "it")
    assert [size for _, size in pieces] == [b - a for a, b in pairwise(edges)]
    whole = join([piece for piece, _ in pieces])
    assert fingerprint(whole) == fingerprint(nest(samples))
    assert whole["pair"][1] == nest(samples)["pair"][1]


def test_slices_may_be_any_span():
    (piece, size), (none, nothing) = slices(nest(5), [(1, 3), (2, 2)], "it")
    assert (piece["x"].tolist(), size) == ([[2.0, 3.0], [4.0, 5.0]], 2)
    assert (piece["pair"][1], none["pair"][1], len(none["x"]), nothing) == (["n1", "n2"], [], 0, 0)


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([torch.tensor([1, 2]), torch.tensor([3])], torch.tensor([1, 2, 3])),
        ([[1], [2, 3]], [1, 2, 3]),
        ([(torch.tensor([1]), ["a"]), (torch.tensor([2]), ["b"])], (torch.tensor([1, 2]), ["a", "b"])),
        ([{"x": torch.tensor([1])}, {"x": torch.tensor([2])}], {"x": torch.tensor([1, 2])}),
        (["a", "b"], "b"),
        ([torch.tensor(1), torch.tensor(2)], torch.tensor(2)),
        ([7], 7),
    ],
    ids=["tensors", "lists", "tuples", "dicts", "strings", "numbers", "one"],
)
def test_parts_are_joined(parts, whole):
    assert type(join(parts)) is type(whole)
    assert fingerprint(join(parts)) == fingerprint(whole)


def test_tensors_of_other_widths_cannot_be_joined():
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        join([torch.ones(2, 3), torch.ones(2, 4)])


DIFFERENT = [
    torch.tensor([1.0, 2.0]),
    torch.tensor([[1.0, 2.0]]),
    torch.tensor([1.0, 2.0 + 2**-20]),
    torch.tensor([0.0, -0.0]),
    torch.tensor([0.0, 0.0]),
    np.array([1.0, 2.0]),
    np.array([2.0, 1.0]),
    torch.tensor(3),
    [1, "a"],
    [1, "b"],
    [2, "a"],
    {"x": 1.5},
    b"ab",
    torch.tensor([1.0, 2.0]).to(torch.bfloat16),
    object(),
]


def test_other_contents_have_other_fingerprints():
    found = [fingerprint(content) for content in DIFFERENT]
    assert len(set(found)) == len(DIFFERENT)
    assert found[:-1] == [fingerprint(copy.deepcopy(content)) for content in DIFFERENT[:-1]]


def test_a_fingerprint_looks_at_contents_not_at_memory():
    x = torch.arange(12.0).view(3, 4)
    assert fingerprint(x.T) == fingerprint(x.T.contiguous()) != fingerprint(x)
    assert fingerprint(x.requires_grad_()) == fingerprint(x.detach())
    assert fingerprint(object()) == fingerprint(object())
    assert fingerprint([struct, None]) == fingerprint([copy, None])
    y = np.arange(12.0).reshape(3, 4)
    assert fingerprint(y.T) == fingerprint(np.ascontiguousarray(y.T)) != fingerprint(y)


def test_a_fingerprint_of_nothing_is_one():
    assert fingerprint([]) == fingerprint({}) != fingerprint(torch.ones(0))


def test_a_column_of_one_sample_has_a_fingerprint():
    x = torch.arange(2).view(1, 2)
    assert fingerprint(x[:, 0]) == fingerprint(torch.tensor([0]))
