"""What a state may hold comes back as it was, of the same type, and nothing in a file is run."""

import array
import datetime as dt
import json
import math
import pathlib
import struct
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from tests.searching import holds_for
from zae_engine.checkpoint.codec import pack, unpack
from zae_engine.checkpoint.errors import CheckpointError


def through(value, where=""):
    """To text and back."""
    tree, tensors = pack(value, where)
    text = json.dumps(tree, allow_nan=False, ensure_ascii=False).encode()
    return unpack(json.loads(text), tensors)


def same(one, other):
    """Equal, of the same types, bit by bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, array.array):
        return one.typecode == other.typecode and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(k, j) and same(v, w) for (k, v), (j, w) in zip(one.items(), other.items(), strict=True)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


NAN = struct.unpack("<d", (0x7FF8000000000123).to_bytes(8, "little"))[0]
VALUES = [
    *(None, True, False, 0, -1, 2**63, 2**64 - 1, 2**64, -(10**5000), "", "가나다", "\ud800", "\ud83d\ude00", "a\x00b"),
    *(0.1, -0.0, 1e308, 5e-324, math.inf, -math.inf, math.nan, NAN, 1 + 2j, complex(-0.0, NAN), complex(math.inf, 0)),
    *(b"", b"\x00\xff", bytearray(b"ab"), [], (), set(), frozenset(), {}, [1, (2, [3])], {1, "a", (2, 3)}),
    *({"a": 1, "b": [2]}, {0: "x", "0": "y", (1, 2): "z", None: 1, 1.5: 2, b"k": 3}, {True: 1}, {"$": 1, "v": 2}),
    *({"$": "tensor", "v": "nothing"}, {"$": {"$": "int"}}, {"b": 1, "a": 2}, {"\udcff": 1}, {"__metadata__": 1}),
    *(OrderedDict(b=1, a=2), Counter("abca"), defaultdict(list, {1: [2]}), defaultdict(None, {"a": 1})),
    *(torch.float32, torch.bfloat16, torch.complex128, torch.Size([2, 3]), torch.Size([]), torch.device("cuda:1")),
    *(np.float64(0.1), np.float32("nan"), np.int64(-3), np.bool_(True), np.uint64(2**64 - 1), np.complex64(1j)),
    *(np.datetime64("2026-01-02T03:04:05"), np.timedelta64(3, "s"), np.float16(-0.0)),
    *(np.arange(6).reshape(2, 3), np.array(3.5), np.zeros((0, 3)), np.array([True, False]), np.arange(4, dtype=">i4")),
    *(np.arange(10)[::-2], np.asfortranarray(np.eye(3)), np.zeros(2, np.uint16), np.array([1j]), np.float16([1])),
    *(array.array("d", [1.5, math.inf]), array.array("q", [2**62]), array.array("B", b"xy"), array.array("f")),
    *(array.array(code, [i % 128 for i in range(1000)]) for code in "bBhHiIlLqQfd"),
    array.array("d", [NAN, -math.nan, -0.0, math.inf] * 250),
    *(dt.datetime(2026, 1, 2, 3, 4, 5, 6), dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=9)))),
    *(dt.date(2026, 1, 2), dt.time(1, 2, 3), dt.timedelta(-1, 2, 3), pathlib.Path("a/b"), pathlib.Path("/\udcff")),
    *(pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("c:\\a")),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_values_come_back(value):
    assert same(through(value), value)
    assert same(through({"a": [value]}), {"a": [value]})


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
KEYS = st.text() | st.integers() | st.tuples(st.integers()) | st.none() | st.just("$") | st.binary()
NESTS = st.recursive(
    PLAIN, lambda s: st.lists(s) | st.tuples(s, s) | st.dictionaries(KEYS, s) | st.dictionaries(st.text(), s)
)


@holds_for(NESTS)
def test_any_nest_comes_back(value):
    assert same(through(value), value)


@pytest.mark.parametrize(
    "value", [torch.tensor(1), torch.zeros(0, 2), torch.arange(6).view(2, 3).t(), torch.ones(2).bfloat16()]
)
def test_tensors_are_handed_on_as_they_are(value):
    tree, tensors = pack({"a": value})
    assert tensors["a"] is value
    assert unpack(tree, tensors)["a"] is value


def test_an_optimizer_comes_back_with_names_that_say_where():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=np.float64(0.1))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tree, tensors = pack(optimizer.state_dict(), "optimizer")
    assert "optimizer/state/0/exp_avg" in tensors
    again = unpack(json.loads(json.dumps(tree, allow_nan=False)), tensors)
    assert type(again["param_groups"][0]["lr"]) is np.float64
    assert same(again, optimizer.state_dict())


def test_names_are_unique_and_leave_the_one_that_safetensors_keeps():
    one = torch.ones(1)
    tree = {"a/b": one, "a": {"b": one + 1}, "__metadata__": one + 2, "c": {1: one + 3, "1": one + 4}}
    packed, tensors = pack(tree)
    assert sorted(tensors) == ["__metadata__~2", "a/b", "a/b~2", "c/1", "c/1~2"]
    assert same(unpack(packed, tensors), tree)
    assert list(pack(one)[1]) == ["value"]


def test_sets_are_written_in_the_same_order_everywhere():
    assert pack({"b", "a", "c"})[0] == {"$": "set", "v": ["a", "b", "c"]}


class Odd:
    pass


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Odd(), "test_codec.Odd"),
        (Odd, "type"),
        (test_values_come_back, "function"),
        (Text("a"), "test_codec.Text"),
        (np.array(["a"]), "numpy.ndarray"),
        (np.zeros(2, np.longdouble), "ndarray of float"),
        (iter([]), "list_iterator"),
    ],
)
def test_what_cannot_be_held_is_named(value, kind):
    with pytest.raises(CheckpointError, match=rf"addons/ema/0 is a \S*{kind}.*keep plain values, tensors and arrays"):
        pack({"addons": {"ema": [value]}})


def test_a_nest_that_contains_itself_is_refused():
    nest = []
    nest.append(nest)
    with pytest.raises(CheckpointError, match="contains itself"):
        pack(nest)


@pytest.mark.parametrize(
    "tree",
    [
        *(
            {"$": "os.system", "v": "true"},
            {"$": "tensor", "v": "missing"},
            {"$": "tensor", "v": 3},
            {"$": ["set"], "v": []},
        ),
        *({"$": "set"}, {"$": "set", "v": [[]]}, {"$": "set", "v": "ab"}, {"$": "int", "v": "x"}, {"$": "int", "v": 1}),
        *({"$": "dict", "v": [1]}, {"$": "dict", "v": [[1]]}, {"$": "dict", "v": [[[], 1]]}, {"$": "dict", "v": {}}),
        *(
            {"$": "dtype", "v": "Tensor"},
            {"$": "device", "v": "moon"},
            {"$": "size", "v": ["a"]},
            {"$": "complex", "v": [1]},
        ),
        *({"$": "scalar", "v": ["O", "00"]}, {"$": "scalar", "v": ["<f8", "00"]}, {"$": "scalar", "v": ["<q9", ""]}),
        *({"$": "array", "v": ["O", "t"]}, {"$": "array", "v": ["<f4", "b"]}, {"$": "array", "v": None}),
        *(
            {"$": "numbers", "v": ["z", []]},
            {"$": "numbers", "v": ["d", ["a"]]},
            {"$": "numbers", "v": ["z", "t"]},
            {"$": "numbers", "v": ["b", "t"]},
            {"$": "numbers", "v": ["d", "gone"]},
            {"$": "defaultdict", "v": ["eval", []]},
        ),
        *({"$": "datetime", "v": "x"}, {"$": "timedelta", "v": ["a"]}, {"$": "path", "v": 1}, {"$": "bytes", "v": "!"}),
        *(
            {"$": "float", "v": "zz"},
            {"$": "float", "v": "7ff0"},
            {"$": "str", "v": "0"},
            {"$": "set", "v": [], "x": 1},
        ),
        *(
            {1, 2},
            {"a": object()},
            {"$": "path", "v": {"$": "x"}},
            {"$": "counter", "v": 1},
            {"$": "timedelta", "v": [10**20]},
        ),
    ],
)
def test_a_tree_that_was_tampered_with_is_refused(tree):
    with pytest.raises(CheckpointError, match="the saved state"):
        unpack({"a": [tree]}, {"t": torch.ones(2), "b": torch.ones(2, dtype=torch.bfloat16)})


def test_a_tree_that_is_too_deep_is_refused():
    tree = []
    for _ in range(100_000):
        tree = [tree]
    with pytest.raises(CheckpointError, match="malformed: RecursionError"):
        unpack(tree, {})
    while tree:  # or its own end would be as deep
        tree = tree[0]
