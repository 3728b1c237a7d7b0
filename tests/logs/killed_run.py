"""A training with two loggers that is killed (kill -9): ``python -m tests.logs.killed_run FOLDER 8``, before step 8.

A third argument is its ``log_every``.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from tests.helpers import MLPTrainer, loader, make
from zae_engine.trainer.addons import CSVLoggerAddon, StateManagerAddon, TensorBoardLoggerAddon


class Killed(MLPTrainer):
    kill_at = 0

    def train_step(self, batch):
        if self.kill_at - 3 < self.progress_checker.get_step():
            time.sleep(0.1 * (self.kill_at > 0))  # what is written beside the training is written when the kill comes
        if self.progress_checker.get_step() == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)

    test_step = MLPTrainer.train_step


def train(folder, kill_at=0, kind=Killed, **options):
    """Of 18 steps, with a checkpoint at every fifth, and a validation at every fourth."""
    options = {"save_path": folder, "log_every": "1st", "save_every": "5st", "save_async": False} | options
    trainer = make(kind.add_on(StateManagerAddon, CSVLoggerAddon, TensorBoardLoggerAddon), **options)
    trainer.kill_at = kill_at
    trainer.run(3, loader(shuffle=True), loader(11), valid_every="4st", resume="auto")
    trainer.close_loggers()
    return trainer


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), **({"log_every": sys.argv[3]} if len(sys.argv) > 3 else {}))
