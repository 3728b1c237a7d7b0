"""Train, save and load spread models in this process: FOLDER RANK WORLD CASE:KIND…"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.sharded import load_sharded, save_sharded, whole_model

STEPS = 3


class Odd(nn.Module):
    """Dimensions that two and three processes cannot share evenly, tied and unused parameters, buffers, bfloat16."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.wide = nn.Linear(3, 5)
        self.tied = nn.Linear(3, 5)
        self.tied.weight = self.wide.weight
        self.one = nn.Linear(5, 1)
        self.unused = nn.Linear(2, 2)
        self.low = nn.Linear(5, 2).to(torch.bfloat16)
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("gone", torch.tensor(1.0), persistent=False)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        hidden = torch.tanh(self.wide(x) + self.tied(x))
        return self.one(hidden).mean() + self.low(hidden.to(torch.bfloat16)).float().square().mean()

    def get_extra_state(self):
        return {"calls": self.calls, "times": (self.calls, torch.arange(self.calls))}

    def set_extra_state(self, state):
        self.calls = state["calls"]
        assert state["times"][0] == len(state["times"][1]) == self.calls


def build(kind: str, seed: int = 0):
    """Model and optimizer; spread over the processes, if there are several."""
    model = Odd(seed)
    if torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("copies", "parts"))
        mesh = mesh if kind == "copies" else init_device_mesh("cpu", (world,))
        fully_shard(model.low, mesh=mesh)
        fully_shard(model, mesh=mesh)
    named = dict(model.named_parameters())
    first = [p for name, p in named.items() if name.startswith("wide")]
    groups = [{"params": first, "lr": 0.02}, {"params": [p for p in named.values() if not any(p is q for q in first)]}]
    if kind == "sgd":
        return model, torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    return model, torch.optim.AdamW(groups, lr=torch.tensor(0.01) if kind == "tensor-lr" else 0.01, foreach=False)


def train(model, optimizer, start: int, stop: int) -> None:
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=generator)).backward()
        optimizer.step()


def whole(model, optimizer) -> dict:
    """All that is compared, put together from the processes."""
    names = {id(p): name for name, p in model.named_parameters()}
    states = {names[id(p)]: entries for p, entries in optimizer.state.items()}
    model_state = {k: put(v) for k, v in model.state_dict().items()}
    groups = [{k: put(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    state = {name: {k: put(v) for k, v in entries.items()} for name, entries in states.items()}
    return {"model": model_state, "state": state, "groups": groups}


def put(value):
    value = value.full_tensor() if hasattr(value, "full_tensor") else value
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def save(folder: Path, kind: str) -> dict:
    model, optimizer = build(kind)
    train(model, optimizer, 0, STEPS)
    names = save_sharded(folder / kind, model, optimizer)
    saved = whole(model, optimizer)
    train(model, optimizer, STEPS, 2 * STEPS)
    return {"names": names, "saved": saved, "straight": whole(model, optimizer)}


def load(folder: Path, kind: str) -> dict:
    model, optimizer = build(kind, seed=1)
    load_sharded(folder / kind, model, optimizer)
    loaded = whole(model, optimizer)
    train(model, optimizer, STEPS, 2 * STEPS)
    return {"loaded": loaded, "resumed": whole(model, optimizer)}


def gather(folder: Path, kind: str) -> dict:
    """The whole model, also right after a forward without a backward, which leaves FSDP2's parameters whole."""
    model, _ = build(kind)
    with torch.no_grad():
        model(torch.ones(4, 3))
    return {"whole": whole_model(model)}


def refuse(folder: Path, kind: str) -> dict:
    """What is said of optimizers whose states cannot be put together."""
    model, optimizer = build("sgd")
    spread = next(model.parameters())
    optimizer.state[spread]["rows"] = torch.ones(2)
    before = whole_model(model)
    try:
        save_sharded(folder / "refused", model, optimizer)
    except CheckpointError as error:
        return {"said": str(error), "before": before}
    return {"said": ""}


CASES = {"save": save, "load": load, "gather": gather, "refuse": refuse}


def main(folder: str, rank: int, world: int, *names: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("error", module="zae_engine")
    torch.distributed.init_process_group("gloo", f"file://{folder}/store-{world}", rank=rank, world_size=world)
    for name in names:
        case, kind = name.split(":")
        torch.save(CASES[case](Path(folder), kind), f"{folder}/{case}-{kind}-{world}.{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
