"""What needs a CUDA device: ``pytest -m gpu``."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from tests.benchmarks.gpu.probes import on_waits
from tests.helpers import MLPTrainer, PlainTrainer, assert_equal, largest_difference, loader, make, mlp, sgd, weights
from tests.trainer.addons.resumed import assert_resumes, build
from zae_engine.trainer.addons import StateManagerAddon

CUDA = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def train(kind=MLPTrainer, batches=None, dropout=0.0, **options):
    model = mlp(dropout)
    options = {"model": model, "optimizer": sgd(model), "device": CUDA} | options
    trainer = make(kind, **options)
    trainer.run(2, loader() if batches is None else batches, loader(20))
    return trainer


def test_weights_equal_a_loop_by_hand_to_the_bit():
    model = mlp().to(CUDA)
    optimizer = sgd(model)
    for _ in range(2):
        for x, y in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.to(CUDA)), y.to(CUDA)).backward()
            optimizer.step()
    assert_equal(weights(train().model), weights(model))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(precision):
    trainer = train(mixed_precision=precision, gradient_clip=1.0)
    assert trainer.history[-1]["train_loss"] < trainer.history[0]["train_loss"]
    assert (trainer.accelerator.scaler is not None) == (precision == "fp16")


def test_bf16_equals_a_loop_by_hand_to_the_bit():
    model = mlp().to(CUDA)
    optimizer = sgd(model)
    for _ in range(2):
        for x, y in loader():
            optimizer.zero_grad()
            with torch.autocast(CUDA, torch.bfloat16):
                loss = nn.functional.cross_entropy(model(x.to(CUDA)), y.to(CUDA))
            loss.backward()
            optimizer.step()
    assert_equal(weights(train(mixed_precision="bf16").model), weights(model))


def test_accumulation_does_not_change_the_result():
    assert largest_difference(weights(train().model), weights(train(gradient_accumulation_steps=4).model)) <= 1e-6


def test_logs_best_weights_and_outputs_are_on_the_cpu():
    trainer = train()
    assert all(v.device.type == "cpu" for v in trainer.log_train["output"])
    assert all(v.device.type == "cpu" for v in trainer.weight_buffer["weight"][-1].values())
    assert all(v.device.type == "cpu" for v in trainer.inference(loader()))


def test_inference_leaves_the_devices_stream_as_it_was():
    trainer = train()
    before = torch.cuda.get_rng_state()
    trainer.inference(loader())
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_device_by_number():
    trainer = make(device="cuda:0")
    assert trainer.device == torch.device("cuda:0")
    with pytest.raises(ValueError, match="device 'cuda:99' is not there"):
        make(device="cuda:99")


# ---------------------------------------------------------------------- nothing waits for the device


class Strict(PlainTrainer):
    """From one step to another, whatever waits for the device is an error; the first steps are looked at closely."""

    first, last = 4, 20

    def train_step(self, batch):
        step = self.progress_checker.get_step()
        if step in (self.first, self.last):
            on_waits("error" if step == self.first else "default")
        return super().train_step(batch)


class Counting(Strict):
    """Counts its items on the device."""

    def train_step(self, batch):
        return {**super().train_step(batch), "num_items": (batch[1] >= 0).sum()}

    test_step = train_step


@pytest.fixture
def strictly():
    """After it, nothing is an error any more."""
    yield
    on_waits("default")


def scheduled(optimizer):
    return {"scheduler": StepLR(optimizer, 1000), "scheduler_step_on_batch": True}


@pytest.mark.usefixtures("strictly")
@pytest.mark.parametrize("beside", ["0", "1"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Strict, lambda optimizer: {}),
        (Strict, lambda optimizer: {"gradient_clip": 1.0} | scheduled(optimizer)),
        (Strict, lambda optimizer: {"gradient_accumulation_steps": 4}),
        (Strict, lambda optimizer: {"mixed_precision": "bf16"}),
        (Counting, lambda optimizer: {}),
        (Counting, lambda optimizer: {"gradient_accumulation_steps": 4}),
    ],
    ids=["plain", "clipped, a schedule per batch", "accumulation", "bf16", "items", "items, accumulation"],
)
def test_no_step_that_shows_nothing_waits_for_the_device(monkeypatch, kind, options, beside):
    monkeypatch.setenv("ZAE_COPY_STREAM", beside)
    model = mlp(0.3)
    optimizer = torch.optim.AdamW(model.parameters())
    trainer = make(kind, model=model, optimizer=optimizer, device=CUDA, **options(optimizer))
    trainer.run(1, loader(8 * 24, pin_memory=True))
    assert trainer.progress_checker.get_step() - 1 == 24


@pytest.mark.usefixtures("strictly")
def test_nor_does_one_beside_a_state_manager(tmp_path):
    model = mlp()
    kind = Strict.add_on(StateManagerAddon)
    options = {"save_path": tmp_path, "save_every": "100st", "log_every": "100st"}
    trainer = make(kind, model=model, optimizer=sgd(model), device=CUDA, **options)
    trainer.run(1, loader(8 * 24, pin_memory=True))
    assert trainer.progress_checker.get_step() - 1 == 24


@pytest.mark.usefixtures("strictly")
def test_nor_does_an_evaluation():
    class StrictTest(PlainTrainer):
        seen = 0

        def test_step(self, batch):
            self.seen += 1
            if self.seen in (4, 20):
                on_waits("error" if self.seen == 4 else "default")
            return super().test_step(batch)

    trainer = make(StrictTest, device=CUDA, mode="test", optimizer=None)
    trainer.run(1, loader(8 * 24, pin_memory=True))
    assert trainer.seen == 24


@pytest.mark.usefixtures("strictly")
def test_a_step_that_reads_a_value_is_found_out():
    class Reading(Strict):
        def train_step(self, batch):
            values = super().train_step(batch)
            return {**values, "read": values["loss"].item()}

    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        make(Reading, device=CUDA).run(1, loader(8 * 24, pin_memory=True))


# ---------------------------------------------------------------------- copies on a stream of their own


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    "settings",
    [{}, {"pin_memory": True}, {"pin_memory": True, "num_workers": 2}],
    ids=["pageable", "pinned", "pinned, workers"],
)
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 3}, {"shards": 4}])
def test_a_stream_for_copies_changes_no_bit(monkeypatch, settings, options):
    def outcome(beside):
        monkeypatch.setenv("ZAE_COPY_STREAM", beside)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of a fork in a process with threads
            trainer = train(batches=loader(shuffle=True, **settings), dropout=0.3, **options)
        return trainer, trainer.inference(loader(20))

    (trainer, outputs), (usual, wanted) = outcome("1"), outcome("0")
    assert_equal(weights(trainer.model), weights(usual.model))
    assert trainer.get_loss_history() == usual.get_loss_history()
    assert trainer.get_loss_history("test") == usual.get_loss_history("test")
    assert all(torch.equal(*pair) for pair in zip(outputs, wanted, strict=True))


class Slow(PlainTrainer):
    """The device is far behind the host when it reads a batch, whose numbers are all alike."""

    def train_step(self, batch):
        for _ in range(20):
            self.work = (self.work @ self.work).clamp(-1, 1)
        low, high = batch[0].aminmax()
        return {"loss": self.model(batch[0][:, :8]).sigmoid().mean(), "low": low, "high": high}


def test_no_copy_is_overwritten_before_it_is_read(monkeypatch):
    monkeypatch.setenv("ZAE_COPY_STREAM", "1")
    count, rows = 40, 64
    whole = torch.arange(count).repeat_interleave(rows)[:, None].expand(-1, 2**15).float()  # 8 MB a batch
    batches = DataLoader(TensorDataset(whole), batch_size=rows, pin_memory=True)
    trainer = make(Slow, device=CUDA)
    trainer.work = torch.randn(2048, 2048, device=CUDA)
    trainer.run(1, batches)
    assert [float(v) for v in trainer.log_train["low"]] == list(range(count))
    assert [float(v) for v in trainer.log_train["high"]] == list(range(count))


@pytest.mark.parametrize("beside", ["0", "1"])
def test_a_run_goes_on_from_each_of_its_steps(monkeypatch, tmp_path, beside):
    monkeypatch.setenv("ZAE_COPY_STREAM", beside)

    def script(folder):
        trainer = build(folder, device=CUDA)
        batches = loader(21, shuffle=True, pin_memory=True)
        trainer.run(2, batches, loader(10), valid_every="2st", resume="auto")
        return trainer

    assert assert_resumes(tmp_path, script) == 6


# ---------------------------------------------------------------------- fused optimizers


def fused(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


def test_a_fused_optimizer_trains_as_by_hand_to_the_bit():
    model, trained = mlp().to(CUDA), mlp()
    optimizer = fused(model)
    for _ in range(2):
        for x, y in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.to(CUDA)), y.to(CUDA)).backward()
            optimizer.step()
    assert_equal(weights(train(PlainTrainer, model=trained, optimizer=fused(trained)).model), weights(model))


def test_a_run_with_a_fused_optimizer_goes_on_from_each_of_its_steps(tmp_path):
    def script(folder):
        trainer = build(folder, optimizer=fused, device=CUDA)
        trainer.run(2, loader(21, shuffle=True), resume="auto")
        return trainer

    assert assert_resumes(tmp_path, script) == 6
