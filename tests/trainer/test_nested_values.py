"""Nests of tensors: placed, counted, cut and merged."""

import types
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import MutableMapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from zae_engine.trainer.data.cut import count_samples, cut
from zae_engine.trainer.nested_values import is_scalar, leaves, map_nest, merge, place, snapshot, to_cpu

META = torch.device("meta")  # a second device that every machine has

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Sample:
    x: torch.Tensor
    name: str = "s"
    mark: torch.Tensor = field(init=False, default_factory=lambda: torch.zeros(4))


@dataclass(frozen=True)
class FrozenSample:
    x: torch.Tensor
    inner: Pair


@dataclass(frozen=True, slots=True)
class SlottedSample:
    x: torch.Tensor


class Tokens(UserDict):
    """As the batches of tokenizers are."""


class OwnMapping(MutableMapping):
    """A mapping that keeps its values in a dict which a shallow copy shares."""

    def __init__(self, **values):
        self.store = values

    def __getitem__(self, key):
        return self.store[key]

    def __setitem__(self, key, value):
        self.store[key] = value

    def __delitem__(self, key):
        del self.store[key]

    def __iter__(self):
        return iter(self.store)

    def __len__(self):
        return len(self.store)


class ItemsOnly(OrderedDict):
    """As the outputs of transformers are: items can be set, but update() is refused."""

    def update(self, *args, **kwargs):
        raise RuntimeError("You cannot use update() on this instance")


class Graph:
    """An object that knows how to move itself."""

    def __init__(self, edges):
        self.edges = edges

    def to(self, device):
        return Graph(self.edges.to(device))


class Encoding:
    """As a tokenizer's: it can be told not to wait for its copy."""

    def to(self, device, *, non_blocking=False):
        self.waits = not non_blocking
        return self


def arange(count, *shape):
    return torch.arange(count).reshape(-1, *([1] * len(shape))).expand(count, *shape)


# ---------------------------------------------------------------------- place and map_nest


@pytest.mark.parametrize(
    "nest",
    [
        torch.ones(2),
        {"x": torch.ones(2), "y": torch.ones(2)},
        (torch.ones(2), torch.ones(2)),
        [torch.ones(2), torch.ones(2)],
        Pair(torch.ones(2), torch.ones(2)),
        Sample(torch.ones(2)),
        FrozenSample(torch.ones(2), Pair(torch.ones(1), torch.ones(1))),
        SlottedSample(torch.ones(2)),
        defaultdict(list, x=torch.ones(2)),
        OrderedDict(x=torch.ones(2)),
        Tokens(x=torch.ones(2)),
        {"a": [{"b": (torch.ones(1), [torch.ones(1)])}], "c": Pair(Sample(torch.ones(1)), [])},
    ],
    ids=lambda nest: type(nest).__name__,
)
def test_every_tensor_of_a_nest_is_placed_and_the_form_stays(nest):
    placed = place(nest, META)
    assert type(placed) is type(nest)
    tensors = [leaf for leaf in leaves(placed) if isinstance(leaf, torch.Tensor)]
    assert {t.device.type for t in tensors} == {"meta"}
    assert len(list(leaves(placed))) == len(list(leaves(nest)))
    before = [leaf for leaf in leaves(nest) if isinstance(leaf, torch.Tensor)]
    assert {t.device.type for t in before} == {"cpu"}


def test_what_is_on_the_device_already_is_not_copied():
    x = torch.ones(3)
    assert place({"x": [x]}, torch.device("cpu"))["x"][0] is x


def test_strings_numbers_and_other_objects_pass_through():
    thing = object()
    placed = place({"s": "text", "b": b"bytes", "n": 3, "none": None, "o": thing, "set": {1}}, META)
    assert placed == {"s": "text", "b": b"bytes", "n": 3, "none": None, "o": thing, "set": {1}}


def test_an_object_with_to_is_moved_by_it():
    graph = Graph(torch.ones(2, 5))
    placed = place([graph, 1], META)
    assert isinstance(placed[0], Graph)
    assert placed[0].edges.device.type == "meta"
    assert graph.edges.device.type == "cpu"


def test_a_packed_sequence_is_moved_by_its_own_to():
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    placed = place({"x": packed}, META)["x"]
    assert type(placed) is type(packed)
    assert placed.data.device.type == "meta"
    assert placed.batch_sizes.device.type == "cpu"  # torch insists on it


@pytest.mark.parametrize("non_blocking", [True, False])
def test_an_object_that_need_not_wait_for_its_copy_is_told_so(non_blocking):
    assert place([Encoding()], META, non_blocking)[0].waits is not non_blocking


def test_other_objects_are_placed_as_ever_where_nothing_waits():
    assert place(Graph(torch.ones(2, 5)), META, non_blocking=True).edges.device.type == "meta"
    assert place(pack_sequence([torch.ones(3)]), META, non_blocking=True).data.device.type == "meta"


def test_map_nest_calls_the_function_on_leaves_only():
    seen = []
    result = map_nest(lambda leaf: seen.append(leaf) or str(leaf), {"a": [1, (2, "x")], "b": Pair(3, None)})
    assert seen == [1, 2, "x", 3, None]
    assert result == {"a": ["1", ("2", "x")], "b": Pair("3", "None")}


def test_a_defaultdict_keeps_its_factory():
    mapped = map_nest(lambda v: v + 1, defaultdict(list, a=1))
    assert mapped["a"] == 2
    assert mapped["new"] == []


def test_dataclass_fields_outside_the_constructor_are_kept():
    sample = Sample(torch.ones(2), name="n")
    sample.mark = torch.full((2,), 7.0)
    mapped = map_nest(lambda v: v * 2, sample)
    assert mapped.mark.tolist() == [14.0, 14.0]
    assert mapped.name == "nn"
    assert sample.mark.tolist() == [7.0, 7.0]


def test_a_dataclass_class_is_no_nest():
    assert map_nest(lambda leaf: leaf, [Sample])[0] is Sample


def test_a_mapping_of_ones_own_is_not_changed_in_place():
    batch = OwnMapping(x=torch.ones(2))
    placed = place(batch, META)
    assert type(placed) is OwnMapping
    assert placed["x"].device.type == "meta"
    assert batch["x"].device.type == "cpu"


def test_a_mapping_that_refuses_update_is_mapped_item_by_item():
    mapped = map_nest(to_cpu, ItemsOnly(logits=torch.ones(2, requires_grad=True)))
    assert type(mapped) is ItemsOnly
    assert not mapped["logits"].requires_grad


def test_to_cpu_and_snapshot_take_the_graph_away():
    for x in (torch.ones(2, requires_grad=True) * 2, torch.ones(2, requires_grad=True).sum()):
        assert not snapshot(x).requires_grad
        assert not to_cpu(x).requires_grad
    assert (snapshot("s"), to_cpu(3)) == ("s", 3)


@pytest.mark.parametrize(
    "pick", [lambda p: p.sum(), lambda p: p[0], lambda p: p.detach()[0], lambda p: p[:1].squeeze()]
)
def test_a_snapshot_keeps_the_value_it_had(pick):
    scales = nn.Parameter(torch.tensor([1.0]))
    logged = snapshot(pick(scales))
    with torch.no_grad():
        scales.add_(4.0)  # as the optimizer's step does, before the log is read
    assert logged.item() == 1.0


def test_a_snapshot_of_a_parameter_or_buffer_without_dimensions_is_a_copy():
    for live in (nn.Parameter(torch.tensor(1.0)), torch.tensor(1.0)):
        logged = snapshot(live)
        with torch.no_grad():
            live.add_(4.0)
        assert logged.item() == 1.0


def test_what_a_step_has_just_computed_is_not_copied():
    loss = torch.ones(2, requires_grad=True).sum()
    assert snapshot(loss).data_ptr() == loss.data_ptr()


# ---------------------------------------------------------------------- count_samples


@pytest.mark.parametrize(
    ("nest", "count"),
    [
        (torch.ones(5, 2), 5),
        ({"x": torch.ones(4), "y": torch.ones(9)}, 4),
        (("text", torch.ones(3)), 3),
        ([torch.tensor(1.0), torch.ones(6)], 6),
        (Sample(torch.ones(7)), 7),
        ({"a": {"b": [torch.ones(2, 8)]}}, 2),
        (["a", "b", "c"], 3),
        ({"texts": ["a", "b"]}, 2),
        ("text", 1),
        (b"bytes", 1),
        (3.5, 1),
        ({}, 1),
    ],
)
def test_samples_are_counted(nest, count):
    assert count_samples(nest) == count


@pytest.mark.parametrize("nest", [torch.tensor(3.0), {"x": torch.tensor(3.0)}])
def test_a_tensor_without_dimensions_is_one_sample(nest):
    assert count_samples(nest) == 1


def test_the_first_list_counts_when_a_string_comes_before_it():
    assert count_samples({"split": "train", "texts": ["a", "b", "c"]}) == 3


# ---------------------------------------------------------------------- cut


@pytest.mark.parametrize(
    ("total", "parts", "sizes"),
    [(8, 4, [2, 2, 2, 2]), (10, 4, [3, 2, 3, 2]), (7, 3, [3, 2, 2]), (6, 1, [6]), (3, 8, [1, 1, 1]), (1, 4, [1])],
)
def test_pieces_cover_the_batch_in_order(total, parts, sizes):
    pieces = cut({"x": arange(total, 2)}, parts)
    assert [size for _, size in pieces] == sizes
    assert [len(piece["x"]) for piece, _ in pieces] == sizes
    assert torch.equal(torch.cat([piece["x"] for piece, _ in pieces]), arange(total, 2))


def test_tensors_strings_and_lists_are_cut_together():
    batch = {"x": arange(5), "names": list("abcde"), "pair": (arange(5, 3), [{"y": arange(5)}])}
    pieces = [piece for piece, _ in cut(batch, 2)]
    assert [p["names"] for p in pieces] == [["a", "b", "c"], ["d", "e"]]
    assert pieces[1]["x"].tolist() == [3, 4]
    assert pieces[1]["pair"][0].shape == (2, 3)
    assert pieces[0]["pair"][1][0]["y"].tolist() == [0, 1, 2]


def test_what_has_no_samples_goes_to_every_piece():
    batch = {"x": arange(4), "scale": torch.tensor(2.0), "task": "seg", "vocabulary": torch.arange(9), "ids": [1, 2, 3]}
    for piece, _ in cut(batch, 2):
        assert piece["scale"] is batch["scale"]
        assert piece["task"] == "seg"
        assert piece["vocabulary"] is batch["vocabulary"]
        assert piece["ids"] == [1, 2, 3]


def test_a_list_of_objects_is_cut_one_a_sample():
    targets = [{"boxes": torch.ones(n, 4)} for n in (1, 2, 3)]
    first, second = (piece for piece, _ in cut((torch.zeros(3, 2), targets), 2))
    assert [t["boxes"].shape[0] for t in first[1]] == [1, 2]
    assert [t["boxes"].shape[0] for t in second[1]] == [3]


def test_dataclasses_and_named_tuples_are_cut():
    sample = FrozenSample(arange(4), Pair(arange(4, 2), "k"))
    (first, _), (second, size) = cut(sample, 2)
    assert type(first) is FrozenSample
    assert type(first.inner) is Pair
    assert (second.x.tolist(), second.inner.x.shape, second.inner.y, size) == ([2, 3], (2, 2), "k", 2)


def test_a_list_of_two_dicts_is_cut_in_the_tensors_at_any_batch_size():
    # default_collate makes such a list of samples that are (dict, dict)
    for total in (2, 4):
        pieces = cut([{"x": arange(total)}, {"y": arange(total)}], 2)
        assert [len(piece[0]["x"]) for piece, _ in pieces] == [total // 2] * 2
        assert [len(piece[1]["y"]) for piece, _ in pieces] == [total // 2] * 2


def test_a_mapping_of_ones_own_is_cut_without_changing_it():
    batch = OwnMapping(x=arange(4))
    pieces = [piece["x"].tolist() for piece, _ in cut(batch, 2)]
    assert pieces == [[0, 1], [2, 3]]
    assert batch["x"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("batch", ["text", {"x": torch.tensor(1.0)}, ["a", "b"], {"names": ["a", "b"]}, Graph(None)])
def test_a_batch_without_a_tensor_to_cut_is_refused(batch):
    message = rf"gradient_accumulation_steps=2 needs batches that can be cut .* a {type(batch).__name__}, has no such"
    with pytest.raises(TypeError, match=message):
        cut(batch, 2)


def test_a_batch_whose_parts_cannot_be_cut_alike_is_refused():
    with pytest.raises(TypeError, match="this batch, a mappingproxy, has no such tensor"):
        cut(types.MappingProxyType({"x": torch.ones(4)}), 2)


# ---------------------------------------------------------------------- merge


def test_scalars_are_weighted_and_counts_are_summed():
    parts = [
        {"loss": torch.tensor(1.0), "acc": 0.5, "num_items": 1},
        {"loss": torch.tensor(5.0), "acc": 1.0, "num_items": 3},
    ]
    merged = merge(parts, [1, 3])
    assert merged["loss"].item() == 4.0
    assert merged["acc"] == 0.875
    assert merged["num_items"] == 4


def test_tensors_and_lists_are_joined_and_of_other_things_the_last_stays():
    parts = [{"out": arange(2, 3), "ids": ["a"], "tag": "p"}, {"out": arange(1, 3), "ids": ["b"], "tag": "q"}]
    merged = merge(parts, [2, 1])
    assert merged["out"].shape == (3, 3)
    assert merged["ids"] == ["a", "b"]
    assert merged["tag"] == "q"


def test_weights_may_be_tensors():
    parts = [
        {"loss": torch.tensor(1.0), "num_items": torch.tensor(2)},
        {"loss": torch.tensor(4.0), "num_items": torch.tensor(1)},
    ]
    merged = merge(parts, [p["num_items"] for p in parts])
    assert merged["loss"].item() == 2.0
    assert merged["num_items"].item() == 3


def test_one_result_is_handed_on_as_it_is():
    result = {"loss": torch.tensor(1.0)}
    assert merge([result], [7]) is result


def test_a_key_that_some_micro_batches_lack_is_no_mean():
    merged = merge([{"loss": 1.0}, {"loss": 3.0, "extra": 8.0}], [1, 1])
    assert merged == {"loss": 2.0, "extra": 8.0}


def test_a_loss_of_one_element_is_weighted_like_a_scalar():
    merged = merge([{"loss": torch.tensor([1.0])}, {"loss": torch.tensor([5.0])}], [1, 3])
    assert merged["loss"].numel() == 1
    assert merged["loss"].item() == 4.0


@pytest.mark.parametrize(
    ("value", "scalar"),
    [(1, True), (0.5, True), (True, True), (torch.tensor(1), True), (torch.ones(1), False), (1j, False),
     (torch.tensor(1j), False), ("1", False), (None, False)],
)  # fmt: skip
def test_what_counts_as_a_scalar(value, scalar):
    assert is_scalar(value) is scalar


@pytest.mark.parametrize("batch", [[], ()])
def test_an_empty_batch_has_no_sample(batch):
    assert count_samples(batch) == 0
