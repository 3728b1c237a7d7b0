"""Train with DeepSpeed in this process, and save or load: python -m tests.checkpoint.deepspeed_worker FOLDER CASE"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from zae_engine.checkpoint.deepspeed import load_engine, save_engine
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.sharded import whole_model

STEPS = 3


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def build(seed: int):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    accelerator = Accelerator()
    accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    engine, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    return accelerator, model, engine


def train(accelerator, engine, start: int, stop: int) -> None:
    for step in range(start, stop):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        x = x.to(engine.device, next(engine.module.parameters()).dtype)
        accelerator.backward(engine(x).float().square().mean())


def save(folder: Path) -> dict:
    accelerator, model, engine = build(0)
    train(accelerator, engine, 0, STEPS)
    names = save_engine(folder, engine)
    saved = whole_model(model)
    train(accelerator, engine, STEPS, 2 * STEPS)
    return {"names": names, "saved": saved, "straight": whole_model(model)}


def load(folder: Path) -> dict:
    accelerator, model, engine = build(1)
    load_engine(folder, engine)
    loaded = whole_model(model)
    train(accelerator, engine, STEPS, 2 * STEPS)
    return {"loaded": loaded, "resumed": whole_model(model)}


def refuse(folder: Path) -> dict:
    """Each file in turn is replaced: by a pickle that runs something, by a part of itself, by another number's."""
    _, model, engine = build(1)
    before, said = whole_model(model), {}
    for path in sorted(folder.rglob("*.pt")):
        content = path.read_bytes()
        kept = torch.load(path, weights_only=False)
        for kind, wrong in {"trap": Trap(folder / "trace"), "in": {**kept, "more": Trap(folder / "trace")}}.items():
            torch.save(wrong, path)
            said[f"{kind} {path.name}"] = refusal(folder, engine)
        path.write_bytes(pickle.dumps(Trap(folder / "trace")))
        said[f"plain {path.name}"] = refusal(folder, engine)
        path.write_bytes(content[: len(content) // 2])
        said[f"half {path.name}"] = refusal(folder, engine)
        if "model_states" in path.name:
            torch.save({**kept, "dp_world_size": 2}, path)
            said["processes"] = refusal(folder, engine)
        path.write_bytes(content)
    return {"said": said, "before": before, "after": whole_model(model), "trace": (folder / "trace").exists()}


def refusal(folder: Path, engine) -> str:
    try:
        load_engine(folder, engine)
    except CheckpointError as error:
        return str(error)
    return "nothing"


CASES = {"save": save, "load": load, "refuse": refuse}

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, case = Path(sys.argv[1]), sys.argv[2]
    torch.save(CASES[case](folder), folder / f"{case}.found")
