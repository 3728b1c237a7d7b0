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
from torch.utils.data import DataLoader

from zae_engine.trainer import Trainer

from .output import discarded

STEPS_PER_EPOCH = 1000
# Allocators and caches have settled by then.
SETTLED = 0.2
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
    """Classify, noting the resident set size after each epoch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rss: list[int] = []

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        x, y = batch
        return {"loss": cross_entropy(self.model(x), y)}

    test_step = train_step

    def run_epoch(self, loader: Any, **kwargs: Any) -> Any:
        """Walk the loader, then take a sample."""
        result = super().run_epoch(loader, **kwargs)
        self.rss.append(resident_bytes())
        return result


def sample(epochs: int) -> list[int]:
    """Train a tiny model with its bar on, and return the size after each epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches = [(torch.randn(4, 8), torch.randint(2, (4,))) for _ in range(STEPS_PER_EPOCH)]
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = SampledTrainer(model, device="cpu", mode="train", optimizer=optimizer, log_bar=True, seed=0)
    with discarded("terminal"):
        trainer.run(n_epoch=epochs, loader=DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return trainer.rss


def measure_memory(steps: int) -> dict[str, float]:
    """Train for `steps` steps in a fresh process, where no freed memory of other rows hides a growth.

    Returns
    -------
    dict
        The bytes after a fifth of the steps and after all, and the growth between them in bytes a step.
    """
    epochs = max(steps // STEPS_PER_EPOCH, 5)
    command = [sys.executable, "-m", "tests.benchmarks.memory", str(epochs)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    sizes: list[int] = json.loads(output)
    settled = round(epochs * SETTLED)
    between = (epochs - settled) * STEPS_PER_EPOCH
    return {
        "settled_steps": settled * STEPS_PER_EPOCH,
        "steps": epochs * STEPS_PER_EPOCH,
        "settled_bytes": sizes[settled - 1],
        "bytes": sizes[-1],
        "bytes_per_step": (sizes[-1] - sizes[settled - 1]) / between,
    }


if __name__ == "__main__":
    print(json.dumps(sample(int(sys.argv[1]))))
