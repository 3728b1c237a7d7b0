"""Whether a step is invariant: found out, with the right cause, and without a trace."""

import copy
import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from tests.helpers import MLPTrainer, PlainTrainer, assert_equal, data, loader, make, mlp, weights
from zae_engine.trainer.verify.step import Verification
from zae_engine.trainer.verify.step_replay import CPU


def network(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), *between, nn.Linear(16, 3))


def verified(kind=PlainTrainer, model=None, batches=None, steps=3, **options) -> Verification:
    return make(kind, model=model or network(nn.ReLU()), **options).verify(
        loader() if batches is None else batches, steps
    )


# ---------------------------------------------------------------------- steps that are invariant


class Tokens(PlainTrainer):
    """A mean over the samples that count, and how many these are."""

    def train_step(self, batch):
        x, y = batch
        mask = y > 0
        loss = (F.cross_entropy(self.model(x), y, reduction="none") * mask).sum() / mask.sum().clamp(min=1)
        return {"loss": loss, "num_items": mask.sum()}


class NumbersOfTokens(Tokens):
    def train_step(self, batch):
        values = super().train_step(batch)
        return {**values, "num_items": int(values["num_items"])}


class Regularised(PlainTrainer):
    def train_step(self, batch):
        return {"loss": super().train_step(batch)["loss"] + 0.1 * self.model[0].weight.square().sum()}


class Narrow(PlainTrainer):
    """Computes its loss in float32, as many do under mixed precision."""

    def train_step(self, batch):
        x, y = batch
        return {"loss": F.cross_entropy(self.model(x).float(), y)}


class OnlyFloat32(PlainTrainer):
    def train_step(self, batch):
        x, y = batch
        return {"loss": F.cross_entropy(self.model(x + torch.zeros(8, dtype=torch.float32)).float(), y)}


class Float32Inside(nn.Linear):
    def forward(self, x):
        return super().forward(x.float())


@pytest.mark.parametrize("kind", [PlainTrainer, MLPTrainer, Tokens, NumbersOfTokens, Regularised])
@pytest.mark.parametrize("between", [(nn.ReLU(),), (nn.LayerNorm(16),), (nn.GroupNorm(4, 16), nn.Dropout(0.0))])
def test_a_mean_over_the_samples_is_invariant(kind, between):
    found = verified(kind, network(*between))
    assert found
    assert (found.tensor, found.cause, found.precision) == (None, None, "float64")
    assert 0 < found.difference < 1e-12
    assert found.pieces == "4+4, 3+3+2, 5+1+2"
    assert repr(found).startswith("invariant: the same gradients whole and cut into 4+4, 3+3+2, 5+1+2 (in float64;")


def test_a_frozen_batchnorm_is_invariant():
    class_of_model = Frozen(network(nn.BatchNorm1d(16)))
    assert verified(model=class_of_model)


class Frozen(nn.Module):
    """Its BatchNorm stays in evaluation, as when a trained one is tuned."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def train(self, mode=True):
        super().train(mode)
        self.inner[1].eval()
        return self

    def forward(self, x):
        return self.inner(x)


def test_a_step_that_computes_in_float32_is_measured_by_float32():
    found = verified(Narrow)
    assert found
    assert found.precision == "float32"
    assert 1e-9 < found.difference < 1e-4


def test_a_model_that_runs_in_float32_only_is_run_in_float32():
    model = network(nn.ReLU())
    model[0] = Float32Inside(8, 16)
    found = verified(model=model)
    assert found
    assert found.precision == "float32"
    assert not verified(Summed, model=model)


def test_a_model_in_bfloat16_is_verified_in_float64():
    assert verified(model=network(nn.ReLU()).bfloat16()).precision == "float64"


# ---------------------------------------------------------------------- steps that are not, and why


class Summed(PlainTrainer):
    def train_step(self, batch):
        x, y = batch
        return {"loss": F.cross_entropy(self.model(x), y, reduction="sum")}


class Masked(Tokens):
    def train_step(self, batch):
        return {"loss": super().train_step(batch)["loss"]}


class ClassWeighted(PlainTrainer):
    def train_step(self, batch):
        x, y = batch
        return {"loss": F.cross_entropy(self.model(x), y, weight=torch.tensor([1.0, 2.0, 5.0]))}


class WrongCount(PlainTrainer):
    def train_step(self, batch):
        return {**super().train_step(batch), "num_items": batch[0].sum().abs()}


class Contrastive(PlainTrainer):
    """Each sample's negatives are the other samples of its batch."""

    def train_step(self, batch):
        x, _ = batch
        one, other = F.normalize(self.model(x), dim=1), F.normalize(self.model(x.roll(1, 1)), dim=1)
        return {"loss": F.cross_entropy(one @ other.T / 0.1, torch.arange(len(x)))}


class Noisy(PlainTrainer):
    def train_step(self, batch):
        x, y = batch
        return {"loss": F.cross_entropy(self.model(x + 0.1 * torch.randn_like(x)), y)}


class Mixed(PlainTrainer):
    """Draws from numpy's generator."""

    def train_step(self, batch):
        x, y = batch
        share = np.random.beta(1, 1)
        return {"loss": F.cross_entropy(self.model(share * x + (1 - share) * x.roll(1, 1)), y)}


class FunctionalDropout(PlainTrainer):
    def train_step(self, batch):
        x, y = batch
        return {"loss": F.cross_entropy(self.model(F.dropout(x, 0.3)), y)}


class Squeezing(PlainTrainer):
    """Wrong for a batch of one sample."""

    def train_step(self, batch):
        x, y = batch
        return {"loss": F.cross_entropy(self.model(x).squeeze(), y)}


class Attending(nn.Module):
    """Dropout on attention weights, and between recurrent layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.recurrent = nn.LSTM(2, 8, 2, batch_first=True, dropout=0.3)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        y, _ = self.recurrent(x.unflatten(1, (4, 2)))
        return self.last(self.attention(y, y, y)[0].mean(1))


class Centred(nn.Module):
    """Remembers a mean that it does not use in training."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x):
        self.seen = 0.9 * self.seen + 0.1 * x.mean(0)
        return self.linear(x)


@pytest.mark.parametrize(
    ("kind", "model", "tensor", "cause"),
    [
        (PlainTrainer, lambda: network(nn.Dropout(0.1)), "0.weight", "dropout draws"),
        (FunctionalDropout, network, "0.weight", "dropout draws"),
        (PlainTrainer, Attending, "recurrent.weight_ih_l0", "dropout draws"),
        (PlainTrainer, lambda: network(nn.BatchNorm1d(16)), "0.weight", r"BatchNorm \('1' first\)"),
        (
            PlainTrainer,
            lambda: network(nn.Dropout(0.1), nn.BatchNorm1d(16)),
            "0.weight",
            "dropout draws .*; BatchNorm .*shards=N",
        ),
        (Summed, network, "0.weight", "the loss is a sum over the samples"),
        (Summed, lambda: network(nn.Dropout(0.1)), "0.weight", "the loss is a sum over the samples"),
        (Masked, network, "0.weight", "return of how many.*num_items"),
        (ClassWeighted, network, "0.weight", "sum of weights.*num_items"),
        (WrongCount, network, "0.weight", "'num_items' is not what the loss is the mean of"),
        (Contrastive, network, "0.weight", "depends on the others in its batch"),
        (Noisy, network, "0.weight", "the step draws random numbers"),
        (Mixed, network, "0.weight", "the step draws random numbers"),
        (PlainTrainer, Centred, "seen", "moves a buffer"),
        (Squeezing, network, None, "on a piece, it raises RuntimeError: size mismatch"),
    ],
)
def test_what_is_not_invariant_is_named_with_its_cause(kind, model, tensor, cause):
    found = verified(kind, model())
    assert not found
    assert found.tensor == tensor
    assert found.difference > 1e-2
    assert found.precision == "float64"
    assert re.search(cause, found.cause)
    assert repr(found).startswith(f"not invariant: {tensor or 'the step fails'} ")
    assert repr(found).endswith(found.cause)


def test_what_shards_make_the_same_is_said():
    dropped = verified(model=network(nn.Dropout(0.1)))
    assert dropped.cause.endswith("; shards=N makes it the same on every number of processes that divides N")
    sharded = verified(model=network(nn.Dropout(0.1)), shards=8)
    assert sharded.cause.endswith(
        "the trainer's shards=8 makes it the same on every number of processes that divides 8"
    )
    assert "shards" not in verified(Summed).cause


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x):
        return x[:, :3] * self.weight


def test_gradients_of_one_number_tell_less():
    assert verified(Summed, Scalar()).cause.startswith("the loss is a sum")
    assert verified(Masked, Scalar()).cause.startswith("the loss is not the mean of its samples' losses")


def test_a_piece_without_any_item_has_a_loss_that_is_no_number():
    x, _ = data(9).tensors
    found = verified(Divided, batches=[(x, (torch.arange(9) < 4).long())])
    assert (found.tensor, found.difference, found.pieces) == ("0.weight", float("inf"), "5+4")
    assert found.cause.startswith("the gradient is not finite for a piece, as of a mean over none")


class Divided(PlainTrainer):
    def train_step(self, batch):
        x, y = batch
        mask = y > 0
        return {"loss": (F.cross_entropy(self.model(x), y, reduction="none") * mask).sum() / mask.sum()}


def test_the_first_batch_that_differs_counts():
    x, y = data(8).tensors
    found = verified(Masked, batches=[(x, torch.ones_like(y)), (x, torch.ones_like(y)), (x, y)])
    assert not found
    assert verified(Masked, batches=[(x, torch.ones_like(y)), (x, torch.ones_like(y)), (x, y)], steps=2)


# ---------------------------------------------------------------------- without a trace


class Collecting(PlainTrainer):
    """Looks at itself, changes its batch, and holds another module and a tensor that the step needs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses, self.calls = [], 0
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))
        self.scale = torch.tensor(2.0)
        self.parts = {"first": self.model[0]}
        self.seen = [{"x": torch.ones(2)}]

    def train_step(self, batch):
        x, y = batch
        x *= self.scale
        assert self.parts["first"] is self.model[0]
        assert self.mode == "train"
        assert self.model.training
        self.calls += 1
        loss = self.criterion(self.model(x), y)
        self.losses.append(loss.item())
        return {"loss": loss}


def everything(trainer, batches):
    """What a trainer is made of, as far as it can change."""
    return copy.deepcopy(
        {
            "weights": weights(trainer.model),
            "modes": [m.training for m in trainer.model.modules()],
            "gradients": [p.grad for p in trainer.model.parameters()],
            "optimizer": trainer.optimizer.state_dict(),
            "log": dict(trainer.log_train),
            "metrics": (trainer.train_metrics, trainer.test_metrics),
            "history": trainer.history.rows,
            "state": trainer.state_dict(),
            "own": (trainer.losses, trainer.calls, trainer.scale, trainer.seen, trainer.mode, trainer.device),
            "criterion": trainer.criterion.state_dict(),
            "streams": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
            "loader": batches.generator.get_state(),
            "dtype": torch.get_default_dtype(),
        }
    )


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return one.dtype == other.dtype and bool((one == other).all())
    return one == other


@pytest.mark.parametrize("between", [(nn.ReLU(),), (nn.BatchNorm1d(16), nn.Dropout(0.2))])
def test_the_trainer_its_loader_and_the_streams_stay_as_they_were(between):
    model = network(*between)
    trainer = make(Collecting, model=model)
    batches = loader(shuffle=True, generator=torch.Generator().manual_seed(3))
    trainer.run(1, batches)
    model[0].eval()
    model[-1].weight.grad = None
    before = everything(trainer, batches)
    parameters, criterion = list(model.parameters()), trainer.criterion
    gradients = [p.grad for p in parameters]
    found = trainer.verify(batches)
    assert bool(found) == (len(between) == 1)
    after = everything(trainer, batches)
    assert [key for key in before if not same(before[key], after[key])] == []
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert all(p.grad is gradient for p, gradient in zip(parameters, gradients, strict=True))
    assert trainer.criterion is criterion
    assert criterion.weight.dtype == torch.float32


def test_a_run_goes_on_as_if_nothing_had_been_verified():
    trained = []
    for verifying in (False, True):
        model = network(nn.BatchNorm1d(16), nn.Dropout(0.2))
        trainer = make(Collecting, model=model)
        batches = loader(shuffle=True)
        for _ in range(2):
            trainer.run(1, batches)
            if verifying:
                trainer.verify(batches)
        trained.append(weights(model))
    assert_equal(*trained)


def test_it_says_the_same_each_time():
    trainer = make(model=network(nn.Dropout(0.3)))
    batches = loader(shuffle=True, generator=torch.Generator().manual_seed(3))
    assert trainer.verify(batches) == trainer.verify(batches)


def test_everything_is_put_back_after_an_error():
    trainer = make(Collecting)
    batches = loader(shuffle=True, generator=torch.Generator())
    before = everything(trainer, batches)
    trainer.criterion = None
    with pytest.raises(RuntimeError, match=r"failed on a copy of the model on the CPU.*TypeError: 'NoneType'"):
        trainer.verify(batches)
    trainer.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))
    assert same(before, everything(trainer, batches))


@pytest.mark.usefixtures("starts_processes")
def test_workers_that_persist_are_left_alone():
    batches = loader(num_workers=1, persistent_workers=True)
    assert verified(batches=batches)
    assert batches._iterator is None


def test_the_model_by_another_name_is_told():
    trainer = make(ByName, model=mlp())
    ByName.other = trainer.model
    with pytest.raises(ValueError, match=r"no parameter of the model got a gradient .* use self.model"):
        trainer.verify(loader())
    assert all(p.grad is None for p in trainer.model.parameters())


class ByName(PlainTrainer):
    other = None

    def train_step(self, batch):
        x, y = batch
        return {"loss": F.cross_entropy(type(self).other(x.float()), y)}


# ---------------------------------------------------------------------- batches and loaders


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data(20))


class DictTrainer(PlainTrainer):
    def train_step(self, batch):
        return {"loss": F.cross_entropy(self.model(batch.pop("x")), batch.pop("y"))}


@pytest.mark.parametrize(
    "batches",
    [
        [data(6).tensors],
        DataLoader(Stream(), batch_size=6),
        DataLoader(data(12), batch_size=6, drop_last=True),
        [None, data(6).tensors, data(1).tensors],
    ],
    ids=["list", "stream", "loader", "none"],
)
def test_any_loader_will_do(batches):
    assert verified(batches=batches, steps=3).pieces == "3+3, 2+2+2, 3+1+2"


def test_small_batches_are_cut_as_far_as_they_can_be():
    assert verified(batches=loader(batch_size=2)).pieces == "1+1"
    assert verified(batches=loader(batch_size=3)).pieces == "2+1, 1+1+1"
    assert verified(batches=loader(batch_size=4)).pieces == "2+2, 2+1+1"


def test_many_cuts_are_shortened():
    x, y = data(45).tensors
    batches = [(x[:n], y[:n]) for n in (6, 7, 8)]
    assert verified(batches=batches).pieces == "3+3, 2+2+2, 3+1+2, 4+3, 3+2+2, 4+1+2, …"


def test_a_batch_may_be_emptied_by_the_step():
    x, y = data(6).tensors
    batch = {"x": x, "y": y}
    assert verified(DictTrainer, batches=[batch])
    assert set(batch) == {"x", "y"}


def test_complex_numbers_are_as_precise():
    assert verified(model=Spectral()).precision == "float64"


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.filter = nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=8)[:, :3]


@pytest.mark.parametrize(
    ("batches", "steps", "error", "message"),
    [
        (iter([data(6).tensors]), 3, TypeError, "a list_iterator, which can be walked once"),
        (data(6), 3, TypeError, "loader is a TensorDataset, a dataset"),
        ([], 3, ValueError, "no batch of at least 2 samples"),
        ([data(1).tensors], 3, ValueError, "no batch of at least 2 samples"),
        (loader(), 0, ValueError, "steps=0 is not accepted; write a whole number of at least 1"),
        (loader(), 1.5, ValueError, r"steps=1.5 is not accepted"),
    ],
)
def test_what_cannot_be_verified_is_refused(batches, steps, error, message):
    with pytest.raises(error, match=message):
        make().verify(batches, steps)


class Infinite(PlainTrainer):
    def train_step(self, batch):
        return {"loss": super().train_step(batch)["loss"] * float("nan")}


class Detached(PlainTrainer):
    def train_step(self, batch):
        return {"loss": super().train_step(batch)["loss"].detach()}


class Backward(PlainTrainer):
    def train_step(self, batch):
        values = super().train_step(batch)
        values["loss"].backward()
        return values


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Infinite, "the gradient of 0.weight is not finite for a whole batch"),
        (Detached, "returned a loss without a graph"),
        (Backward, r"called loss.backward\(\)"),
    ],
)
def test_steps_that_cannot_train_are_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        verified(kind)


def test_a_model_that_cannot_be_copied_is_refused():
    model = network()
    model.lines = (line for line in "ab")
    with pytest.raises(TypeError, match=r"needs a deep copy of the model .* cannot pickle 'generator'"):
        verified(model=model)


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(TypeError, match="verify needs batches that can be cut"):
        verified(Texts, batches=[["a", "b"]])


class Texts(PlainTrainer):
    def train_step(self, batch):
        return {"loss": self.model(torch.ones(len(batch), 8)).mean()}


@pytest.mark.gpu
def test_a_trainer_on_another_device_is_verified_on_the_cpu():
    trainer = make(Collecting, model=network(nn.ReLU()), device="cuda")
    trainer.criterion.cuda()
    assert trainer.verify(loader())
    assert trainer.model[0].weight.is_cuda
    assert trainer.device != CPU
