"""No step reads a value that lies on a device: that would wait for it.

The device of these tests is torch's ``meta``, on which whoever reads a value gets an error; the epoch's end does.
What a GPU makes of it is in tests/test_gpu.py.
"""

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from tests.benchmarks.calls import Accuracy, Outputs
from tests.helpers import PlainTrainer, make, mlp
from zae_engine.trainer.addons import EarlyStoppingAddon, StateManagerAddon

META = torch.device("meta")
STEPS = 12


class Counting(PlainTrainer):
    """Counts its items on the device."""

    def train_step(self, batch):
        return {**super().train_step(batch), "num_items": (batch[1] >= 0).sum()}

    test_step = train_step


class Reading(PlainTrainer):
    """Reads the loss of one step."""

    def train_step(self, batch):
        values = super().train_step(batch)
        return {**values, "read": values["loss"].item()} if self.progress_checker.get_step() == 3 else values


def trainer_on_meta(kind=PlainTrainer, options=lambda optimizer: {}, add_ons=(), **more):
    model = mlp(0.3).to(META)
    model.hf_device_map = {"0": 0, "3": 1}  # such a model is not brought to the trainer's device
    optimizer = torch.optim.AdamW(model.parameters())
    return make(kind.add_on(*add_ons), model=model, optimizer=optimizer, **(options(optimizer) | more))


def batches():
    return [(torch.ones(8, 8, device=META), torch.zeros(8, dtype=torch.long, device=META)) for _ in range(STEPS)]


def steps_until_something_is_read(trainer):
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        trainer.run(1, batches())
    return trainer.progress_checker.get_step() - 1


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PlainTrainer, lambda optimizer: {}),
        (PlainTrainer, lambda optimizer: {"gradient_clip": 1.0}),
        (PlainTrainer, lambda optimizer: {"scheduler": StepLR(optimizer, 3), "scheduler_step_on_batch": True}),
        (PlainTrainer, lambda optimizer: {"gradient_accumulation_steps": 4}),
        (PlainTrainer, lambda optimizer: {"shards": 4}),
        (PlainTrainer, lambda optimizer: {"mixed_precision": "bf16"}),
        (Counting, lambda optimizer: {}),
        (Counting, lambda optimizer: {"gradient_accumulation_steps": 4}),
        (Outputs, lambda optimizer: {"metrics": {"acc": Accuracy()}}),
    ],
    ids=["plain", "clip", "schedule", "accumulation", "shards", "bf16", "items", "items, accumulation", "metrics"],
)
def test_a_step_reads_nothing(kind, options):
    assert steps_until_something_is_read(trainer_on_meta(kind, options)) == STEPS


def test_a_step_beside_add_ons_reads_nothing(tmp_path):
    add_ons = (StateManagerAddon, EarlyStoppingAddon)
    options = {"save_path": tmp_path, "save_every": "100st", "log_every": "100st"}  # by no clock
    trainer = trainer_on_meta(add_ons=add_ons, **options)
    assert steps_until_something_is_read(trainer) == STEPS


def test_an_evaluation_step_reads_nothing():
    class Tested(PlainTrainer):
        seen = 0

        def test_step(self, batch):
            self.seen += 1
            return super().test_step(batch)

    trainer = trainer_on_meta(Tested, mode="test")
    steps_until_something_is_read(trainer)
    assert trainer.seen == STEPS


def test_a_step_of_ones_own_that_reads_is_found_out():
    trainer = trainer_on_meta(Reading)
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        trainer.run(1, batches())
    assert trainer.progress_checker.get_step() == 3
