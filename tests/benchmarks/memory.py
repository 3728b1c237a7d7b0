"""Memory that a long run keeps. Run as a module, it prints the samples of a fresh process as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from zae_engine.trainer import Trainer
from zae_engine.trainer.records.losses import MOST

from .output import discarded

ROOT = Path(__file__).resolve().parents[2]


def resident_bytes() -> int:
    """Return this process's resident set size."""
    try:
        import psutil
    except ImportError:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return int(psutil.Process().memory_info().rss)


class SampledTrainer(Trainer):
    """Classify, noting the resident set size before some steps."""

    def __init__(self, moments: list[int], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._moments, self.sizes = iter(moments), list[int]()
        self._step, self._next = 0, next(self._moments)

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        if self._step == self._next:
            self.sizes.append(resident_bytes())
            self._next = next(self._moments, -1)
        self._step += 1
        x, y = batch
        return {"loss": cross_entropy(self.model(x), y)}

    test_step = train_step


class Repeated(Dataset[tuple[Tensor, Tensor]]):
    """Ready batches, the same ones again and again."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._batches = [(torch.randn(4, 8), torch.randint(2, (4,))) for _ in range(100)]

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._batches[index % len(self._batches)]


def moments_of(steps: int) -> list[int]:
    """The steps before which the size is noted: when caches have settled, in the middle, and at the end.

    A log keeps the values of 131,072 steps for sure, and up to twice as many; in the middle there should be more.
    """
    return [steps // 20, steps // 2, steps - 1]


def sample(steps: int) -> list[int]:
    """Train a tiny model with its bar on for an epoch, and return its sizes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options: dict[str, Any] = {"device": "cpu", "mode": "train", "optimizer": optimizer, "log_bar": True, "seed": 0}
    trainer = SampledTrainer(moments_of(steps), model, **options)
    with discarded("terminal"):
        trainer.run(n_epoch=1, loader=DataLoader(Repeated(steps), batch_size=None))
    return trainer.sizes


def growth_of_an_epoch(steps: int) -> dict[str, Any]:
    """Train for an epoch of so many steps in a fresh process, where no freed memory of others hides a growth.

    Returns
    -------
    dict
        The bytes at three moments, and what an epoch of 10 million steps adds: it goes on as in the second half, until
        as many losses are kept as ever are. That they are no more is what the tests of `EpochLog` say.
    """
    command = [sys.executable, "-m", "tests.benchmarks.memory", str(steps)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    first, middle, last = sizes = json.loads(output)
    moments = moments_of(steps)
    slope = (last - middle) / (moments[2] - moments[1])
    return {"steps": moments, "bytes": sizes, "ten_million": last - first + max(slope, 0) * (2 * MOST - moments[2])}


if __name__ == "__main__":
    print(json.dumps(sample(int(sys.argv[1]))))
