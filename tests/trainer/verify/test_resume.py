"""Whether a run can be gone on with exactly: found out, with the right cause, and without a trace."""

import itertools
import os
import random
import sys
import tempfile
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from tests.helpers import MLPTrainer, PlainTrainer, assert_equal, data, loader, make, mlp, sgd, weights
from zae_engine.trainer.addons import EarlyStoppingAddon, StateManagerAddon
from zae_engine.trainer.compose import AddOnBase
from zae_engine.trainer.verify.resume import ResumeVerification
from zae_engine.trainer.verify.resume_trace import Marks, Trace, first_difference

pytestmark = pytest.mark.usefixtures("starts_processes")

rng = random.Random(0)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tempfile.TemporaryDirectory() as short:  # else the loader's workers could not make sockets there
        monkeypatch.setenv("TMPDIR", short)
        monkeypatch.setattr("tempfile.tempdir", None)
        yield
        # Importing parts of torch leaves folders, too.
        names = [*os.listdir(tmp_path), *os.listdir(short)]
        assert [name for name in names if name.startswith(("run", "verify-resume", "pymp"))] == []


def kept(kind=PlainTrainer, add_ons=(), model=None, **options):
    return make(kind.add_on(*add_ons, StateManagerAddon), model=model or mlp(0.3), save_path="run", **options)


def verified(kind=PlainTrainer, batches=None, **options) -> ResumeVerification:
    return kept(kind, **options).verify_resume(batches if batches is not None else loader(shuffle=True))


def network(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), *between, nn.Linear(16, 3))


# ---------------------------------------------------------------------- runs that can be gone on with


class Noisy(Dataset):
    """Augments with the global streams."""

    def __init__(self):
        self.data = data()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return x + 0.1 * torch.randn(8) + random.random() + np.random.rand(), y


class Kept(PlainTrainer):
    """Draws from a generator of its own, and has it in its state."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rng = random.Random()

    def train_step(self, batch):
        return {"loss": super().train_step(batch)["loss"] * (1 + self.rng.random())}

    test_step = PlainTrainer.train_step

    def state_dict(self):
        return {**super().state_dict(), "Kept": {"rng": self.rng.getstate()}}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        version, numbers, gauss = state["Kept"]["rng"]
        self.rng.setstate((version, tuple(numbers), gauss))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sound_run_is_exact_across_epochs_and_validations(workers):
    from torchmetrics.classification import MulticlassAccuracy

    model = network(nn.BatchNorm1d(16), nn.Dropout(0.3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    metrics = {"accuracy": MulticlassAccuracy(num_classes=3)}
    options = {"optimizer": optimizer, "scheduler": scheduler, "scheduler_step_on_batch": True, "metrics": metrics}
    trainer = kept(MLPTrainer, [EarlyStoppingAddon], model, **options)
    batches = DataLoader(Noisy(), 8, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    found = trainer.verify_resume(batches, steps=4, valid_loader={"a": loader(), "b": loader(20)})
    assert found, found
    assert (found.step, found.differs, found.cause, found.steps) == (None, None, None, 4)
    assert repr(found) == "exact: the same 4 steps, interrupted and gone on with, or not"


@pytest.mark.parametrize("steps", [6, 7])
def test_the_checkpoint_may_be_at_the_end_of_an_epoch_or_behind_it(steps):
    scheduler = {"optimizer": sgd(model := mlp(0.3)), "model": model}
    scheduler["scheduler"] = torch.optim.lr_scheduler.ReduceLROnPlateau(scheduler["optimizer"])
    found = kept(seed=None, **scheduler).verify_resume(loader(shuffle=True), steps, loader())
    assert found, found


def test_a_state_that_the_user_keeps_is_restored():
    assert verified(Kept, batches=list(loader()))


class Bags(PlainTrainer):
    """Sparse gradients, and lazy parameters."""

    def train_step(self, batch):
        x, y = batch
        return {"loss": nn.functional.cross_entropy(self.model(x.abs().long().clamp(max=4)), y)}


def test_parameters_of_any_kind_are_compared():
    model = nn.Sequential(nn.EmbeddingBag(5, 4, sparse=True), nn.LazyLinear(3))
    assert verified(Bags, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


# ---------------------------------------------------------------------- runs that cannot


class OwnRng(Noisy):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng()

    def __getitem__(self, index):
        x, y = self.data[index]
        return x + self.rng.normal(), y


class OwnTorch(Noisy):
    def __init__(self):
        super().__init__()
        self.noise = {"of x": torch.Generator()}

    def __getitem__(self, index):
        x, y = self.data[index]
        return x + torch.randn((), generator=self.noise["of x"]), y


class Counts(Noisy):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __getitem__(self, index):
        self.calls += 1
        x, y = self.data[index]
        return x * (1 + self.calls / 100), y


class Stream(IterableDataset):
    def __init__(self):
        self.rng = np.random.RandomState()

    def __iter__(self):
        for x, y in data():
            yield x + self.rng.rand(), y


class OwnOrder(Sampler):
    def __init__(self):
        self.rng = random.Random()

    def __len__(self):
        return 45

    def __iter__(self):
        return iter(self.rng.sample(range(45), 45))


class Collate:
    def __init__(self):
        self.rng = np.random.default_rng()

    def __call__(self, samples):
        x, y = torch.utils.data.default_collate(samples)
        return x + self.rng.normal(), y


@pytest.mark.parametrize(
    ("batches", "path"),
    [
        (lambda: DataLoader(OwnRng(), 8), "OwnRng.rng"),
        (lambda: DataLoader(OwnRng(), 8, num_workers=2), "OwnRng.rng"),
        (lambda: DataLoader(OwnTorch(), 8), "OwnTorch.noise['of x']"),
        (lambda: DataLoader(Counts(), 8), "Counts.calls"),
        (lambda: DataLoader(Stream(), 8), "Stream.rng"),
        (lambda: DataLoader(data(), 8, collate_fn=Collate()), "Collate.rng"),
        (lambda: DataLoader(data(), 8, sampler=OwnOrder()), "OwnOrder.rng"),
    ],
)
def test_data_that_is_other_data_is_named(batches, path):
    found = verified(batches=batches())
    assert not found
    assert found.step == 4
    assert f"`{path}`" in found.cause
    assert found.differs in ("the batch", "it cannot go on")


def test_validation_data_that_is_other_data_is_named():
    found = kept().verify_resume(DataLoader(Noisy(), 8), valid_loader={"b": DataLoader(OwnRng(), 8)})
    assert not found
    assert (found.step, found.differs) == (6, "the batch of an evaluation")
    assert "`valid b OwnRng.rng`" in found.cause


def test_streams_of_workers_are_told_from_generators():
    found = verified(batches=DataLoader(Noisy(), 8, num_workers=1), seeded_samples=False)
    assert not found
    assert found.differs == "the batch"
    assert "seeded_samples=True" in found.cause


class Counter(PlainTrainer):
    steps_seen = 0

    def train_step(self, batch):
        self.steps_seen += 1
        return {"loss": super().train_step(batch)["loss"] * (1 + self.steps_seen)}


class Average(PlainTrainer):
    """An average of weights that the step looks at."""

    def train_step(self, batch):
        own = self.model[0].weight.detach()
        self.average = 0.9 * getattr(self, "average", own.clone()) + 0.1 * own
        return {"loss": super().train_step(batch)["loss"] + (self.model[0].weight - self.average).square().sum()}


class GlobalRng(PlainTrainer):
    def train_step(self, batch):
        return {"loss": super().train_step(batch)["loss"] * (1 + rng.random())}


def closing_over():
    count = itertools.count()
    return lambda: next(count)


class Closure(PlainTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.next = closing_over()

    def train_step(self, batch):
        return {"loss": super().train_step(batch)["loss"] * (1 + self.next())}


class Teacher(PlainTrainer):
    """A second module, which moves along."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = mlp()

    def train_step(self, batch):
        with torch.no_grad():
            for own, other in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                own.lerp_(other, 0.1)
        return {"loss": super().train_step(batch)["loss"] + self.teacher(batch[0]).square().mean().detach()}


class ForgetfulAddon(AddOnBase):
    """An add-on of a user's, without a state."""

    scale = 1.0

    def optimize(self, window):
        self.scale *= 0.9
        with torch.no_grad():
            self.model[0].weight.mul_(self.scale)
        super().optimize(window)


@pytest.mark.parametrize(
    ("kind", "add_ons", "path", "values"),
    [
        (Counter, (), "trainer.steps_seen", " (3 without an interruption, nothing with one)"),
        (Average, (), "trainer.average", ""),
        (GlobalRng, (), "rng", ""),
        (Closure, (), "count in trainer.next", ""),
        (Teacher, (), "trainer.teacher.0.weight", ""),
        (PlainTrainer, (ForgetfulAddon,), "trainer.scale", ""),
    ],
)
def test_a_step_with_a_memory_is_named(kind, add_ons, path, values):
    found = verified(kind, add_ons=add_ons)
    assert not found
    assert found.step == 4
    assert f"`{path}`" in found.cause
    assert values in found.cause
    assert "state_dict()" in found.cause
    assert found.differs.startswith("'loss', which the step returned (")
    assert repr(found).startswith("not exact: 'loss'")


class Warm(nn.Module):
    """Keeps a mean where the state does not see it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16), persistent=False)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


def test_a_buffer_outside_of_the_state_is_named():
    found = verified(model=network(Warm()))
    assert not found
    assert "`model.1.mean`" in found.cause
    assert "register_buffer()" in found.cause


class Forgetful(torch.optim.SGD):
    """Warms up by a counter of its own."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.div_(self.count)
        return super().step(closure)


def test_an_optimizer_with_a_memory_is_named_by_what_it_does():
    found = verified(model=(model := mlp()), optimizer=Forgetful(model.parameters(), lr=0.1))
    assert not found
    assert found.step == 4
    assert found.differs == "the gradient of 0.weight"
    assert "`optimizer.count`" in found.cause


class Lossy(torch.optim.SGD):
    """Forgets its momentum."""

    def state_dict(self):
        return {**super().state_dict(), "state": {}}


class Drops(nn.Module):
    """Keeps a parameter to itself."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x):
        return x * self.scale

    def _save_to_state_dict(self, *args):
        pass


@pytest.mark.parametrize(
    ("model", "optimizer", "differs"),
    [
        (mlp(), Lossy, "the optimizer's momentum_buffer of 0.weight as it was restored"),
        (network(Drops()), torch.optim.SGD, "1.scale as it was restored"),
    ],
)
def test_what_is_lost_on_the_way_is_named(model, optimizer, differs):
    found = verified(model=model, optimizer=optimizer(model.parameters(), lr=0.1, momentum=0.9))
    assert not found
    assert (found.step, found.differs) == (4, differs)
    assert "state_dict()" in found.cause


class Clock(PlainTrainer):
    def train_step(self, batch):
        print("tick")
        return {"loss": super().train_step(batch)["loss"] * (1 + time.time_ns() % 1_000_000 / 1e6)}


def test_a_step_that_cannot_be_repeated_is_told_from_one_with_a_memory(capfd):
    found = verified(Clock)
    assert not found
    assert capfd.readouterr().out.count("tick") == 6
    assert "the clock" in found.cause


class Metric(PlainTrainer):
    def metric_on_epoch_end(self):
        self.epochs = getattr(self, "epochs", 0) + 1
        return {"epochs": self.epochs}


def test_a_row_of_the_history_that_differs_is_named():
    found = kept(Metric).verify_resume(loader(), steps=6)
    assert not found
    assert found.differs == "the history's 'train_epochs' (2.0 without an interruption, 1.0 with one)"
    assert "`trainer.epochs`" in found.cause


class Unsaved(PlainTrainer):
    def state_dict(self):
        return {**super().state_dict(), "Unsaved": {"what": object()}}


class Bare:
    """A scheduler without a state."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        pass


def test_what_cannot_be_saved_is_said():
    found = verified(Unsaved)
    assert not found
    assert found.differs == "nothing can be saved"
    assert "object" in found.cause
    model = nn.Sequential(nn.EmbeddingBag(5, 3, sparse=True))
    found = verified(Bags, model=model)
    assert not found
    assert "momentum_buffer of 0.weight" in found.differs  # its sums are put together when it is saved, and so rounded
    model = mlp()
    found = verified(model=model, optimizer=(optimizer := sgd(model)), scheduler=Bare(optimizer))
    assert not found
    assert "has no state_dict()" in found.cause


# ---------------------------------------------------------------------- without a trace


def test_nothing_is_changed_and_training_goes_on_as_without_the_check(tmp_path):
    ends = []
    for checks in (False, True):
        batches = DataLoader(Noisy(), 8, shuffle=True, generator=torch.Generator().manual_seed(3))
        trainer = kept()
        trainer.run(1, batches, resume="auto")
        files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        torch.manual_seed(5)
        if checks:
            assert trainer.verify_resume(batches, steps=2, valid_loader=loader())
        assert files == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        assert "run_batch" not in vars(trainer)
        drawn = torch.rand(3)
        trainer.run(1, batches, loader())
        losses = trainer.get_loss_history()
        ends.append((weights(trainer.model), losses, drawn.tolist(), batches.generator.get_state().tolist()))
        for path in sorted((tmp_path / "run").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (tmp_path / "run").rmdir()
    assert_equal(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


def test_shared_memory_and_workers_that_stay_are_left_alone():
    model = mlp().share_memory()
    before = weights(model)
    batches = DataLoader(Noisy(), 8, num_workers=1, persistent_workers=True)
    first = [y.tolist() for _, y in batches]
    assert kept(model=model).verify_resume(batches, steps=2)
    assert_equal(weights(model), before)
    assert [y.tolist() for _, y in batches] == first


class Talks(PlainTrainer):
    def train_step(self, batch):
        if self.progress_checker.get_step() == 4:
            print("the fourth step")
            warnings.warn("a warning", stacklevel=1)
        return super().train_step(batch)


def shown(message, *where, **more):
    print(f"warned: {message}", file=sys.stderr)


def test_what_the_user_says_is_heard_once(capfd, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", shown)  # pytest's keeps them in the process that warned
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert verified(Talks)
    out, err = capfd.readouterr()
    assert out.count("the fourth step") == 1
    assert err.count("warned: a warning") == 1


# ---------------------------------------------------------------------- errors


class Broken(PlainTrainer):
    def train_step(self, batch):
        raise KeyError("no such key")


class Slow(PlainTrainer):
    def train_step(self, batch):
        while True:
            try:
                time.sleep(60)
            except Exception:
                continue


def test_an_error_of_the_user_is_raised_as_it_is():
    with pytest.raises(KeyError, match="no such key") as raised:
        verified(Broken)
    assert not getattr(raised.value, "__notes__", [])


def test_a_step_that_hangs_is_ended():
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="not done after 1 seconds; give fewer steps="):
        kept(Slow).verify_resume(loader(), max_time="1s")
    assert time.monotonic() - began < 10


class Stops(PlainTrainer):
    def train_step(self, batch):
        self.stop("enough")
        return super().train_step(batch)


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        (PlainTrainer, {"steps": 0}, ValueError, "steps"),
        (PlainTrainer, {"max_time": "3ep"}, ValueError, "'10min'"),
        (PlainTrainer, {"loader": iter([])}, TypeError, "walked once"),
        (PlainTrainer, {"loader": data()}, TypeError, "wrap it: DataLoader"),
        (Stops, {}, ValueError, r"ended after 1 steps \(enough\)"),
    ],
)
def test_what_cannot_be_tried_is_refused(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        kept(kind).verify_resume(**{"loader": loader(), **arguments})


class Inside(PlainTrainer):
    def train_step(self, batch):
        self.verify_resume(loader())


def test_it_is_no_part_of_a_run():
    with pytest.raises(RuntimeError, match="within run"):
        verified(Inside)


def trace(*modes, rows=()):
    return Trace(0, after=[Marks(step, mode) for step, mode in enumerate(modes)], rows=list(rows))


def test_runs_that_do_other_things_at_a_step_differ_there():
    difference = first_difference(trace("train", "test"), trace("train", "train"))
    assert (difference.step, difference.kind, difference.words) == (1, "order", "whether it trains or evaluates")
    assert first_difference(trace("train"), trace("train")) is None


def test_histories_of_other_lengths_differ():
    difference = first_difference(trace("train", rows=[{}, {}]), trace("train", rows=[{}]))
    assert (difference.kind, difference.words) == ("history", "the history has 2 rows, or 1")
