"""A run of which something hangs: python -m tests.trainer.hangs.waiting_run WHAT MAX_WAIT, in each process."""

import os
import signal
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, get_worker_info

from zae_engine import Trainer

FIRST = os.environ.get("RANK", "0") == "0"
LAST = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)


class Data:
    """Of which the last process's workers do not get further than to sample 100."""

    def __init__(self, what):
        self.what = what

    def __len__(self):
        return 400

    def __getitem__(self, i):
        if LAST and get_worker_info() is not None and i >= 100:
            if self.what == "dataset":
                time.sleep(600)
            if self.what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "stopped worker":
                os.kill(os.getpid(), signal.SIGSTOP)
        return torch.ones(2)


class Waiting(Trainer):
    what = ""

    def train_step(self, batch):
        if FIRST and self.what == "first stopped" and self.progress_checker.get_step() == 12:
            os.kill(os.getpid(), signal.SIGSTOP)
        if LAST and self.progress_checker.get_step() == 12:
            if self.what == "code":
                time.sleep(600)
            if self.what == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.what == "raised":
                raise ArithmeticError("the user's own mistake")
        return {"loss": self.model(batch).mean()}

    test_step = train_step


def main(what, limit):
    torch.set_num_threads(1)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Waiting(model, "cpu", optimizer=optimizer, log_bar=False, max_wait=limit)
    trainer.what = what
    loader = DataLoader(Data(what), batch_size=8, num_workers=2)
    trainer.run(2, loader)
    if LAST and what == "between":
        time.sleep(600)
    trainer.run(1, loader)


if __name__ == "__main__":
    main(*sys.argv[1:])
