"""How long it takes to go on after a million steps: from ``run(resume='auto')`` to the end of the first step.

Run as ``python -m tests.benchmarks.restarting``; ``--help`` lists the options.

Nobody waits for a million steps here: a trainer is put at batch 999,999 of an epoch of 1,090,000 batches of 32, with
the losses and the lines of the history that such a run has by then. It makes one step more, saves, and breaks off. What
is timed is a fresh trainer in the same process, which takes that checkpoint up; the import is not part of it.

``verifying`` compares sizes and checksums, ``loading`` reads the state and gives it to the trainer, ``history`` reads
``history.jsonl``, ``order`` goes from the epoch's beginning to the first sample that is asked for, ``first batch`` from
there to the step, ``step`` is that step, and ``rest`` is the rest. ``drawing`` is the part of ``order`` that any
shuffled epoch has, wherever it begins: the permutation of all ids, measured by itself.
"""

from __future__ import annotations

import gc
import json
import tempfile
from array import array
from contextlib import suppress
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from zae_engine.trainer import Trainer
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.data.layout import ids_hash
from zae_engine.trainer.journal.journal import Journal
from zae_engine.trainer.resume.finder import Finder
from zae_engine.trainer.resume.position import go_to, position_of

from . import blocks
from .output import discarded
from .skipping import draw

POSITION, BATCHES = 1_000_000, 1_090_000
QUICK_POSITION, QUICK_BATCHES = 10_000, 11_000
BATCH_SIZE, SEED = 32, 5
PARTS = ("verifying", "loading", "history", "order", "first batch", "step", "rest", "all")


class Lazy(Dataset[Tensor]):
    """As many samples as are wanted, made when they are asked for."""

    def __init__(self, size: int) -> None:
        self.size, self.asked = size, 0.0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, sample: int) -> Tensor:
        self.asked = self.asked or perf_counter()
        return torch.full((8,), sample / self.size)


class BrokenOffError(Exception):
    """The step after the one that was wanted."""


class OneStep(Trainer):
    """Makes one step, and breaks off at the next one; notes when things begin."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.began: list[float] = []
        super().__init__(*args, **options)

    def run_epoch(self, loader: Any, **kwargs: Any) -> None:
        """Note it; samples that were asked for before are those by which a resume compares its data."""
        loader.dataset.asked = 0.0
        self.began.append(perf_counter())
        super().run_epoch(loader, **kwargs)

    def train_step(self, batch: Tensor) -> dict[str, Tensor]:
        """Note it."""
        self.began.append(perf_counter())
        if len(self.began) > 2:
            raise BrokenOffError
        return {"loss": self.model(batch).square().mean()}

    test_step = train_step


class TimedParts:
    """Inside, the times of the parts of taking a run up are summed by name."""

    parts = (("verifying", Finder, "find"), ("loading", Finder, "load"), ("history", Journal, "_open"))

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> TimedParts:
        self._own = [(cls, name, getattr(cls, name)) for _, cls, name in self.parts]
        for (part, _, _), (cls, name, method) in zip(self.parts, self._own, strict=True):
            setattr(cls, name, self._timed(part, method))
        return self

    def __exit__(self, *_: object) -> None:
        for cls, name, method in self._own:
            setattr(cls, name, method)

    def _timed(self, part: str, method: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - begin

        return timed


def make_loader(batches: int, shuffled: bool) -> DataLoader[Tensor]:
    """Return a fresh loader."""
    data = Lazy(BATCH_SIZE * batches)
    generator = torch.Generator().manual_seed(SEED)
    sampler = RandomSampler(data, generator=generator) if shuffled else SequentialSampler(data)
    return DataLoader(data, batch_size=BATCH_SIZE, sampler=sampler)


def make_trainer(folder: Path, position: int) -> Any:
    """Return a fresh trainer, which saves at that step."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    options: dict[str, Any] = {"device": "cpu", "optimizer": torch.optim.AdamW(model.parameters()), "seed": 0}
    kind: Any = OneStep.add_on(StateManagerAddon)
    return kind(model, **options, log_bar=True, save_path=folder, save_every=f"{position}st")


def ids_of(batches: int, shuffled: bool, batch: int) -> list[int]:
    """The ids of a global batch."""
    ids = range(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE)
    if not shuffled:
        return list(ids)
    order = torch.randperm(batches * BATCH_SIZE, generator=torch.Generator().manual_seed(SEED))
    return [int(i) for i in order[ids.start : ids.stop]]


def make_checkpoint(folder: Path, position: int, batches: int, shuffled: bool) -> None:
    """Let a trainer be where it would be after ``position - 1`` steps, and make one more, and save."""
    done = position - 1
    losses = array("d", (1.0 + 1.0 / (1 + step) for step in range(done)))
    folder.mkdir()
    with open(folder / "history.jsonl", "w", encoding="utf-8") as file:
        for begin in range(0, done, 1000):
            part = {"loss": losses[begin : begin + 1000].tolist()}
            file.write(json.dumps({"kind": "steps", "epoch": 1, "first": begin + 1, "values": part}) + "\n")
    trainer, loader = make_trainer(folder, position), make_loader(batches, shuffled)
    series = {"places": array("q", range(done)), "values": losses, "weights": array("d", [float(BATCH_SIZE)]) * done}
    log = {"batches": done, "scalars": {"loss": {**series, "kind": "torch.float32"}}, "other": {}}
    part = {"log": log, "measures": trainer._recorder.measures["train"].state()}
    ids = ids_hash([ids_of(batches, shuffled, done - 1)])
    generators = [torch.Generator().manual_seed(SEED).get_state()] if shuffled else []
    midway = {"midway": True, "batch": done, "ids": ids, "paused": True, "generators": generators}
    trainer.progress_checker.init_state(position, 1)
    recorder = trainer._recorder
    position = position_of(trainer, recorder, None)
    trainer._checkpointer.finder.loaded = go_to(recorder, {**position, **midway}, [part], None)
    with discarded("terminal"), suppress(BrokenOffError):
        trainer.run(1, loader)


def restart(folder: Path, position: int, batches: int, shuffled: bool) -> dict[str, float]:
    """Take the run up, and return the seconds of each part."""
    trainer, loader = make_trainer(folder, position), make_loader(batches, shuffled)
    gc.collect()
    with discarded("terminal"), TimedParts() as timed, suppress(BrokenOffError):
        begin = perf_counter()
        trainer.run(1, loader, resume="auto")
    if trainer.progress_checker.get_step() != position + 2:
        raise RuntimeError(f"it is at step {trainer.progress_checker.get_step():,}, not {position + 2:,}")
    epoch, step, end = trainer.began
    asked = loader.dataset.asked  # type: ignore[attr-defined]  # of Lazy
    parts = {**timed.seconds, "order": asked - epoch, "first batch": step - asked, "step": end - step}
    return {**parts, "rest": end - begin - sum(parts.values()), "all": end - begin}


def measure(shuffled: bool, quick: bool, repetitions: int) -> list[dict[str, Any]]:
    """Restart again and again, after once that does not count; return the figures of each part."""
    position, batches = (QUICK_POSITION, QUICK_BATCHES) if quick else (POSITION, BATCHES)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        make_checkpoint(folder, position, batches, shuffled)
        runs = [restart(folder, position, batches, shuffled) for _ in range(repetitions + 1)][1:]
    found = {part: [run[part] for run in runs] for part in PARTS}
    if shuffled:
        found["drawing"] = [draw(BATCH_SIZE * batches) for _ in range(repetitions)]
    return [
        {"row": part, "us": 1e6 * median(each), "s": median(each), "s_quartiles": blocks.quartiles(each)}
        for part, each in found.items()
    ]


def format_table(title: str, rows: list[dict[str, Any]]) -> str:
    """Lay out the seconds of each part."""
    lines = [f"{title}\n", f"{'':<12}  {'s':>7}  {'quartiles':>15}"]
    for row in rows:
        low, high = row["s_quartiles"]
        lines.append(f"{row['row']:<12}  {row['s']:>7.3f}  {f'{low:.3f} – {high:.3f}':>15}")
    return "\n".join(lines)


def main() -> None:
    """Print a table for each order."""
    options = blocks.parse("restarting", __doc__, repetitions=5)
    torch.set_num_threads(1)
    found = {}
    for shuffled in (False, True):
        title = "shuffled" if shuffled else "in order"
        found[title] = measure(shuffled, options.quick, options.repetitions)
        print(f"{format_table(title, found[title])}\n", flush=True)
    blocks.keep(found, options.json)


if __name__ == "__main__":
    main()
