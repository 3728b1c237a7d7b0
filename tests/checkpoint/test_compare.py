"""What differs between two checkpoints, to the bit."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch

from tests.checkpoint.making import begin, make, summary
from zae_engine.checkpoint.compare import compare, describe, difference_of, read_parts
from zae_engine.checkpoint.documents import write_document, write_tensors
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.trainer.data.random_streams import set_streams, streams_of


def content():
    model = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
    state = {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
        "step": 10,
        "nothing": {},
        "log": np.array([1.0, float("nan")]),
    }
    process = {"torch": torch.arange(5, dtype=torch.uint8), "python": (3, (1, 2), None)}
    return {"model": model, "state": state, "process-0": process, "sharded": {"w": torch.zeros(2)}}


def save(folder, serial, parts, suffix=".safetensors"):
    def write(partial):
        (partial / "sharded").mkdir()
        write_tensors(partial / f"model{suffix}", parts["model"])
        write_tensors(partial / "sharded/0.safetensors", parts["sharded"])
        (partial / "engine.bin").write_bytes(parts.get("engine", b"1"))
        (partial / "sharded/values.json").write_text('{"groups": [1]}', encoding="utf-8")
        names = [f"model{suffix}", "sharded/0.safetensors", "sharded/values.json", "engine.bin"]
        return names + [n for stem in ("state", "process-0") for n in write_document(partial, stem, parts[stem])]

    commit = begin(folder, serial)
    commit.write(write)
    return commit.finish(summary(serial))


@pytest.fixture
def differences(tmp_path):
    def find(change, suffix=".safetensors"):
        parts = content()
        one = save(tmp_path / "one" / "checkpoints", 1, content())
        change(parts)
        return compare(one, save(tmp_path / "other" / "checkpoints", 2, parts, suffix))

    return find


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_the_same(differences, suffix):
    assert differences(lambda parts: None, suffix) == []


def test_all_parts_are_read(tmp_path):
    parts = read_parts(save(tmp_path, 1, content()))
    assert sorted(parts) == ["engine.bin", "model", "process-0", "sharded/0", "sharded/values", "state"]
    assert ("optimizer", "state", 0, "exp_avg") in parts["state"]
    assert parts["state"][("nothing",)] == {}


def test_tensors_come_before_values_and_the_model_first(differences):
    def change(parts):
        parts["state"]["step"] = 11
        parts["state"]["optimizer"]["state"][0]["exp_avg"][1] = 3
        parts["process-0"]["torch"][0] = 9
        parts["sharded"]["w"][0] = 1
        parts["model"]["a.weight"][1] += 0.5
        parts["model"]["b"] += 7
        parts["engine"] = b"2"

    assert [str(found).split(", SHA")[0] for found in differences(change)] == [
        "model: b: 1 of 1 differ, by at most 7 (relative 0.7)",
        "model: a.weight: 3 of 6 differ, by at most 0.5 (relative 0.143)",
        "state: optimizer/state/0/exp_avg: 1 of 4 differ, by at most 2 (relative 0.667)",
        "state: step: 10 -> 11",
        "process-0: torch: 1 of 5 differ, by at most 9 (relative 1)",
        "engine.bin: file: '1 bytes",
        "sharded/0: w: 1 of 2 differ, by at most 1 (relative 1)",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["model"].pop("b"), "model: b: only in the first: int64 []"),
        (lambda p: p["model"].update(c=torch.ones(1, 2)), "model: c: only in the second: float32 [1, 2]"),
        (lambda p: p["model"].update(b=torch.tensor(3.0)), "model: b: int64 [] -> float32 []"),
        (lambda p: p["model"].update(b=torch.tensor([3])), "model: b: int64 [] -> int64 [1]"),
        (lambda p: p["state"].update(step=10.0), "state: step: 10 -> 10.0"),
        (lambda p: p["state"].update(step=True), "state: step: 10 -> True"),
        (lambda p: p["state"].update(nothing=None), "state: nothing: {} -> None"),
        (lambda p: p["state"].pop("nothing"), "state: nothing: only in the first: {}"),
        (lambda p: p["state"]["optimizer"]["groups"][0].update(lr=-0.0), "groups/0/lr: 0.1 -> -0.0"),
        (lambda p: p["state"].update(log=np.array([2.0, float("nan")])), "state: log: 1 of 2 differ, by at most 1"),
        (lambda p: p["process-0"].update(python=(3, (1, 5), None)), "process-0: python/1/1: 2 -> 5"),
        (lambda p: p["process-0"].update(python=(3, (1, 2))), "process-0: python/2: only in the first: None"),
    ],
)
def test_one_change(differences, change, said):
    found = differences(change)
    assert len(found) == 1
    assert said in str(found[0])


def test_the_order_of_a_dict_is_no_difference(differences):
    assert differences(lambda parts: parts.update(model=OrderedDict(reversed(parts["model"].items())))) == []


DTYPES = [torch.bool, torch.int64, torch.uint16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype):
    one = torch.ones(3, 4).to(dtype)
    other = one.clone()
    other[1, 2] = 0
    assert difference_of(one, one.clone()) is None
    assert difference_of(one.t(), one.t().contiguous()) is None
    assert difference_of(one[:0], other[:0]) is None
    found = difference_of(one, other)
    assert (found.count, found.size, found.largest, found.relative) == (1, 12, 1.0, 1.0)


def test_bits_count():
    nan, inf = float("nan"), float("inf")
    assert difference_of(torch.tensor([nan, inf]), torch.tensor([nan, inf])) is None
    assert difference_of(torch.tensor(0.0), torch.tensor(-0.0)).largest == 0.0
    assert difference_of(torch.tensor([1.0, 1.0]), torch.tensor([nan, 1.0])).largest == math.inf
    assert difference_of(torch.tensor(inf), torch.tensor(-inf)).largest == math.inf
    large = difference_of(torch.tensor(2**60), torch.tensor(2**60 + 1))
    assert (large.count, large.largest) == (1, 0.0)


def test_files_of_weights(tmp_path):
    for name in ("a.safetensors", "b.ckpt", "c.pt"):
        weights = content()["model"]
        if name == "b.ckpt":
            weights["b"] += 1
        write_tensors(tmp_path / name, weights) if name != "c.pt" else torch.save(weights, tmp_path / name)
    checkpoint = save(tmp_path / "run" / "checkpoints", 1, content())
    assert compare(tmp_path / "a.safetensors", tmp_path / "c.pt") == []
    assert len(compare(tmp_path / "a.safetensors", tmp_path / "b.ckpt")) == 1
    assert compare(tmp_path / "c.pt", checkpoint) == []
    assert compare(tmp_path / "run", tmp_path / "a.safetensors") == []


def test_the_last_of_a_run(tmp_path):
    save(tmp_path / "checkpoints", 1, content())
    changed = content()
    changed["model"]["b"] += 1
    last = save(tmp_path / "checkpoints", 2, changed)
    assert compare(tmp_path, last) == []


def test_what_cannot_be_compared(tmp_path):
    path = make(tmp_path / "run" / "checkpoints", 1, {"model.safetensors": 50})
    with pytest.raises(CheckpointError, match=r"model.safetensors' is damaged"):
        compare(path, path)
    (path / "model.safetensors").write_bytes(b"1")
    with pytest.raises(CheckpointError, match=r"000001-step-10' is damaged: model.safetensors has 1 bytes"):
        compare(path, path)
    with pytest.raises(CheckpointError, match="did you mean"):
        compare(tmp_path / "rum", path)
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        compare(tmp_path / "new", path)
    (tmp_path / "a.pt").write_bytes(b"1")
    with pytest.raises(CheckpointError, match=r"a.pt' is"):
        compare(tmp_path / "a.pt", path)


def test_an_integer_that_is_too_long_to_be_written():
    assert describe(16**9999) == "an int that is too long to be shown"


def test_a_random_stream_is_one_line(tmp_path):
    found = []
    for serial, seed in enumerate((1, 1, 2), start=1):
        parts = content()
        set_streams(torch.device("cpu"), seed)
        parts["process-0"] = {"streams": streams_of(torch.device("cpu")), "generator": (3, (*range(624), seed), None)}
        found.append(save(tmp_path / str(serial) / "checkpoints", serial, parts))
    assert compare(found[0], found[1]) == []
    assert sorted(map(str, compare(found[0], found[2]))) == [
        f"process-0: {name}: the random stream is at another place"
        for name in ("generator", "streams/numpy", "streams/python", "streams/torch")
    ]


def test_many_numbers_are_one_line(differences):
    def change(parts):
        parts["state"]["losses"] = [float("nan"), *map(float, range(29))]

    (found,) = differences(change)
    assert str(found) == "state: losses: only in the second: 30 numbers"


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ([0.0] * 30, [*[0.0] * 28, 1.0, -0.0], "2 of 30 numbers differ, the first of them at 28: 0.0 -> 1.0"),
        (list(range(30)), list(range(31)), "30 numbers -> 31 numbers"),
        ([1] * 30, [*[1] * 29, True], "1 of 30 numbers differ, the first of them at 29: 1 -> True"),
    ],
)
def test_how_many_numbers_differ(tmp_path, then, now, words):
    found = []
    for serial, losses in enumerate((then, now), start=1):
        parts = content()
        parts["state"]["losses"] = losses
        found.append(save(tmp_path / str(serial) / "checkpoints", serial, parts))
    assert list(map(str, compare(*found))) == [f"state: losses: {words}"]
    assert compare(found[0], found[0]) == []


def test_integers_of_any_length_are_compared(tmp_path):
    found = []
    for serial in (1, 2):
        parts = content()
        parts["state"]["long"] = [16**9999 + serial] * 30
        parts["process-0"]["python"] = (3, (*range(624), 16**9999 + serial), None)
        found.append(save(tmp_path / str(serial) / "checkpoints", serial, parts))
    said = list(map(str, compare(*found)))
    assert len(said) == 31
    assert "process-0: python: the random stream is at another place" in said
