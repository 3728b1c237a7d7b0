"""Whether training on micro-batches gives the model that training on whole batches gives.

Run as ``python -m tests.benchmarks.accumulation``. Every trainer trains from the same weights, once on batches of
32 and once on micro-batches of 8 that it accumulates 4 times, set up as its documentation says. Peers that are not
installed are left out.

1,797 samples end in a batch of 5, which is a single micro-batch; 1,789 samples end in a batch of 29, which is four
of them, the last one smaller.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch.nn.functional import cross_entropy

from . import loops
from .digits import BATCH_SIZE, EPOCHS, DigitsTask, make_dataset
from .output import discarded
from .zae import StampedTrainer

Train = Callable[[DigitsTask], None]

PARTS = 4
SAMPLES = (1797, 1789)

# Name of the peer, and its module in `peers`.
PEERS = {
    "lightning": "accumulate_lightning",
    "transformers": "accumulate_transformers",
    "pytorch-accelerated": "accumulate_pytorch_accelerated",
    "ignite": "accumulate_ignite",
    "torchtnt": "accumulate_torchtnt",
    "composer": "accumulate_composer",
}


def train_pytorch(task: DigitsTask) -> None:
    """Train on whole batches with PyTorch alone."""
    model, optimizer = task.model, task.optimizer()
    model.train()
    for _ in range(task.epochs):
        for x, y in task.whole_loader():
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()


def train_accelerate(task: DigitsTask) -> None:
    """Train with Accelerate, as its documentation writes the loop."""
    loops.train_accelerate(task, epochs=task.epochs, gradient_accumulation_steps=task.parts)


def train_zae(task: DigitsTask) -> None:
    """Train with zae-engine, which gets whole batches and cuts them itself."""
    trainer = StampedTrainer(
        task,
        mode="train",
        optimizer=task.optimizer(),
        gradient_accumulation_steps=task.parts,
        log_bar=True,
        seed=0,
    )
    trainer.run(n_epoch=task.epochs, loader=task.whole_loader())


@dataclass(frozen=True)
class Outcome:
    """What became of one trainer's two runs."""

    name: str
    difference: float
    from_pytorch: float
    steps: tuple[int, int]


def load_trainers() -> tuple[dict[str, Train], dict[str, str]]:
    """Import the peers.

    Returns
    -------
    tuple
        How each trainer trains, and for each peer that cannot be imported the reason.
    """
    trainers: dict[str, Train] = {"accelerate": train_accelerate}
    skipped: dict[str, str] = {}
    for peer, module in PEERS.items():
        try:
            with discarded("file"):
                trainers[peer] = import_module(f"{__package__}.peers.{module}").train
        except ImportError as error:
            skipped[peer] = str(error)
    trainers["zae-engine"] = train_zae
    return trainers, skipped


def run(train: Train, task: DigitsTask) -> DigitsTask:
    """Train in silence, and return the task."""
    # A trainer may have changed this for the whole process.
    torch.set_num_threads(1)
    with discarded("file"):
        train(task)
    return task


def largest_difference(one: DigitsTask, other: DigitsTask) -> float:
    """Return the largest absolute difference between two runs' weights."""
    return max(float((a - b).abs().max()) for a, b in zip(one.weights(), other.weights(), strict=True))


def compare(trainers: dict[str, Train], samples: int) -> list[Outcome]:
    """Train with every trainer, on whole batches and on micro-batches."""
    data = make_dataset(samples)
    reference = run(train_pytorch, DigitsTask(data, 1))
    outcomes = []
    for name, train in trainers.items():
        whole, cut = run(train, DigitsTask(data, 1)), run(train, DigitsTask(data, PARTS))
        distances = largest_difference(whole, cut), largest_difference(whole, reference)
        outcomes.append(Outcome(name, *distances, (whole.steps, cut.steps)))
    return outcomes


def format_table(outcomes: Sequence[Outcome]) -> str:
    """Lay the outcomes out."""
    micro = f"{PARTS} x {BATCH_SIZE // PARTS}"
    width = max(len(outcome.name) for outcome in outcomes)
    lines = [
        f"{'':<{width}}  {'largest weight difference':^34}  {'optimizer steps':^15}",
        f"{'trainer':<{width}}  {f'{BATCH_SIZE} to {micro}':>15}  {f'{BATCH_SIZE} to PyTorch':>17}"
        f"  {BATCH_SIZE:>7}  {micro:>6}",
    ]
    lines += [
        f"{o.name:<{width}}  {o.difference:>15.1e}  {o.from_pytorch:>17.1e}  {o.steps[0]:>7}  {o.steps[1]:>6}"
        for o in outcomes
    ]
    return "\n".join(lines)


def main() -> None:
    """Print a table for each number of samples."""
    # Trainers that pick a device themselves would leave the CPU otherwise.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    trainers, skipped = load_trainers()
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    for samples in SAMPLES:
        batches, last = -(-samples // BATCH_SIZE), samples % BATCH_SIZE or BATCH_SIZE
        print(f"{samples:,} samples, {EPOCHS} epochs of {batches} batches, the last one of {last}\n")
        print(f"{format_table(compare(trainers, samples))}\n", flush=True)


if __name__ == "__main__":
    main()
