"""What is trained on each number of processes. A case returns what every process has to agree on, or tells itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from tests.distributed import problem

TABLE = {
    f"{kind}-{name}-{parts}-{samples}": partial(
        dict, kind=kind, dtype=dtype, optimizer=optimizer, parts=parts, samples=samples
    )
    for kind in ("mlp", "ln")
    for name, dtype, optimizer in (
        ("f32-sgd", torch.float32, "sgd"),
        ("f64-sgd", torch.float64, "sgd"),
        ("f64-adamw", torch.float64, "adamw"),
    )
    for parts in (1, 2, 4)
    for samples in (1797,)
}


def table(kind, dtype, optimizer, parts, samples):
    trainer = problem.trainer_for(kind, dtype, optimizer, gradient_accumulation_steps=parts)
    held_out = problem.loader(359, dtype, shuffle=False)
    trainer.run(problem.EPOCHS, problem.loader(samples, dtype), held_out)
    return {"weights": problem.weights(trainer.model), "seen": trainer.seen, "rows": trainer.history.rows}


def cases() -> dict[str, Callable[[], dict]]:
    return {name: partial(table, **settings()) for name, settings in TABLE.items()}
