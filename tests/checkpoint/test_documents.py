"""Files come back as they were written, and what was damaged or made to harm is refused in words."""

import hashlib
import json
import os
import pickle
import resource
import struct
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zae_engine.checkpoint.disk import digest
from zae_engine.checkpoint.documents import read_document, read_tensors, write_document, write_tensors
from zae_engine.checkpoint.errors import CheckpointError

SUFFIXES = [".safetensors", ".ckpt"]
PLAIN = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]
PLAIN += [torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64]
PLAIN += [torch.complex128, *(getattr(torch, name) for name in dir(torch) if name.startswith("float8_"))]


def random(dtype, *shape):
    """Any bits, but for bools, which have two."""
    if dtype is torch.bool:
        return torch.rand(shape) > 0.5
    raw = torch.randint(0, 256, (torch.Size(shape).numel() * dtype.itemsize,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def test_a_safetensors_file_is_the_one_that_the_library_writes(tmp_path):
    own = {f"{n}.{dtype}": torch.arange(n).to(dtype) for n in (0, 6) for dtype in (torch.float32, torch.bool)}
    own |= {"bfloat16": torch.ones(2, 3, dtype=torch.bfloat16), "scalar": torch.tensor(2.0, dtype=torch.float64)}
    write_tensors(tmp_path / "ours.safetensors", own)
    save_file(own, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_tensors_of_every_dtype_come_back(tmp_path, dtype, suffix):
    tensors = {"a": random(dtype, 3, 2), "scalar": random(dtype), "empty": random(dtype, 0, 2)}
    write_tensors(tmp_path / f"x{suffix}", tensors, {"more": "said"})
    again = read_tensors(tmp_path / f"x{suffix}")
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (again[name].dtype, again[name].shape) == (dtype, tensor.shape)
        assert bits(again[name]) == bits(tensor)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_come_back_with_as_many_sparse_dimensions(tmp_path, suffix):
    rows = torch.sparse_coo_tensor([[0, 2]], [[1.0, 2.0], [3.0, 4.0]], (4, 2), check_invariants=True)
    blocks = torch.eye(4).to_sparse_bsr((2, 2))
    deep = torch.arange(12.0).view(2, 3, 2).to_sparse(layout=torch.sparse_csr, dense_dim=1)
    write_tensors(tmp_path / f"x{suffix}", {"rows": rows, "blocks": blocks, "deep": deep})
    again = read_tensors(tmp_path / f"x{suffix}")
    for name, tensor in (("rows", rows), ("blocks", blocks), ("deep", deep)):
        assert (again[name].layout, again[name].dense_dim()) == (tensor.layout, tensor.dense_dim())
        assert torch.equal(again[name].to_dense(), tensor.to_dense())
    assert (again["rows"] + rows).to_dense()[2].tolist() == [6.0, 8.0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tensors_of_any_strides_are_written_each_for_itself(tmp_path, suffix):
    whole = torch.arange(12.0).view(3, 4)
    views = {"t": whole.t(), "row": whole[1], "same": whole, "step": whole[:, ::2], "wide": whole[0, :1].expand(2, 3)}
    views |= {"conj": torch.ones(2, dtype=torch.cfloat).mul(1j).conj(), "grad": torch.ones(2, requires_grad=True) * 2}
    views |= {"parameter": torch.nn.Parameter(torch.ones(2)), "slice of much": torch.zeros(10**6)[:2]}
    wanted = {name: view.detach().clone() for name, view in views.items()}
    write_tensors(tmp_path / f"x{suffix}", views)
    again = read_tensors(tmp_path / f"x{suffix}")
    assert all(torch.equal(again[name], tensor) for name, tensor in wanted.items())
    again["same"].zero_()
    assert torch.equal(again["row"], wanted["row"])
    assert (tmp_path / f"x{suffix}").stat().st_size < 10**5


def test_the_libraries_alone_can_read_the_files(tmp_path):
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.complex128)}
    for suffix in SUFFIXES:
        write_tensors(tmp_path / f"x{suffix}", tensors)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], tensors["a"])
    assert torch.equal(torch.load(tmp_path / "x.ckpt", weights_only=True)["b"], tensors["b"])


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.sparse_coo_tensor([[1]], [1.0], (10**9,), check_invariants=True), r"sparse, and would take 4\.0 GB"),
        (torch.ones(2, device="meta"), "on meta"),
        (torch.zeros(4, dtype=torch.uint8).view(torch.bits8), r"bits8, which safetensors cannot hold.*'\.ckpt'"),
    ],
)
def test_tensors_that_cannot_be_held_are_named(tmp_path, tensor, reason):
    with pytest.raises(CheckpointError, match=f"'odd' is .*{reason}"):
        write_tensors(tmp_path / "x.safetensors", {"odd": tensor})


def test_names_and_suffixes_that_cannot_be(tmp_path):
    with pytest.raises(CheckpointError, match="__metadata__"):
        write_tensors(tmp_path / "x.safetensors", {"__metadata__": torch.ones(1)})
    for use in (lambda p: write_tensors(p, {}), read_tensors):
        with pytest.raises(CheckpointError, match=r"'\.safetensors' or '\.ckpt' files, not in '\.pt'"):
            use(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"not in '\.zip'"):
        write_document(tmp_path, "x", {}, ".zip")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_documents_come_back(tmp_path, suffix):
    tree = {"optimizer": {0: {"exp_avg": torch.ones(2), "step": torch.tensor(3.0)}}, "best": float("inf"), "name": "가"}
    assert write_document(tmp_path, "state", tree, suffix) == ["state.json", f"state{suffix}"]
    again = read_document(tmp_path, "state")
    assert (again["best"], again["name"]) == (float("inf"), "가")
    assert torch.equal(again["optimizer"][0]["exp_avg"], torch.ones(2))
    assert json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))["state"]["name"] == "가"


def test_a_document_without_tensors_is_one_file(tmp_path):
    assert write_document(tmp_path, "state", {"a": 1}) == ["state.json"]
    assert os.listdir(tmp_path) == ["state.json"]
    assert read_document(tmp_path, "state") == {"a": 1}


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        for suffix in SUFFIXES:
            write_document(tmp_path, "state", [torch.ones(1)], suffix)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o666 & ~mask}


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("write", [lambda x, p: torch.save(x, p), lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, write):
    mark = tmp_path / "executed"
    write({"a": torch.ones(1), "b": Malicious(mark)}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x\.ckpt' is refused.*nothing of it was run"):
        read_tensors(tmp_path / "x.ckpt")
    assert not mark.exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], {1: torch.ones(1)}, {"a": 1}, torch.ones(1), "text"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="does not hold tensors by name"):
        read_tensors(tmp_path / "x.ckpt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_at_any_place_is_refused(tmp_path, suffix):
    whole, cut = tmp_path / f"x{suffix}", tmp_path / f"y{suffix}"
    write_tensors(whole, {"a": torch.ones(20)})
    data = whole.read_bytes()
    for length in range(0, len(data), 7):
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=rf"y\{suffix}' is (refused|damaged)"):
            read_tensors(cut)


def header(text):
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"\xff" * 100,
            header(b"{"),
            header(b"\xff\xfe"),
            header(b"[]"),
            struct.pack("<Q", 2**60),
            header(b'{"a":1}'),
        ),
        header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}') + b"1234",
        header(b'{"__metadata__":{"dtypes":"x"},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}') + b"1234",
        header(
            b'{"__metadata__":{"dtypes":"{\\"a\\":[\\"q\\",[1]]}"},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
        )
        + b"1234",
        header(b'{"__metadata__":{"dtypes":"[]"},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}') + b"1234",
    ],
)
def test_a_damaged_safetensors_file_is_refused(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.safetensors' is damaged or cut short: ."):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is damaged or cut short"),
        (b'{"format": 1, "sta', "is damaged or cut short"),
        (b"\xff\xfe{}", "is damaged or cut short"),
        (b"[" * 100_000, "is damaged or cut short"),
        (b"[1]", "is no state of a checkpoint"),
        (b'{"a": 1}', "is no state of a checkpoint"),
        (b'{"format": 99, "state": 1}', "is of format 99, and this version reads 1"),
        (b'{"format": 1, "state": {"$": "os.system", "v": "true"}}', "unknown kind 'os.system'"),
        (b'{"format": 1, "state": {"$": "tensor", "v": "a"}}', "no tensor 'a'"),
        (b'{"format": 1, "state": 1, "tensors": "../x.safetensors"}', "none of this checkpoint"),
        (b'{"format": 1, "state": 1, "tensors": ["x"]}', "none of this checkpoint"),
        (b'{"format": 1, "state": 1, "tensors": "state.ckpt"}', r"no file '.*state\.ckpt'"),
    ],
)
def test_a_damaged_document_is_refused(tmp_path, data, reason):
    (tmp_path / "state.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"state\.json' .*{reason}|{reason}"):
        read_document(tmp_path, "state")


def test_what_is_not_there_is_said(tmp_path):
    for read in (lambda: read_document(tmp_path, "state"), lambda: read_tensors(tmp_path / "state.ckpt")):
        with pytest.raises(CheckpointError, match=r"no file '.*state\.(json|ckpt)'"):
            read()
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No such file"):
        write_document(tmp_path / "nowhere", "state", [torch.ones(1)])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_said(tmp_path, suffix):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(CheckpointError, match=rf"state\{suffix}' cannot be written: ."):
            write_document(tmp_path, "state", [torch.ones(1 << 20)], suffix)
        with pytest.raises(CheckpointError, match=r"state\.json' cannot be written: .*File too large"):
            write_document(tmp_path, "state", "x" * (2 << 20), suffix)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_digest(tmp_path):
    data = b"abc" * 3 * 10**6  # of several pieces
    (tmp_path / "x").write_bytes(data)
    assert digest(tmp_path / "x") == (len(data), hashlib.sha256(data).hexdigest())
    (tmp_path / "x").write_bytes(b"")
    assert digest(tmp_path / "x") == (0, hashlib.sha256().hexdigest())


def test_a_loop_beside_the_writing_goes_on(tmp_path):
    """Neither writing nor hashing keeps the interpreter: turned into bytes first, few turns would fit in."""
    path, tensors = tmp_path / "x.safetensors", {str(i): torch.ones(1 << 23) for i in range(2)}
    thread = threading.Thread(target=lambda: (write_tensors(path, tensors), digest(path)))
    turns = 0
    thread.start()
    while thread.is_alive():
        turns += 1
        sum(range(1000))
    assert turns > 100
