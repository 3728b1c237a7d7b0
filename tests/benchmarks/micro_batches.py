"""What a step of micro-batches costs: trainers that accumulate, beside a loop by hand that does.

They are the trainers of `accumulation`, on the tiny model of `processes`, in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from . import blocks
from .accumulation import PARTS, load_trainers
from .blocks import Block
from .shares import Problem, Rows, sizes, train_by_hand
from .task import BATCH_SIZE

BY_HAND = "by hand"


class Pieces:
    """A problem, as the trainers of `accumulation` want to see it.

    Parameters
    ----------
    problem : Problem
    parts : int
        Micro-batches to a batch.
    """

    def __init__(self, problem: Problem, parts: int) -> None:
        self.problem, self.parts, self.micro_size, self.epochs = problem, parts, BATCH_SIZE // parts, 1
        self.model, self.data, self.optimizer = problem.model, problem.data, problem.optimizer
        self.whole_loader = problem.loader
        self._micro_batches = 0

    def loader(self) -> Any:
        """Return the loader of micro-batches."""
        return self.problem.own_loader(self.parts)

    def stamp(self) -> None:
        """Note the time of the first micro-batch of each step; the trainers call this for every one."""
        if self._micro_batches % self.parts == 0:
            self.problem.stamp()
        self._micro_batches += 1


def train_pieces(train: Callable[[Any], None], problem: Problem) -> None:
    """Train with one of the trainers of `accumulation`."""
    train(Pieces(problem, PARTS))


def measure(quick: bool, repetitions: int, only: Sequence[str]) -> dict[str, Any]:
    """Measure the loop by hand and the trainers that `only` names.

    Returns
    -------
    dict
        What was skipped, and what the rows took.
    """
    trainers, skipped = load_trainers()
    by_hand = partial(train_by_hand, pieces=PARTS)
    ways = {BY_HAND: by_hand, f"{BY_HAND} again": by_hand}
    ways |= {name: partial(train_pieces, train) for name, train in trainers.items() if name in only}
    run = Rows(sizes(quick)[0])
    table = [Block(name, run.block(name, train), BY_HAND) for name, train in ways.items()]
    rows = [comparison.as_dict() for comparison in blocks.alternate(table, repetitions)]
    for row in rows:
        row["weight_difference"] = run.difference(row["row"], BY_HAND)
    return {"skipped": skipped, "rows": rows}
