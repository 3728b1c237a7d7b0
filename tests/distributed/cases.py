"""What is trained on each number of processes. A case returns what every process has to agree on, or tells itself."""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from accelerate import DistributedDataParallelKwargs
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from tests.averaging import Averaged, whole
from tests.distributed import problem
from tests.distributed.problem import Digits, Weighted, digits, loader, trainer_for
from tests.trainer import test_several_optimizers as taking_turns
from tests.written_before.comparing import goes_on, on
from zae_engine import Trainer
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.trainer import read_history
from zae_engine.trainer.addons import CSVLoggerAddon, StateManagerAddon

RANK = int(os.environ.get("RANK", "0"))
F64 = torch.float64

TABLE = [
    f"{kind}-{number}-{optimizer}-{parts}"
    for kind in ("mlp", "ln")
    for number, optimizer in (("f32", "sgd"), ("f64", "sgd"), ("f64", "adamw"))
    for parts in (1, 2, 4)
]


def train(batches, held_out=None, kind: str = "mlp", valid_every: str = "1ep", **options) -> dict:
    trainer = trainer_for(kind, **options)
    trainer.run(problem.EPOCHS, batches, held_out, valid_every=valid_every)
    return {"weights": problem.weights(trainer.model), "seen": trainer.seen, "rows": trainer.history.rows}


def table(name: str) -> dict:
    kind, number, optimizer, parts = name.split("-")
    dtype = torch.float32 if number == "f32" else F64
    held_out = loader(359, dtype, shuffle=False)
    options = {"kind": kind, "dtype": dtype, "optimizer": optimizer}
    return train(loader(1797, dtype), held_out=held_out, gradient_accumulation_steps=int(parts), **options)


# ---------------------------------------------------------------------- loaders


class Lazy(Sampler):
    """Draws from the global streams while it is walked, as many hand-written samplers do."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        for _ in range(self.size):
            kind = random.randrange(3)
            yield int(torch.randint(self.size, ())) if kind else int(np.random.randint(self.size))


class Own(Sampler):
    """Draws from a generator that nobody can set alike."""

    def __init__(self, size: int) -> None:
        self.size, self.random = size, np.random.default_rng()

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        return iter(self.random.permutation(self.size).tolist())


class Buckets(Sampler):
    """A batch sampler of its own, with batches of other sizes."""

    def __len__(self) -> int:
        return 4

    def __iter__(self):
        order = torch.randperm(100).tolist()
        return iter([order[:31], order[31:32], order[32:34], order[34:]])


class Stream(IterableDataset):
    """Shuffles and augments as it goes; shares itself out over workers, not over processes."""

    def __init__(self, samples: int = 203) -> None:
        self.data = digits(samples, F64)

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        start, step = (info.id, info.num_workers) if info else (0, 1)
        for i in range(start, len(self.data), step):
            x, y, n = self.data[i]
            yield x + 0.01 * torch.randn(64, dtype=F64), y, n


class ByRank(Stream):
    def __iter__(self):
        for i in range(RANK, len(self.data), int(os.environ.get("WORLD_SIZE", "1"))):
            yield self.data[i]


class Augmented(Dataset):
    """Draws from all three global generators."""

    def __init__(self, samples: int = 203) -> None:
        self.data = digits(samples, F64)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index):
        x, y, n = self.data[index]
        noise = torch.randn(64, dtype=F64) + random.random() + np.random.rand()
        return x + 0.1 * noise, y, n


class Batches(Dataset):
    """Its items are batches."""

    def __init__(self, samples: int = 203) -> None:
        self.data = Augmented(samples)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index):
        return torch.utils.data.default_collate([self.data[i] for i in range(index * 20, index * 20 + 13)])


def some(**settings) -> DataLoader:
    return loader(203, F64, **settings)


def with_sampler(sampler: Sampler) -> DataLoader:
    return some(shuffle=False, sampler=sampler)


def list_of_batches() -> list:
    return list(some(shuffle=False))


class Generated:
    """An iterable of batches without a length, which draws."""

    def __iter__(self):
        for x, y, n in some(shuffle=False):
            yield x + 0.01 * torch.randn_like(x), y, n


def per_rank_generator() -> DataLoader:
    return some(generator=torch.Generator().manual_seed(100 + RANK))


LOADERS: dict[str, Callable[[], object]] = {
    "shuffled": some,
    "in-order": partial(some, shuffle=False),
    "drop-last": partial(some, drop_last=True),
    "one-a-batch": lambda: loader(50, F64, batch_size=1),
    "two-a-batch": lambda: loader(101, F64, batch_size=2),
    "workers": partial(some, num_workers=2),
    "persistent": partial(some, num_workers=1, persistent_workers=True),
    "generator": lambda: some(generator=torch.Generator().manual_seed(3)),
    "generator-by-rank": per_rank_generator,
    "weighted-sampler": lambda: with_sampler(WeightedRandomSampler(torch.arange(203) + 1.0, 100)),
    "subset-sampler": lambda: with_sampler(SubsetRandomSampler(range(3, 80))),
    "replacement": lambda: with_sampler(RandomSampler(range(203), replacement=True, num_samples=77)),
    "lazy-sampler": lambda: with_sampler(Lazy(99)),
    "lazy-sampler-workers": lambda: some(shuffle=False, sampler=Lazy(99), num_workers=2),
    "batch-sampler": lambda: DataLoader(digits(203, F64), batch_sampler=Buckets()),
    "torch-batch-sampler": lambda: DataLoader(
        digits(203, F64), batch_sampler=BatchSampler(SequentialSampler(range(75)), 32, False)
    ),
    "augmented": lambda: DataLoader(Augmented(), batch_size=32, shuffle=True),
    "augmented-workers": lambda: DataLoader(Augmented(), batch_size=32, shuffle=True, num_workers=2),
    "no-batching": lambda: DataLoader(Batches(), batch_size=None, shuffle=True),
    "list": list_of_batches,
    "generated": Generated,
    "stream": lambda: DataLoader(Stream(), batch_size=32),
    "stream-workers": lambda: DataLoader(Stream(), batch_size=32, num_workers=2),
}


def by_loader(name: str, parts: int) -> dict:
    return train(LOADERS[name](), kind="dropout0", dtype=F64, gradient_accumulation_steps=parts)


def own_sampler() -> dict:
    """Not the same for every number of processes, nor from run to run, but each sample once, over all of them."""
    return train(with_sampler(Own(203)), dtype=F64)


def distributed_sampler() -> dict:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = train(with_sampler(DistributedSampler(range(203), world, RANK, seed=5)), dtype=F64)
    return {**found, "said": [str(w.message) for w in said]}


def per_process_batches(parts: int = 1) -> dict:
    """Two processes take two of the loader's batches a step; one process gets them joined."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batches = loader(203, F64, batch_size=32 // world if world < 3 else 32)
    return train(batches, dtype=F64, split_batches=False, gradient_accumulation_steps=parts)


class WithScales(Digits):
    """Each batch has the classes' scales beside its samples: as many as a piece of it has samples."""

    def train_step(self, batch):
        x, y, ids = batch["samples"]
        return {"loss": nn.functional.cross_entropy(self.model(x) * batch["scales"], y), "ids": ids}


def with_scales(rows) -> dict:
    scales = torch.linspace(0.5, 2.0, 10, dtype=F64)
    return {"scales": scales, "samples": [torch.stack(column) for column in zip(*rows, strict=True)]}


def constant(listed: bool, **options) -> dict:
    batches = DataLoader(digits(203, F64), batch_size=20, collate_fn=with_scales)
    return train(list(batches) if listed else batches, dtype=F64, trainer=WithScales, **options)


def weighted(parts: int, dtype: torch.dtype) -> dict:
    return train(loader(300, dtype), trainer=Weighted, dtype=dtype, gradient_accumulation_steps=parts)


def clipped() -> dict:
    options = {"gradient_clip": 0.5, "gradient_accumulation_steps": 3, "scheduler_step_on_batch": True}
    return train(loader(203, F64), dtype=F64, **options)


# ---------------------------------------------------------------------- shards


def sharded(kind: str, shards: int, trainer=Digits, data=None, **options) -> dict:
    options = {"shards": shards, "gradient_clip": 1.0} | options
    return train(data or loader(203), kind=kind, trainer=trainer, **options)


class Sometimes(nn.Module):
    """One layer is used by some shards only, one by none."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes, self.never = nn.Linear(64, 10), nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x):
        return self.always(x) + (self.sometimes(x) if x[0, 20] > 0.6 else 0)


def sharded_sometimes() -> dict:
    torch.manual_seed(0)
    network = Sometimes()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    trainer = Digits(network, "cpu", optimizer=optimizer, log_bar=False, seed=0, shards=4)
    trainer.run(2, loader(203))
    return {"weights": problem.weights(network), "seen": trainer.seen, "rows": trainer.history.rows}


# ---------------------------------------------------------------------- evaluation


class Sevens(Digits):
    """Seven samples whose mean loss is 13."""

    def test_step(self, batch):
        (x,) = batch
        return {"loss": x.mean(), "x": x, "half": x.mean() / 2, "names": [f"n{int(v)}" for v in x], "output": x}

    def metric_on_epoch_end(self):
        log = self.log_test if self.mode == "test" else self.log_train
        self.whole = torch.cat(log["x"]).tolist() if log["x"] else []
        self.names = [name for names in log["names"] for name in names]
        return {"n": len(self.whole), "first": self.whole[0] if self.whole else 0.0}


def evaluation(batch_size: int) -> dict:
    values = torch.tensor([1.0, 5.0, 20.0, 25.0, 30.0, 6.0, 4.0])
    trainer = trainer_for(trainer=Sevens, mode="test")
    data = DataLoader(TensorDataset(values), batch_size=batch_size, shuffle=True)
    history = trainer.run(loader=data)
    walked = [v.tolist() for v in trainer.inference(data)]
    keys = {"rows": history.rows, "whole": trainer.whole, "names": trainer.names, "inference": walked}
    return {**keys, "losses": trainer.get_loss_history("test")}


def metric_objects(sets: bool) -> dict:
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

    class_metrics = {"top": MulticlassAccuracy(10, average="micro"), "auc": MulticlassAUROC(10)}
    metrics = {**class_metrics, "all": MetricCollection([MulticlassAccuracy(10, average="macro")])}
    trainer = trainer_for(trainer=WithOutputs, metrics=metrics)
    held_out = {"many": loader(201, shuffle=False), "few": loader(2, shuffle=False)} if sets else loader(201)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No positive samples", UserWarning)
        warnings.filterwarnings("ignore", "Metric `MulticlassAUROC` will save all", UserWarning)
        trainer.run(2, loader(203), held_out)
    return {"weights": problem.weights(trainer.model), "rows": trainer.history.rows}


class WithOutputs(Digits):
    def train_step(self, batch):
        return self.test_step(batch)


def nested() -> dict:
    """The training set is a validation set, too, in the middle of its own epoch."""
    batches = loader(203, F64)
    held_out = {"train": batches, "other": loader(41, F64, shuffle=False)}
    return train(batches, held_out=held_out, valid_every="2st", dtype=F64)


def without_items(parts: int) -> dict:
    """Some batches have nothing that counts."""
    data = digits(300, F64)
    ordered = torch.utils.data.Subset(data, sorted(range(300), key=lambda i: int(data[i][1]) % 3 == 0))
    batches = DataLoader(ordered, batch_size=16)
    return train(batches, dtype=F64, trainer=Weighted, gradient_accumulation_steps=parts, on_nan="stop")


def one_model_is_evaluated() -> dict:
    """BatchNorm's statistics differ within an epoch; what is reported is of the model that is kept."""
    trainer = trainer_for("bn", dtype=F64)
    held_out = loader(100, F64, shuffle=False)
    trainer.run(1, loader(203, F64, drop_last=True), held_out)
    reported = trainer.history[-1]["test_loss"]
    network, (x, y, _) = trainer.model.eval(), held_out.dataset.tensors
    return {"reported": reported, "real": nn.functional.cross_entropy(network(x), y).item()}


# ---------------------------------------------------------------------- stopping, refusing


class Stopping(Digits):
    """One process asks for the end; or its clock, or a loss that is no number, does."""

    def logging(self, step_dict):
        super().logging(step_dict)
        time.sleep(0.01)
        if self.progress_checker.get_step() == 5 and self._place.processes.count - 1 == RANK:
            self.stop("enough")


def stopped_by_one() -> dict:
    trainer = trainer_for(trainer=Stopping)
    trainer.run(50, loader(203, batch_size=4))
    return {"steps": trainer.progress_checker.get_step(), "reason": trainer.stop_reason}


def stopped_by_clock() -> dict:
    trainer = trainer_for(trainer=Digits)
    trainer.run(max_time="1.5s", loader=loader(203, batch_size=4), valid_loader=loader(20), valid_every="0.4s")
    return {"steps": trainer.progress_checker.get_step(), "reason": trainer.stop_reason, "many": len(trainer.history)}


class Diverging(Digits):
    def train_step(self, batch):
        values = super().train_step(batch)
        bad = self.progress_checker.get_step() >= 5 and self._place.processes.count - 1 == RANK
        return {**values, "loss": values["loss"] * (float("nan") if bad else 1.0)}


def stopped_by_nan() -> dict:
    trainer = trainer_for(trainer=Diverging, on_nan="stop")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.run(5000, loader(203, batch_size=4))
    return {"reason": trainer.stop_reason[:12], "said": len(said) > 0}


def unused(handlers: list) -> dict:
    """A model of which some parameters have no part in the loss."""
    torch.manual_seed(0)
    network = Sometimes().to(F64)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    trainer = Digits(network, "cpu", optimizer=optimizer, log_bar=False, seed=0, kwargs_handlers=handlers)
    trainer.run(2, loader(60, F64, batch_size=1))
    return {"weights": problem.weights(network), "seen": trainer.seen, "rows": trainer.history.rows}


class OtherData(Augmented):
    """Not the same on every process."""

    def __getitem__(self, index):
        x, y, n = self.data[index]
        return x + RANK, y, n


class Sometimes0(Weighted):
    """Counts items in some of its steps only."""

    def train_step(self, batch):
        values = super().train_step(batch)
        if self.progress_checker.get_step() == 1:
            del values["num_items"]
        return values


def refused(kind: str) -> dict:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if kind == "prepared":
            trainer = trainer_for()
            trainer.run(1, trainer.accelerator.prepare(loader()))
        elif kind == "data":
            trainer_for(dtype=F64).run(1, DataLoader(OtherData(), batch_size=32))
        elif kind == "valid":
            trainer_for().run(1, loader(50), None if RANK else loader(50))
        elif kind == "counted":
            trainer_for(trainer=Sometimes0).run(1, loader(64))
        elif kind == "length":
            trainer_for().run(1, loader(100 + 50 * RANK))
        elif kind == "stream":
            trainer_for(dtype=F64).run(1, DataLoader(ByRank(), batch_size=32))
        elif kind == "shards":
            trainer_for(shards=3 * world + 1 if world > 1 else 0)
        elif kind == "on-first":  # an error of any kind, with what cannot be pickled
            trainer_for()._place.processes.on_first(lambda: os.listdir("/nowhere/at/all"))
        elif kind == "on-first-own":
            trainer_for()._place.processes.on_first(unpicklable)
        elif kind == "split":
            trainer = trainer_for()
            torch.manual_seed(RANK)  # as in a script that seeds nothing
            trainer.run(1, DataLoader(random_split(digits(203), [150, 53])[0], batch_size=32))
        elif kind == "uncut":
            trainer_for().run(1, [["a", "b"]])
    except (ValueError, TypeError, RuntimeError, UserWarning, OSError) as error:
        return {"error_text": f"{type(error).__name__}: {error}"}
    return {"error_text": ""}


def unpicklable() -> None:
    class OwnError(RuntimeError):
        pass

    raise OwnError("a disk of its own kind")


# ---------------------------------------------------------------------- what is trained changes in the run


class Changing(Digits):
    """Begins with a frozen layer; thaws it, freezes another one, or gives it to the optimizer, before an epoch."""

    change = "thawed"

    def run_epoch(self, batches, **kwargs):
        epoch = self.progress_checker.get_epoch()
        if self.mode == "train" and epoch == 2 and self.change != "between":
            change(self, self.change)
        if self.mode == "train" and epoch == 3 and self.change == "back":
            self.model[0].requires_grad_(False)
        super().run_epoch(batches, **kwargs)


class ChangingWeighted(Changing, Weighted):
    """With counted items."""


def change(trainer, kind: str) -> None:
    backbone, head = trainer.model[0], trainer.model[2]
    backbone.requires_grad_(True)
    if kind == "added":
        trainer.optimizer.add_param_group({"params": list(backbone.parameters()), "lr": 0.02, "momentum": 0.5})
    if kind == "frozen":
        head.requires_grad_(False)


def thawing(kind: str, trainer=Changing, **options) -> dict:
    network = problem.model("mlp", F64)
    network[0].requires_grad_(False)
    held = [p for p in network.parameters() if p.requires_grad or kind != "added"]
    optimizer = torch.optim.SGD(held, lr=0.05, momentum=0.9)
    trained = trainer(network, "cpu", optimizer=optimizer, log_bar=False, **{"seed": 0} | options)
    trained.change = kind
    if kind == "between":
        trained.run(1, loader(203, F64))
        change(trained, kind)
    trained.run(2 if kind == "between" else 3, loader(203, F64), loader(41, F64))
    return {"weights": problem.weights(network), "seen": trained.seen, "rows": trained.history.rows}


class Suddenly(Digits):
    """Thaws, or freezes, in the middle of an epoch."""

    thaws, at = True, 3

    def train_step(self, batch):
        if self.progress_checker.get_step() == self.at:
            self.model[0].requires_grad_(self.thaws)
        return super().train_step(batch)


class FrozenSuddenly(Suddenly):
    thaws = False


class ThawedLast(Suddenly):
    at = 7  # the epoch's last step


def suddenly(kind: type[Trainer]) -> dict:
    network = problem.model("mlp", F64)
    network[0].requires_grad_(not kind.thaws)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    trainer = kind(network, "cpu", optimizer=optimizer, log_bar=False, seed=0)
    try:
        trainer.run(1, loader(203, F64))
    except RuntimeError as error:
        return {"error_text": str(error), "step": trainer.progress_checker.get_step() - 1}
    return {"error_text": "", "weights": problem.weights(network)}


def differently() -> dict:
    """Each process trains other parameters."""
    network = problem.model("mlp", F64)
    network[0].requires_grad_(RANK == 0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    try:
        Digits(network, "cpu", optimizer=optimizer, log_bar=False, seed=0)
    except ValueError as error:
        return {"error_text": str(error)}
    return {"error_text": ""}


# ---------------------------------------------------------------------- several models


class Rival(Digits):
    """A second network with an optimizer of its own, which the trainer does not know."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        torch.manual_seed(1)
        self.rival = nn.Linear(10, 2, dtype=F64) if not hasattr(self.model, "rival") else self.model.rival
        self.steps = torch.optim.SGD(self.rival.parameters(), lr=0.01)

    def fight(self, batch) -> None:
        x, y, _ = batch
        self.steps.zero_grad()
        nn.functional.cross_entropy(self.rival(self.model[:3](x).detach()), y % 2).backward()
        self.steps.step()

    def train_step(self, batch):
        self.fight(batch)
        x, y, ids = batch
        out = self.model[:3](x)
        return {"loss": nn.functional.cross_entropy(out, y) - self.rival(out).square().mean(), "ids": ids}


class TakesPart(Digits):
    """Its backward comes before the trainer's, and takes the exchange of its gradients with it."""

    def train_step(self, batch):
        x, y, ids = batch
        rival = torch.optim.SGD(self.model.rival.parameters(), lr=0.01)
        nn.functional.cross_entropy(self.model.rival(self.model[:3](x).detach()), y % 2).backward()
        rival.step()
        rival.zero_grad()
        return {"loss": nn.functional.cross_entropy(self.model[:3](x), y), "ids": ids}


class InOptimize(Rival):
    def optimize(self, window):
        super().optimize(window)
        self.fight(window.micros[0].batch)

    def train_step(self, batch):
        return Digits.train_step(self, batch)


class Rarely(Rival):
    """Begins in the second epoch."""

    def fight(self, batch):
        if self.progress_checker.get_epoch() == 2:
            super().fight(batch)


class Lately(Rival):
    """Is made in the first step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = []

    def fight(self, batch):
        if not self.kept:
            torch.manual_seed(3)
            self.kept = [nn.Linear(10, 2, dtype=F64)]
            self.kept.append(torch.optim.SGD(self.kept[0].parameters(), lr=0.01))
        self.rival, self.steps = self.kept
        super().fight(batch)


class Toggled(Rival):
    """Is frozen but for its own step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rival.requires_grad_(False)

    def fight(self, batch):
        self.rival.requires_grad_(True)
        super().fight(batch)
        self.rival.requires_grad_(False)


class Around(Digits):
    """It is none of the trainer's attributes."""

    def train_step(self, batch):
        x, y, _ = batch
        nn.functional.cross_entropy(OUTSIDE(x), y).backward()
        AROUND.step()
        AROUND.zero_grad()
        return super().train_step(batch)


torch.manual_seed(2)
OUTSIDE = nn.Linear(64, 10, dtype=F64)
AROUND = torch.optim.SGD(OUTSIDE.parameters(), lr=0.01)


class Alone(Digits):
    """Changes a parameter on one process only, and in one step."""

    def optimize(self, window):
        super().optimize(window)
        if self._place.processes.count - 1 == RANK and self.progress_checker.get_step() == 9:
            self.model[2].bias.data[3] += 1e-3


class Frozen(Digits):
    """Has another network, which is not trained, and not the same on every process."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.other = nn.Linear(3, 3)


class Checkpointed(nn.Module):
    """Reentrant checkpoints of a layer that is used twice, of whose gradient only a part is exchanged."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        for layer in (self.first, self.first, self.second):
            x = torch.utils.checkpoint.checkpoint(layer, x.requires_grad_(), use_reentrant=True)
        return x


def mlp() -> nn.Module:
    return problem.model("mlp", F64)


def with_rival() -> nn.Module:
    """Its last layer is not for the trainer's optimizer."""
    network = mlp()
    network.rival = nn.Linear(10, 2, dtype=F64).requires_grad_(False)
    return network


def several(kind: type[Trainer], network: Callable[[], nn.Module] = mlp, **options) -> dict:
    trained = network()
    held = [p for p in trained.parameters() if p.requires_grad]
    trained.requires_grad_(True)
    trainer = kind(trained, "cpu", optimizer=torch.optim.SGD(held, lr=0.05), log_bar=False, seed=0, **options)
    try:
        trainer.run(2, loader(203, F64))
    except RuntimeError as error:
        return {"error_text": str(error), "step": trainer.progress_checker.get_step() - 1}
    return {"error_text": "", "step": 14, "weights": problem.weights(trained)}


SEVERAL = {
    "in-step": partial(several, Rival),
    "in-step-pieces": partial(several, Rival, gradient_accumulation_steps=2),
    "in-step-shards": partial(several, Rival, shards=12),
    "in-model": partial(several, Rival, with_rival),
    "in-model-first": partial(several, TakesPart, with_rival),
    "in-optimize": partial(several, InOptimize),
    "later": partial(several, Rarely),
    "lately": partial(several, Lately),
    "toggled": partial(several, Toggled),
    "around": partial(several, Around),
    "alone": partial(several, Alone),
    "frozen": partial(several, Frozen),
    "checkpointed": partial(several, Digits, lambda: Checkpointed().to(F64)),
}


def other_data(folder: str) -> dict:
    """The labels of some samples are others when the run goes on: every process refuses, in the same words."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    kind = Digits.add_on(StateManagerAddon)
    options = {"trainer": kind, "dtype": F64, "save_path": os.path.join(folder, f"data-{world}")}
    trainer_for(**options).run(1, loader(203, F64), resume="auto")
    x, y, n = digits(203, F64).tensors
    changed = TensorDataset(x, y.flip(0), n)
    try:
        trainer_for(**options).run(2, DataLoader(changed, batch_size=32, shuffle=True), resume="auto")
    except CheckpointError as error:
        refused = str(error)
    trainer = trainer_for(**options)
    trainer.run(2, loader(203, F64), resume="auto")
    return {"refused": refused, "rows": len(trainer.history)}


# ---------------------------------------------------------------------- weights, seeds, sharded models


def files(folder: str) -> dict:
    """Every process calls the same methods; only one of them writes."""
    trainer = trainer_for(seed=None)
    trainer.run(2, loader(203), loader(40))
    path = os.path.join(folder, f"weights-{trainer._place.processes.count}.safetensors")
    trainer.save_model(path)
    trainer.apply_weights(path)
    trainer.apply_weights()
    return {"seed": trainer.seed, "best": trainer.weight_buffer["epoch"], "main": trainer.is_main_process}


class Tells(Digits):
    """Each process logs its own number, at its own steps; no call waits for the others."""

    def logging(self, step_dict):
        super().logging(step_dict)
        if self.mode == "train" and self.progress_checker.get_step() % 2 == RANK % 2:
            self.log({"rank": float(RANK)})


def own_values(folder: str) -> dict:
    trainer = trainer_for(trainer=Tells.add_on(CSVLoggerAddon), save_path=f"{folder}/own", log_every="3st")
    trainer.run(1, loader(203))
    if RANK == 0:
        trainer.log({"final": 1.0})
    trainer._place.processes.wait()
    lines = [line for line in read_history(f"{folder}/own") if line["kind"] == "logged"]
    return {"logged": [(line["step"], line["values"]) for line in lines], "kept": bool(trainer._recorder.own)}


def other_weights(sharded_too: bool) -> dict:
    """A script that seeds each process differently still trains one model: process 0's."""
    network = problem.model("ln")
    if RANK:
        torch.manual_seed(50 + RANK)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    shards = {"shards": 12} if sharded_too else {}
    trainer = Digits(network, "cpu", optimizer=optimizer, log_bar=False, **shards)
    return {"weights": problem.weights(trainer.model), "seed": trainer.seed}


def fully_shard_on_cpu(network: nn.Module, world: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    fully_shard(network[0], mesh=mesh)
    fully_shard(network, mesh=mesh)


def fully_sharded(parts: int) -> dict:
    """FSDP2 by torch's own fully_shard, on a mesh of CPU processes."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    trainer_for()  # makes the process group
    network = problem.model("ln", F64)
    if world > 1:
        fully_shard_on_cpu(network, world)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    options = {"gradient_clip": 0.5, "gradient_accumulation_steps": parts}
    trainer = Digits(network, "cpu", optimizer=optimizer, log_bar=False, seed=0, **options)
    trainer.run(2, loader(203, F64), loader(41, F64, batch_size=2))
    trainer.apply_weights()
    whole = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in network.state_dict().items()}
    return {"weights": whole, "seen": trainer.seen, "rows": trainer.history.rows}


def swapped(folder: str, spread: bool) -> dict:
    """What an add-on has swapped in for `check_better` is what is saved, and what the same command again gives."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    trainer_for()  # makes the process group
    path = os.path.join(folder, f"swapped-{spread}-{world}")
    kind = Digits.add_on(StateManagerAddon, Averaged)

    def again() -> Digits:
        network = problem.model("ln")
        if spread and world > 1:
            fully_shard_on_cpu(network, world)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        return kind(network, "cpu", optimizer=optimizer, log_bar=False, seed=0, save_path=path)

    trainer = again()
    trainer.run(2, loader(203), loader(40), resume="auto")
    second = again()
    second.run(2, loader(203), loader(40), resume="auto")
    live = whole(second.model.state_dict())
    second.apply_weights()
    saved = load_file(os.path.join(path, "model.safetensors"))
    return {"judged": trainer.judged, "again": whole(second.model.state_dict()), "saved": saved, "live": live}


REFUSED = (
    "split",
    "length",
    "valid",
    "counted",
    "stream",
    "shards",
    "uncut",
    "prepared",
    "data",
    "on-first",
    "on-first-own",
)


def gan(**options) -> dict:
    """Two optimizers take turns; in the last batch some shards, and some of three processes, have no sample."""
    trainer = taking_turns.make(gradient_clip=0.5, **options)
    trainer.run(2, taking_turns.loader(50))
    return {"weights": problem.weights(trainer.model), "rows": trainer.history.rows}


def cases(folder: str = "") -> dict[str, Callable[[], dict]]:
    found: dict[str, Callable[[], dict]] = {name: partial(table, name) for name in TABLE}
    found |= {f"loader-{name}-{parts}": partial(by_loader, name, parts) for name in LOADERS for parts in (1, 3)}
    found |= {
        f"constant-{kind}-{parts}": partial(constant, kind == "list", gradient_accumulation_steps=parts)
        for kind in ("loader", "list")
        for parts in (1, 2)
    }
    found |= {f"constant-{kind}-shards": partial(constant, kind == "list", shards=6) for kind in ("loader", "list")}
    found |= {f"weighted-{p}-{d}": partial(weighted, p, t) for p in (1, 2, 4) for d, t in
              (("f32", torch.float32), ("f64", F64))}  # fmt: skip
    found |= {f"shards-{kind}-{n}": partial(sharded, kind, n) for kind in ("mlp", "dropout") for n in (4, 8, 12)}
    # BatchNorm needs two samples a shard, at least.
    found |= {f"shards-bn-{n}": lambda n=n: sharded("bn", n, data=loader(203, drop_last=True)) for n in (4, 8, 12)}
    found |= {
        "shards-weighted": partial(sharded, "dropout", 8, Weighted),
        "shards-augmented": lambda: sharded("dropout", 8, data=DataLoader(Augmented32(), batch_size=32, shuffle=True)),
        "shards-list": lambda: sharded("dropout", 8, data=list(loader(203, shuffle=False))),
        "shards-sometimes": sharded_sometimes,
        "shards-few": lambda: sharded("dropout", 12, Weighted, data=loader(35)),
        **{f"gan-{parts}": partial(gan, gradient_accumulation_steps=parts) for parts in (1, 3)},
        "gan-shards": partial(gan, shards=6),
        "nested": nested,
        "without-items-1": partial(without_items, 1),
        "without-items-3": partial(without_items, 3),
        "one-model": one_model_is_evaluated,
        "own-sampler": own_sampler,
        "distributed-sampler": distributed_sampler,
        "per-process": per_process_batches,
        "per-process-3": partial(per_process_batches, 3),
        "clipped": clipped,
        "metrics": partial(metric_objects, False),
        "metrics-sets": partial(metric_objects, True),
        "stopped-by-one": stopped_by_one,
        "stopped-by-clock": stopped_by_clock,
        "stopped-by-nan": stopped_by_nan,
        "unused": lambda: unused([DistributedDataParallelKwargs(find_unused_parameters=True)]),
        "unused-unsaid": partial(unused, []),
        "within-epoch": lambda: train(loader(203, F64), held_out=loader(50, F64), valid_every="2st", dtype=F64),
        "files": partial(files, folder),
        "other-data": partial(other_data, folder),
        "swapped": partial(swapped, folder, False),
        "swapped-fsdp2": partial(swapped, folder, True),
        "own-values": partial(own_values, folder),
        "other-weights": partial(other_weights, False),
        "other-weights-shards": partial(other_weights, True),
        "fsdp2-1": partial(fully_sharded, 1),
        "fsdp2-3": partial(fully_sharded, 3),
    }
    found |= {f"evaluation-{size}": partial(evaluation, size) for size in (1, 2, 3, 7)}
    found |= {f"refused-{kind}": partial(refused, kind) for kind in REFUSED}
    found |= {f"thaw-{kind}": partial(thawing, kind) for kind in ("thawed", "frozen", "added", "between", "back")}
    found |= {
        "thaw-clipped": partial(thawing, "added", gradient_clip=0.1),
        "thaw-pieces": partial(thawing, "thawed", gradient_accumulation_steps=3),
        "thaw-weighted": partial(thawing, "added", ChangingWeighted, gradient_accumulation_steps=2),
        "thaw-shards": partial(thawing, "added", shards=12),
        "suddenly-thawed": partial(suddenly, Suddenly),
        "suddenly-thawed-last": partial(suddenly, ThawedLast),
        "suddenly-frozen": partial(suddenly, FrozenSuddenly),
        "differently": differently,
    }
    found |= {f"several-{name}": case for name, case in SEVERAL.items()}
    found |= {f"written-{kept.replace('/', '-')}": partial(goes_on, kept, folder) for kept in on(2)}
    found["bf16"] = partial(train, loader(203), mixed_precision="bf16")
    return found


class Augmented32(Augmented):
    def __getitem__(self, index):
        x, y, n = super().__getitem__(index)
        return x.float(), y, n
