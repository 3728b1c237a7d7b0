"""A training that is hard to go on with, and what may befall it; importable by whatever starts it."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from zae_engine.trainer import Trainer
from zae_engine.trainer.addons import EarlyStoppingAddon, StateManagerAddon

RANK = "RANK"
SETUP = {
    "samples": 64,
    "batch_size": 8,
    "epochs": 4,
    "workers": 0,
    "width": 32,
    "dropout": 0.3,
    "norm": True,
    "schedule": "batch",
    "patience": 3,
    "valid": 24,
    "valid_every": "5st",
    "save_every": "2st",
    "accumulation": 2,
    "pause": 0.0,  # seconds a step takes longer
}
FACES = ("samples", "batch_size", "epochs", "workers", "width", "dropout", "norm", "schedule", "valid", "valid_every",
         "accumulation", "pause")  # fmt: skip


class Augmented(Dataset):
    """Half of its labels are noise, so that a validation soon gets worse; each sample is drawn anew."""

    def __init__(self, samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(samples, 8, generator=generator)
        noise = torch.randn(samples, generator=generator)
        self.y = (self.x[:, :2].sum(1) + noise > 0).long()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + 0.1 * torch.randn(8), self.y[index]


class Recorded(Trainer):
    """Notes the learning rate of every step, and lets happen what the test wants to happen."""

    mishaps: tuple[dict, ...] = ()
    folder = Path()
    pause = 0.0

    def run_epoch(self, loader, **kwargs):
        if self.mode == "train":
            self._befall("epoch")
        super().run_epoch(loader, **kwargs)

    def train_step(self, batch):
        self._befall("train")
        time.sleep(self.pause)
        x, y = batch
        out = self.model(x)
        rate = self.optimizer.param_groups[0]["lr"]
        return {"loss": nn.functional.cross_entropy(out, y), "acc": (out.argmax(1) == y).float().mean(), "lr": rate}

    def test_step(self, batch):
        self._befall("test")
        x, y = batch
        out = self.model(x)
        return {"loss": nn.functional.cross_entropy(out, y), "acc": (out.argmax(1) == y).float().mean()}

    def _befall(self, where: str) -> None:
        step, rank = self.progress_checker.get_step(), int(os.environ.get(RANK, "0"))
        _say(self.folder, rank, where, step)
        for mishap in self.mishaps:
            here = mishap.get("at", "train") == where and step >= mishap["step"] and mishap.get("rank", rank) == rank
            if here and mishap.get("skips", 0) > 0:
                mishap["skips"] -= 1
            elif here and not mishap.get("done") and _seen(mishap, self.save_path):
                mishap["done"] = True
                HAPPEN[mishap["do"]](self, mishap)


def _say(folder: Path, rank: int, where: str, step: int) -> None:
    """Where this process is, for those who look from outside."""
    file = os.open(folder / f"where-{rank}", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(file, f"{where} {step} {os.getpid()}".ljust(40).encode())  # at once, as it is read meanwhile
    os.close(file)


def _seen(mishap: dict, save_path: Path) -> bool:
    """Whether a checkpoint is being written, if the mishap waits for that."""
    return not mishap.get("saving") or any(save_path.glob("checkpoints/.*.partial"))


def _signal(trainer: Recorded, mishap: dict) -> None:
    for name in mishap["signals"]:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(mishap.get("between", 0.0))


def _stop(trainer: Recorded, mishap: dict) -> None:
    trainer.stop("enough")
    _signal(trainer, mishap)


def _raise(trainer: Recorded, mishap: dict) -> None:
    raise ArithmeticError("the user's own mistake")


def _fill(trainer: Recorded, mishap: dict) -> None:
    """No file may become larger than this: what a full disk does, to one process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (mishap["bytes"], resource.RLIM_INFINITY))


def _empty(trainer: Recorded, mishap: dict) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _wait(trainer: Recorded, mishap: dict) -> None:
    time.sleep(mishap["seconds"])


HAPPEN = {"signal": _signal, "stop": _stop, "raise": _raise, "fill": _fill, "empty": _empty, "wait": _wait}


def model(setup: dict) -> nn.Sequential:
    torch.manual_seed(0)
    width = setup["width"]
    norm = [nn.BatchNorm1d(width)] if setup["norm"] else []
    return nn.Sequential(nn.Linear(8, width), *norm, nn.ReLU(), nn.Dropout(setup["dropout"]), nn.Linear(width, 2))


def scheduler(optimizer: torch.optim.Optimizer, setup: dict):
    if setup["schedule"] == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)


def build(folder: str, setup: dict, network: nn.Module | None = None) -> Trainer:
    """The trainer; what is no part of the problem are options of its own."""
    network = model(setup) if network is None else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-2)
    own = {k: v for k, v in setup.items() if k not in FACES and k not in ("options", "spread")}
    options = {
        "gradient_accumulation_steps": setup["accumulation"],
        "gradient_clip": 0.5,
        "scheduler_step_on_batch": setup["schedule"] == "batch",
        "log_bar": False,
        "seed": 3,
        **own,
    }
    cls = Recorded.add_on(EarlyStoppingAddon, StateManagerAddon)
    parts = {"optimizer": optimizer, "scheduler": scheduler(optimizer, setup)}
    return cls(network, "cpu", **parts, save_path=os.path.join(folder, "run"), **options)


def spread(setup: dict) -> nn.Module:
    """The model by torch's fully_shard, on as many processes as there are."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = int(os.environ.get("WORLD_SIZE", "1"))
    network = model(setup)
    Recorded(nn.Linear(1, 1), "cpu", mode="test", log_bar=False)  # makes the process group
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        fully_shard(network[0], mesh=mesh)
        fully_shard(network, mesh=mesh)
    return network


def train(folder: str, setup: dict, mishaps: list[dict]) -> None:
    """The command: train, and keep what came out of it."""
    rank = int(os.environ.get(RANK, "0"))
    _say(Path(folder), rank, "start", 0)
    trainer = build(folder, setup, spread(setup) if setup.get("spread") else None)
    trainer.folder, trainer.pause, trainer.mishaps = Path(folder), setup["pause"], tuple(mishaps)
    batches = DataLoader(
        Augmented(setup["samples"], 1), setup["batch_size"], shuffle=True, num_workers=setup["workers"]
    )
    held_out = DataLoader(Augmented(setup["valid"], 2), setup["batch_size"])
    limits = {"valid_every": setup["valid_every"], **setup.get("options", {})}
    epochs = setup["epochs"] or None
    trainer.run(epochs, batches, held_out, resume="auto", **limits)
    torch.save(found(trainer), os.path.join(folder, f"outcome-{rank}.pt"))
    _say(Path(folder), rank, "done", trainer.progress_checker.get_step())


def found(trainer: Trainer) -> dict:
    """What has to be the same, however often the run was killed."""
    state = trainer.optimizer.state_dict()["state"]
    return {
        "weights": {k: _whole(v) for k, v in trainer.model.state_dict().items()},
        "moments": {f"{n}.{k}": _whole(v) for n, moments in state.items() for k, v in moments.items()},
        "best": {k: _whole(v) for k, v in (trainer.weight_buffer["weight"] or [{}])[-1].items()},
        "best_epoch": list(trainer.weight_buffer["epoch"]),
        "rows": [{k: v for k, v in row.items() if k not in ("seconds", "saving")} for row in trainer.history.rows],
        "losses": trainer.log_train.losses.values.tolist(),
        "tested": trainer.log_test.losses.values.tolist(),
        "rate": trainer.optimizer.param_groups[0]["lr"],
        "position": [trainer.progress_checker.get_epoch(), trainer.progress_checker.get_step()],
    }


def _whole(value: Tensor) -> Tensor:
    whole = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole.detach().clone()


def main(folder: str, setup: str = "{}", mishaps: str = "[]") -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("default")
    train(folder, SETUP | json.loads(setup), json.loads(mishaps))


if __name__ == "__main__":
    main(*sys.argv[1:])
