"""Code written for zae-engine 0.7.6 runs without a change."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import assert_equal, loader, make, mlp, sgd, weights
from zae_engine.trainer import ProgressChecker, T, Trainer
from zae_engine.trainer._trainer import ProgressChecker as OldProgressChecker
from zae_engine.trainer._trainer import T as OldT
from zae_engine.trainer._trainer import Trainer as OldTrainer
from zae_engine.trainer.addons import AddOnBase, MultiGPUAddon, PrecisionMixerAddon
from zae_engine.trainer.addons.core import AddOnBase as OldAddOnBase
from zae_engine.trainer.addons.core import T as OldAddonT
from zae_engine.trainer.addons.mix_precision import PrecisionMixerAddon as OldPrecisionMixerAddon
from zae_engine.trainer.addons.mpu import MultiGPUAddon as OldMultiGPUAddon


class OldStyleTrainer(Trainer):
    """As the 0.7.6 documentation has it: a constructor of its own, metrics from the log, hooks around the loop."""

    def __init__(self, model, device, mode, optimizer, scheduler, *, criterion=None, **kwargs):
        super().__init__(model, device, mode, optimizer, scheduler, **kwargs)
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.batches = 0

    def train_step(self, batch):
        x, y = batch
        outputs = self.model(x)
        return {"loss": self.criterion(outputs, y), "output": outputs, "mean_output": torch.mean(outputs)}

    def test_step(self, batch):
        return self.train_step(batch)

    def run_batch(self, batch, **kwargs):
        self.batches += 1
        super().run_batch(batch, **kwargs)

    def metric_on_epoch_end(self):
        log = self.log_train if self.mode == "train" else self.log_test
        return {"spread": torch.cat(log["output"], dim=0).std().item(), "mean_loss": np.mean(log["loss"])}

    def check_better(self, cur_epoch, cur_loss):
        self.last = (cur_epoch, cur_loss)
        return super().check_better(cur_epoch, cur_loss)


class LegacyAddon(AddOnBase):
    """Takes its option out of kwargs and defines its class in `apply`, as every 0.7.6 add-on did."""

    @classmethod
    def apply(cls, base_cls):
        class TrainerWithLegacy(base_cls):
            def __init__(self, *args, **kwargs):
                self.heard = kwargs.pop("heard")
                super().__init__(*args, **kwargs)

            def logging(self, step_dict):
                super().logging(step_dict)
                self.heard.append(
                    {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in step_dict.items() if k == "loss"}
                )

        return TrainerWithLegacy


def old_trainer(kind=OldStyleTrainer, **options):
    model = mlp()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return kind(model, torch.device("cpu"), "train", optimizer, scheduler, log_bar=False, **options)


def test_the_old_import_paths_lead_to_the_same_objects():
    assert OldTrainer is Trainer
    assert (OldT, OldAddonT) == (T, T)
    assert OldProgressChecker is ProgressChecker
    assert OldAddOnBase is AddOnBase
    assert OldPrecisionMixerAddon is PrecisionMixerAddon
    assert OldMultiGPUAddon is MultiGPUAddon


def test_an_old_style_subclass_trains():
    trainer = old_trainer()
    trainer.run(2, loader(), loader(20))
    assert trainer.batches == 2 * (6 + 3)
    assert {"loss", "spread", "mean_loss", "mean_output"} <= set(trainer.test_metrics)
    assert trainer.last[0] == 1
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_an_old_style_add_on_is_stacked_and_listens():
    heard = []
    stacked = OldStyleTrainer.add_on(LegacyAddon)
    trainer = old_trainer(stacked, heard=heard)
    trainer.run(1, loader())
    assert stacked is OldStyleTrainer.add_on(LegacyAddon)
    assert [entry["loss"] for entry in heard] == pytest.approx(trainer.get_loss_history())


def test_an_old_style_add_on_changes_no_weights():
    plain, listened = old_trainer(seed=1), old_trainer(OldStyleTrainer.add_on(LegacyAddon), heard=[], seed=1)
    plain.run(1, loader(shuffle=True))
    listened.run(1, loader(shuffle=True))
    assert_equal(weights(plain.model), weights(listened.model))


def test_scheduler_none_trains():
    trainer = make()
    trainer.run(1, loader())
    assert trainer.scheduler is None


@pytest.mark.parametrize(
    ("precision", "wanted"), [("auto", "no"), ("fp32", "no"), ("bf16", "bf16"), (["fp16", "bf16"], "bf16")]
)
def test_the_precision_add_on_chooses(precision, wanted):
    trainer = old_trainer(OldStyleTrainer.add_on(PrecisionMixerAddon), precision=precision)
    assert trainer.accelerator.mixed_precision == wanted


def test_the_precision_add_on_refuses():
    stacked = OldStyleTrainer.add_on(PrecisionMixerAddon)
    with pytest.raises(ValueError, match=r"precision='fp61' is not known; .*did you mean 'fp16'\?"):
        old_trainer(stacked, precision="fp61")
    with pytest.raises(ValueError, match="precision=16 is not known; write one of 'auto', 'fp32'"):
        old_trainer(stacked, precision=16)
    with pytest.raises(ValueError, match="precision='fp16': 'cpu' has none of these"):
        old_trainer(stacked, precision="fp16")


def test_progress_is_counted_from_one():
    trainer = old_trainer()
    assert (trainer.progress_checker.get_step(), trainer.progress_checker.get_epoch()) == (1, 1)
    trainer.run(1, loader(), loader(20))
    assert (trainer.progress_checker.get_step(), trainer.progress_checker.get_epoch()) == (7, 2)
    trainer.progress_checker.init_state()
    assert trainer.progress_checker.get_epoch() == 1
