"""Run a script undisturbed, then again from each of its checkpoints, and compare everything to the bit."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.helpers import mlp, sgd
from zae_engine.checkpoint.folder import committed
from zae_engine.logs.history_file import read_history
from zae_engine.trainer import Trainer
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.data.plan import named
from zae_engine.trainer.data.random_streams import generators_of

_CLOCKED = ("seconds", "saving", "time")


class Drawing(Trainer):
    """Draws from every stream at every step, and logs what it drew, so that a stream that is off shows at once."""

    def train_step(self, batch):
        x, y = batch[:2]
        out = self.model(x)
        drawn = torch.rand(()).item() + random.random() + np.random.random_sample()
        return {"loss": nn.functional.cross_entropy(out.float(), y), "drawn": drawn, "output": out.detach()}

    test_step = train_step

    def metric_on_epoch_end(self):
        log = self.log_train if self.mode == "train" else self.log_test
        return {"sum": sum(o.double().sum().item() for o in log["output"])}


def build(
    folder: Path,
    kind: type[Trainer] = Drawing,
    model: Callable[[], nn.Module] = lambda: mlp(0.3),
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    scheduler: Callable[[Any], Any] | None = None,
    add_ons: Sequence[type] = (StateManagerAddon,),
    **options: Any,
) -> Trainer:
    """A trainer with everything fresh, which saves after every step of a new run, and rarely in one that goes on."""
    module = model()
    stepping = optimizer(module)
    steps = scheduler(stepping) if scheduler else None
    if StateManagerAddon in add_ons:
        every = "100st" if (folder / "checkpoints").is_dir() else "1st"
        options = {"save_path": folder, "save_every": every, "keep_last": None} | options
    options = {"device": "cpu", "log_bar": False, "seed": 5} | options
    return kind.add_on(*add_ons)(module, optimizer=stepping, scheduler=steps, **options)


def outcome(trainer: Any) -> dict[str, Any]:
    """All that a run leaves, but for clocks."""
    sets = [trainer.loader, *named(trainer.valid_loader).values()]
    return {
        "weights": dict(trainer.model.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict() if trainer.scheduler is not None else None,
        "rows": [_timeless(row) for row in trainer.history.rows],
        "losses": [trainer.get_loss_history(mode) for mode in ("train", "test")],
        "metrics": [dict(trainer.train_metrics), dict(trainer.test_metrics)],
        "log": {key: list(trainer.log_train[key]) for key in trainer.log_train},
        "best": [trainer.loss_buffer, dict(trainer.weight_buffer)],
        "stack": trainer.state_dict(),
        "stop": trainer.stop_reason,
        "generators": [g.get_state() for each in sets for g in generators_of(each)],
    }


def _timeless(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in _CLOCKED}


def lines_of(folder: Path) -> tuple[list[Any], dict[int, Any]]:
    """The lines of the steps that hold, in order, and of each row the last one."""
    lines = [_timeless(line) for line in read_history(folder)]
    rows = {line["number"]: line for line in lines if line["kind"] == "row"}
    return [line for line in lines if line["kind"] == "step"], rows


def first_difference(one: Any, other: Any, where: str = "") -> str | None:
    """Where two nests differ, in a bit or a type, and how; None when they do not."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))
        return None if same else f"{where}: {one} and {other}"
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return f"{where}: keys {list(one)} and {list(other)}"
        return next(filter(None, (first_difference(one[k], other[k], f"{where}/{k}") for k in one)), None)
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        if len(one) != len(other):
            return f"{where}: {len(one)} and {len(other)} entries"
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (first_difference(a, b, f"{where}/{i}") for i, (a, b) in pairs)), None)
    same = type(one) is type(other) and (one == other or repr(one) == repr(other))
    return None if same else f"{where}: {one!r} and {other!r}"


def _bits(tensor: Tensor) -> Tensor:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def broken_off(folder: Path, checkpoint: Any, into: Path) -> Path:
    """A run's folder as it was when a checkpoint had been committed, and a little more of its history."""
    (into / "checkpoints").mkdir(parents=True)
    wanted = {checkpoint.serial, *checkpoint.manifest.get("refers_to", ())}
    for each in committed(folder / "checkpoints"):
        if each.serial in wanted:
            shutil.copytree(each.path, into / "checkpoints" / each.path.name, copy_function=os.link)
    for name in ("history.jsonl", "run.json"):
        shutil.copy(folder / name, into / name)
    return into


def assert_resumes(tmp_path: Path, script: Callable[[Path], Any], which: str = "all") -> int:
    """Run a script that ends with its trainer; then again from its checkpoints, of which it returns the number.

    Parameters
    ----------
    which : {'all', 'some'}
        From all of them, or from every fourth and the last two.
    """
    whole = tmp_path / "whole"
    wanted = outcome(script(whole))
    lines, checkpoints = lines_of(whole), committed(whole / "checkpoints")
    for number, checkpoint in enumerate(checkpoints):
        if which == "some" and number % 4 != 1 and number < len(checkpoints) - 2:
            continue
        again = broken_off(whole, checkpoint, tmp_path / f"from-{checkpoint.serial}")
        got = outcome(script(again))
        ended = checkpoint.manifest["complete"] and not got["log"]  # nothing was left to do in the last epoch
        difference = first_difference(wanted | {"log": {}} if ended else wanted, got)
        assert difference is None, f"from {checkpoint.path.name}: {difference}"
        difference = first_difference(lines, lines_of(again))
        assert difference is None, f"history.jsonl, from {checkpoint.path.name}: {difference}"
        shutil.rmtree(again)
    return len(checkpoints)
