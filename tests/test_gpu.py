"""What needs a CUDA device: ``pytest -m gpu``."""

import pytest
import torch

from tests.helpers import MLPTrainer, PlainTrainer, assert_equal, largest_difference, loader, make, mlp, sgd, weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def train(**options):
    model = mlp()
    optimizer = sgd(model)
    trainer = make(MLPTrainer, model=model, optimizer=optimizer, device="cuda", **options)
    trainer.run(2, loader(), loader(20))
    return trainer


def test_weights_equal_a_loop_by_hand_to_the_bit():
    model = mlp().cuda()
    optimizer = sgd(model)
    for _ in range(2):
        for x, y in loader():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x.cuda()), y.cuda()).backward()
            optimizer.step()
    assert_equal(weights(train().model), weights(model))


def test_a_step_that_shows_nothing_does_not_wait_for_the_device():
    class Strict(PlainTrainer):
        def run_batch(self, batch, **kwargs):
            torch.cuda.set_sync_debug_mode("error" if self.progress_checker.get_step() > 1 else "default")
            try:
                super().run_batch(batch, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    model = mlp()
    batches = list(loader(pin_memory=True))
    make(Strict, model=model, optimizer=sgd(model), device="cuda", gradient_clip=1.0).run(2, batches, batches)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(precision):
    trainer = train(mixed_precision=precision, gradient_clip=1.0)
    assert trainer.history[-1]["train_loss"] < trainer.history[0]["train_loss"]
    assert (trainer.accelerator.scaler is not None) == (precision == "fp16")


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
