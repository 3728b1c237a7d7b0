"""A small training with a run folder, which can be killed: ``python -m tests.logs.digits_run FOLDER STEP``."""

from __future__ import annotations

import os
import signal
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers import MLPTrainer, digits
from zae_engine.trainer.addons import StateManagerAddon


class DigitsTrainer(MLPTrainer):
    kill_at = 0

    def train_step(self, batch):
        if self.progress_checker.get_step() == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)

    test_step = MLPTrainer.train_step


def train(folder, kill_at=0, epochs=3):
    points, targets = digits()
    data = TensorDataset(torch.tensor(points, dtype=torch.float32) / 16, torch.tensor(targets))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = {
        "optimizer": optimizer,
        "seed": 0,
        "log_bar": False,
        "gradient_clip": 1.0,
        "save_every": "5st",
        "save_async": False,
    }
    trainer = DigitsTrainer.add_on(StateManagerAddon)(model, "cpu", save_path=folder, **options)
    trainer.kill_at = kill_at
    held_out = DataLoader(TensorDataset(*data[:297]), 64)
    trainer.run(epochs, DataLoader(TensorDataset(*data[297:]), 150, shuffle=True), held_out, resume="auto")
    return trainer


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]))
