"""Whether a user's step gives the same gradients whole and in pieces, and if not, why: found by experiment."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ...checkpoint.parameter_names import own_name
from .. import refusals
from ..data.batch_entries import PerSample, per_sample
from ..data.cut import Marks, Path, count_samples, even_edges, in_words
from ..data.plan import BatchPlan
from ..data.random_streams import generators_kept, set_streams, streams_kept
from ..data.sample_ids import like_loader
from ..interface import Face
from ..processes.group import is_sharded
from ..step.modes import Modes
from .step_replay import COARSE_FLOOR, CPU, CannotRunError, Replay, differences

_NORM = "NAME"
_CAUSES = {
    "dropout": "dropout draws other masks for a piece than for the whole batch",
    "norms": f"BatchNorm ({_NORM} first) takes its statistics over a piece: take GroupNorm or LayerNorm, or"
    " sync_batchnorm=True for processes on GPUs",
    "random": "the step draws random numbers, others for a piece than for the whole batch",
    "buffers": "the forward moves a buffer by what is in the batch",
    "couples": "a sample's loss depends on the others in its batch (in-batch negatives, statistics of the batch)",
    "sum": "the loss is a sum over the samples: return their mean (reduction='mean')",
    "items": "the loss is a mean over something else than the samples (unmasked tokens, class weights): return of how"
    " many, or of which sum of weights, it is the mean, {'loss': loss, 'num_items': mask.sum()}",
    "wrong items": "'num_items' is not what the loss is the mean of: return the number by which the step divides",
    "empty": "the gradient is not finite for a piece, as of a mean over none: divide by mask.sum().clamp(min=1), and"
    " return mask.sum() as 'num_items'",
    "other": "the loss is not the mean of its samples' losses: return that, or what it is the mean of as 'num_items'",
}
_FIXED_BY_SHARDS = {"dropout", "norms", "random", "buffers", "couples"}


@dataclass(frozen=True, repr=False)
class Verification:
    """What `Trainer.verify` has found; true when the step is invariant.

    Attributes
    ----------
    invariant : bool
        Whether gradients and buffers were the same whole and in pieces, but for rounding.
    tensor : str or None
        The first parameter whose gradient differs (or the first buffer that does), by its name in the model; None when
        none does, or when the step failed on a piece.
    difference : float
        The largest difference within that tensor (of all tensors, when none differs), relative to its largest entry.
    cause : str or None
        Why, and what helps.
    pieces : str
        The samples of the pieces that differ, as ``'8+8'``; of all cuts tried, when none does.
    precision : str
        ``'float64'``, or what the step computes in where it cannot do otherwise.
    """

    invariant: bool
    tensor: str | None
    difference: float
    cause: str | None
    pieces: str
    precision: str

    def __bool__(self) -> bool:
        return self.invariant

    def __repr__(self) -> str:
        if self.invariant:
            return (
                f"invariant: the same gradients whole and cut into {self.pieces}"
                f" (in {self.precision}; relative differences up to {self.difference:.0e})"
            )
        what = f"{self.tensor} differs by {self.difference:.1e}, relatively," if self.tensor else "the step fails"
        return f"not invariant: {what} when a batch is cut into {self.pieces} (in {self.precision});\n{self.cause}"


def verify(trainer: Face, modes: Modes, instead: dict[str, Any], loader: Any, steps: int) -> Verification:
    """See `Trainer.verify`, which is this; `modes` and `instead` are as `Replay` has them."""
    refusals.check_loader(loader, "loader")
    refusals.check_number("steps", steps, 1, whole=True)
    if isinstance(loader, Iterator):
        raise TypeError(
            f"loader is a {type(loader).__name__}, which can be walked once, and verify would take its first batches;"
            " give an iterable that starts anew each time, such as a DataLoader or a list"
        )
    if is_sharded(trainer.model):
        raise ValueError(
            "verify needs the whole model, but this process has a part of it; call it in a run without FSDP"
        )
    with _surroundings(trainer, loader):
        cutting = per_sample(loader)
        batches, marks = _first(loader, steps, cutting)
        if not batches:
            raise ValueError("the loader gave no batch of at least 2 samples, so there is nothing to cut")
        doubtful = [path for path, cuts in (marks or {}).items() if cuts and not cutting.proven]

        def verified(dtype: torch.dtype) -> Verification:
            torch.set_default_dtype(dtype)
            return _verified(Replay(trainer, modes, instead, dtype, marks), batches, doubtful)

        try:
            return verified(torch.float64)
        except CannotRunError:
            return verified(torch.float32)


@contextmanager
def _surroundings(trainer: Face, loader: Any) -> Iterator[None]:
    """Whatever a step may leave behind is put back; compiled functions run as they are written."""
    gradients = [(p, p.grad) for p in trainer.model.parameters()]  # of a step that uses the model by another name
    dtype = torch.get_default_dtype()
    try:
        with (
            streams_kept(trainer.device),
            generators_kept(loader),
            torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext(),
            torch.enable_grad(),
        ):
            set_streams(CPU, trainer.seed, "verify")
            yield
    finally:
        torch.set_default_dtype(dtype)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _first(loader: Any, steps: int, cutting: PerSample) -> tuple[list[Any], Marks | None]:
    """The first batches of at least 2 samples, and which of their entries are per sample."""
    walked = loader
    if isinstance(loader, DataLoader):  # workers that persist would be the loader's own, further on than they were
        walked = like_loader(loader, _iterator=None, persistent_workers=False)
    plan = BatchPlan(walked, keeps_ids=True)
    found, marks = [], None
    for batch in islice(plan, steps):
        marks = cutting.marks(loader, batch, plan.ids, "verify")
        if count_samples(batch, marks) > 1:
            found.append(batch)
    return found, marks


def _verified(replay: Replay, batches: list[Any], doubtful: list[Path]) -> Verification:
    largest, tried = 0.0, dict[str, None]()
    for batch in batches:
        whole = replay.whole(batch)
        for sizes in _cuts(replay.samples(batch)):
            tensor, difference = replay.compare(batch, sizes, whole)
            words = "+".join(map(str, sizes))
            if difference > replay.tolerance:
                cause = _constant(replay, batch, sizes, doubtful) or _cause(replay, batch, sizes, tensor)
                return Verification(False, tensor, difference, cause, words, replay.precision)
            largest = max(largest, difference)
            tried[words] = None
    several = ", ".join(islice(tried, 6)) + (", …" if len(tried) > 6 else "")
    return Verification(True, None, largest, None, several, replay.precision)


def _constant(replay: Replay, batch: Any, sizes: list[int], doubtful: list[Path]) -> str | None:
    """Whether the difference is gone when one entry, which has the samples' number as length, goes whole to each piece.

    Parameters
    ----------
    doubtful : list
        Those of which only their length says that they are per sample.
    """
    before, error = replay.marks, replay.error
    for path in doubtful if len(doubtful) > 1 else ():
        replay.marks = {**(before or {}), path: False}
        try:
            difference = replay.compare(batch, sizes, replay.whole(batch))[1]
        finally:
            replay.marks = before
        if difference <= replay.tolerance:
            return (
                f"{in_words(path)} is cut like the samples, since it has as many entries as there are samples, but the"
                " step needs it whole: keep what is the same for all samples outside of the batch (on the trainer,"
                " say), or give it a first dimension of 1"
            )
    replay.error = error
    return None


def _cuts(samples: int) -> list[list[int]]:
    """The sizes of 2, of 3, and of ragged pieces; a batch with fewer samples has fewer of these."""
    even = [[b - a for a, b in pairwise(even_edges(samples, parts))] for parts in (2, 3) if parts <= samples]
    rest = samples // 3
    return [*even, [samples - rest - 1, 1, rest]] if samples >= 5 else even


def _cause(replay: Replay, batch: Any, sizes: list[int], tensor: str | None) -> str:
    """Take away, one after the other, what usually couples a batch's samples, until the difference is gone."""
    for without in (["dropout"], ["norms"], ["dropout", "norms"]) if replay.norms else (["dropout"],):
        difference = replay.compare(batch, sizes, replay.whole(batch, without), without)[1]
        if difference <= replay.tolerance:
            return _said(replay, without)
    if replay.error is not None:
        return f"on a piece, it raises {type(replay.error).__name__}: {replay.error}"
    return _said(replay, [_kind(replay, batch, sizes, without, tensor)])


def _said(replay: Replay, causes: list[str]) -> str:
    text = "; ".join(_CAUSES[cause] for cause in causes).replace(_NORM, repr(own_name(next(iter(replay.norms), ""))))
    if not _FIXED_BY_SHARDS.issuperset(causes):
        return text
    which = f"the trainer's shards={replay.shards}" if replay.shards else "shards=N"
    those = replay.shards or "N"
    return f"{text}; {which} makes it the same on every number of processes that divides {those}"


def _kind(replay: Replay, batch: Any, sizes: list[int], without: list[str], tensor: str | None) -> str:
    """What is wrong with the loss itself, when layers that couple samples are taken away."""
    whole, again = replay.whole(batch, without), replay.whole(batch, without, stream=1)
    if max(differences(whole.gradients, again.gradients, COARSE_FLOOR).values()) > replay.tolerance:
        return "random"
    pieces = replay.pieces(batch, sizes, without)
    if tensor is not None and tensor not in whole.gradients:
        return "buffers"
    columns = torch.stack([torch.cat([t.flatten() for t in part]) for part in pieces.parts], 1).double()
    if not columns.isfinite().all():
        return "empty"
    wanted = torch.cat([t.flatten() for t in whole.parts[0]]).double()
    return _weighted_otherwise(columns, wanted, 10 * replay.tolerance, "wrong items" if pieces.counted else "items")


def _weighted_otherwise(columns: Tensor, wanted: Tensor, tolerance: float, items: str) -> str:
    """Whether the pieces' gradients add up to the whole batch's under other weights than theirs.

    Least squares with one unknown a piece and one equation a gradient entry.

    Parameters
    ----------
    columns : Tensor
        Of shape (entries, pieces).
    wanted : Tensor
        Of shape (entries,).
    tolerance : float
        Of the rest, relative to `wanted`.
    items : str
        What to return when the weights are shares.
    """
    if (columns.sum(1) - wanted).norm() <= tolerance * wanted.norm():
        return "sum"
    if torch.linalg.matrix_rank(columns) < columns.shape[1]:
        return "other"  # any of many weights would do, and say nothing
    weights = torch.linalg.lstsq(columns, wanted[:, None]).solution[:, 0]
    if (columns @ weights - wanted).norm() > tolerance * wanted.norm():
        return "couples"
    return items if math.isclose(weights.sum().item(), 1, rel_tol=1e-3) else "other"
