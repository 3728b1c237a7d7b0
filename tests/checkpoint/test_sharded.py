"""Spread models on real processes: what was saved on some processes is loaded, to the bit, on any other number."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.checkpoint import sharded_worker as worker
from tests.nurse import Nursery
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.sharded import load_sharded, save_sharded, take_shards, whole_model
from zae_engine.checkpoint.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("starts_processes")

KINDS = ("adamw", "sgd", "tensor-lr", "copies")


def start(nursery: Nursery, folder: Path, world: int, *cases: str) -> None:
    """Run cases on so many processes, and end all of them when one fails."""
    module = "-m", "tests.checkpoint.sharded_worker", folder
    started = [nursery.begin(*module, rank, world, *cases) for rank in range(world)]
    try:
        done = [process.wait(120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [one.returncode for one in done] == [0] * world, "\n".join(one.stderr for one in done)[-4000:]


@pytest.fixture(scope="module")
def folder(nursery, tmp_path_factory) -> Path:
    """Saved on two processes, and on this one without spreading; loaded on two and on three."""
    folder = tmp_path_factory.mktemp("sharded")
    torch.save(worker.save(folder, "plain"), folder / "save-plain-1.0.pt")
    saves, loads = [f"save:{kind}" for kind in KINDS], [f"load:{kind}" for kind in (*KINDS, "plain")]
    start(nursery, folder, 2, *saves, *loads, "gather:adamw", "refuse:sgd")
    start(nursery, folder, 3, *loads)
    return folder


def found(folder: Path, case: str, kind: str, world: int) -> list[dict]:
    return [torch.load(folder / f"{case}-{kind}-{world}.{rank}.pt", weights_only=False) for rank in range(world)]


def differences(one, other, where: str = "") -> list[str]:
    """Where two nests are not equal to the bit, with the same types and dtypes."""
    if type(one) is not type(other):
        return [f"{where}: {type(one)} {type(other)}"]
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [f"{where}: {one} {other}"]
    if isinstance(one, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        return [
            found for i, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f"{where}/{i}")
        ]
    return [] if one == other else [f"{where}: {one} {other}"]


def same(one, other) -> bool:
    return not differences(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_as_if_it_had_not_stopped(folder, kind):
    for before, after in zip(found(folder, "save", kind, 2), found(folder, "load", kind, 2), strict=True):
        assert same(after["loaded"], before["saved"])
        assert same(after["resumed"], before["straight"])
        assert not same(before["straight"], before["saved"])  # the steps in between did something


@pytest.mark.parametrize("kind", [*KINDS, "plain"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_whole_state_is_the_same_on_any_number_of_processes(folder, kind, world):
    saved = found(folder, "save", kind, 1 if kind == "plain" else 2)[0]["saved"]
    loaded = [worker.load(folder, kind)] if world == 1 else found(folder, "load", kind, world)
    assert not [found for each in loaded for found in differences(each["loaded"], saved)]
    assert saved["model"]["_extra_state"]["calls"] == worker.STEPS
    assert "unused.weight" not in saved["state"]
    assert saved["state"]["low.weight"][("momentum_buffer" if kind == "sgd" else "exp_avg")].dtype == torch.bfloat16


def test_each_process_writes_its_part_once(folder):
    names = [each["names"] for each in found(folder, "save", "adamw", 2)]
    assert names == [["sharded/process-0.safetensors", "sharded/values.json"], ["sharded/process-1.safetensors"]]
    whole = sum(v.numel() * v.element_size() for v in take_shards(*worker.build("sgd")).tensors.values())
    for kind in ("adamw", "copies"):  # of copies, the first process writes all
        sizes = [(folder / kind / name).stat().st_size for name in ("sharded/process-0.safetensors", names[1][0])]
        assert (min(sizes) > whole) == (kind == "adamw")


def test_files_are_readable_as_others_are(folder):
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in (folder / "adamw/sharded").iterdir()} == {0o666 & ~mask}


def test_the_whole_model_is_on_the_first_process_only(folder):
    first, second = found(folder, "gather", "adamw", 2)
    assert second["whole"] is None
    model = worker.Odd()
    assert same({k: v for k, v in first["whole"].items() if k != "_extra_state"}, plain_state(model))
    assert first["whole"]["tied.weight"].data_ptr() == first["whole"]["wide.weight"].data_ptr()


def plain_state(model: nn.Module) -> dict:
    return {key: value for key, value in model.state_dict().items() if key != "_extra_state"}


def test_a_whole_model_is_a_copy():
    model = nn.Linear(2, 2)
    whole = whole_model(model)
    with torch.no_grad():
        model.weight.zero_()
    assert whole["weight"].abs().sum() > 0


def test_copies_can_be_written_while_training_goes_on(tmp_path):
    model, optimizer = worker.build("adamw")
    worker.train(model, optimizer, 0, 1)
    shards, before = take_shards(model, optimizer), worker.whole(model, optimizer)
    shards.tensors = Snapshot().take(shards.tensors)
    worker.train(model, optimizer, 1, 2)
    shards.write(tmp_path)
    load_sharded(tmp_path, model, optimizer)
    assert same(worker.whole(model, optimizer), before)


def test_states_that_cannot_be_put_together_are_refused(folder):
    for each in found(folder, "refuse", "sgd", 2):
        assert "the optimizer's 'rows' of 'wide.weight' has shape (2,)" in each["said"]


@pytest.fixture
def saved(tmp_path) -> Path:
    """A state of one process."""
    model, optimizer = worker.build("adamw")
    worker.train(model, optimizer, 0, 1)
    save_sharded(tmp_path, model, optimizer)
    return tmp_path


def refused(saved: Path, match: str, model=None, optimizer=None) -> None:
    """The load raises, and has changed neither the model nor the optimizer."""
    fresh = worker.build("adamw", seed=1)
    model, optimizer = model or fresh[0], optimizer or fresh[1]
    before = worker.whole(model, optimizer)
    with pytest.raises(CheckpointError, match=match):
        load_sharded(saved, model, optimizer)
    assert same(worker.whole(model, optimizer), before)


def test_another_model_is_refused(saved):
    other = worker.Odd()
    other.more = nn.Linear(2, 2)
    refused(saved, r"another model than this Odd; missing: more\.weight, more\.bias$", other, adamw(other))
    del other.more, other.unused
    refused(saved, r"unexpected: unused\.weight, unused\.bias$", other, adamw(other))
    other.unused = nn.Linear(2, 3)
    refused(saved, r"another shape or dtype: unused\.weight \(2, 2\) torch\.float32 for \(3, 2\)", other, adamw(other))
    other = worker.Odd().double()
    refused(saved, r"wide\.weight \(5, 3\) torch\.float32 for \(5, 3\) torch\.float64", other, adamw(other))


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def test_another_optimizer_is_refused(saved):
    model, optimizer = worker.build("sgd", seed=1)
    refused(saved, "is of the optimizer AdamW, and this one is SGD", model, optimizer)
    refused(saved, "has 2 groups of parameters, and this one 1", model, adamw(model))
    groups = [{"params": list(model.low.parameters())}, {"params": list(model.one.parameters())}]
    refused(saved, r"group 0 .* other parameters; 'low\.bias' is in this optimizer's only", model, adamw_of(groups))


def adamw_of(groups: list) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=0.01)


def test_the_model_can_be_loaded_without_its_optimizer_but_not_the_other_way(saved, tmp_path):
    model, optimizer = worker.build("adamw", seed=1)
    load_sharded(saved, model)
    assert not optimizer.state
    save_sharded(tmp_path / "weights", model)
    refused(tmp_path / "weights", "has no state of an optimizer")


def test_the_order_of_parameters_in_a_group_may_change(saved):
    model, optimizer = worker.build("adamw", seed=1)
    for group in optimizer.param_groups:
        group["params"].reverse()
    load_sharded(saved, model, optimizer)
    wanted = worker.build("adamw")
    worker.train(*wanted, 0, 1)
    assert same(worker.whole(model, optimizer)["state"], worker.whole(*wanted)["state"])


def test_states_keep_their_dtype_where_torch_would_cast_them(tmp_path):
    model = nn.Linear(2, 2).to(torch.bfloat16)
    optimizer = adamw(model)
    model(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    optimizer.state[model.weight]["exp_avg"] = torch.full((2, 2), 1 / 3)
    save_sharded(tmp_path, model, optimizer)
    fresh = nn.Linear(2, 2).to(torch.bfloat16)
    other = adamw(fresh)
    load_sharded(tmp_path, fresh, other)
    assert same(other.state[fresh.weight], optimizer.state[model.weight])


def test_parameters_outside_of_the_model_keep_their_state(tmp_path):
    model, scale = nn.Linear(2, 2), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*model.parameters(), scale], lr=0.1, momentum=0.9)
    (model(torch.ones(1, 2)).sum() * scale.sum()).backward()
    optimizer.step()
    save_sharded(tmp_path, model, optimizer)
    other = torch.optim.SGD([*model.parameters(), scale], lr=0.1, momentum=0.9)
    load_sharded(tmp_path, model, other)
    assert same(other.state[scale], optimizer.state[scale])


def test_files_that_are_missing_or_damaged_are_refused(folder, tmp_path):
    part, values = tmp_path / "sharded/process-1.safetensors", tmp_path / "sharded/values.json"
    refused(tmp_path, r"no file '.*values\.json'")
    (tmp_path / "sharded").mkdir()
    for path in (folder / "adamw/sharded").iterdir():
        (tmp_path / "sharded" / path.name).write_bytes(path.read_bytes())
    content = part.read_bytes()
    part.unlink()
    refused(tmp_path, "holds 1 parts, which say that there are 2")
    for wrong in (b"", content[:-1], content[: len(content) // 3], b"\xff" * 100):
        part.write_bytes(wrong)
        refused(tmp_path, r"process-1\.safetensors' is damaged")
    part.write_bytes((folder / "sgd/sharded/process-1.safetensors").read_bytes())
    refused(tmp_path, "the parts of '.*' in .* do not make up one tensor")
    part.write_bytes(content)
    for wrong in ("", "[]", '{"model": {}}', values.read_text()[:-9]):
        values.write_text(wrong)
        refused(tmp_path, r"values\.json'")


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["process-0.safetensors", "values.json", ".metadata"])
def test_no_pickle_is_executed(saved, tmp_path, name):
    trace = tmp_path / "trace"
    (saved / "sharded" / name).write_bytes(pickle.dumps(Trap(trace)))
    if name == ".metadata":  # the index that torch's own sharded checkpoints have
        load_sharded(saved, *worker.build("adamw"))
    else:
        refused(saved, "damaged")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap(trace)))
    assert trace.exists()


EMPTY = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from zae_engine.checkpoint.sharded_pieces import local_piece

torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
tensor, piece = local_piece(distribute_tensor(torch.empty(0, 3), mesh, [Shard(0)]), 0)
assert (tuple(tensor.shape), piece.shape) == ((0, 3), (0, 3))
torch.distributed.destroy_process_group()
"""


def test_a_spread_tensor_without_elements_is_written_too(nursery, tmp_path):
    (tmp_path / "script.py").write_text(EMPTY)
    done = nursery.run(tmp_path / "script.py")
    assert done.returncode == 0, done.stderr
