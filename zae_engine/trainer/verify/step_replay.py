"""Running a trainer's step on a copy of it, again and again, without a trace."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...checkpoint.parameter_names import own_name
from .. import refusals
from ..data.cut import Marks, count_samples, slices
from ..data.random_streams import set_streams
from ..data.window import Micro, Window
from ..interface import Face, decide
from ..nested_values import leaves, map_nest, place
from ..step.modes import Modes

CPU = torch.device("cpu")
# How far apart two gradients may be, relative to the larger of them, and still be the same but for rounding.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Below this part of the largest gradient, a tensor holds little but rounding, so that it is not its own measure.
_FLOOR = {torch.float64: 1e-4}
COARSE_FLOOR = 0.1


class CannotRunError(RuntimeError):
    """The step fails on a whole batch in float64."""


@dataclass
class Outcome:
    """What a window has left: its gradients and buffers by name, and for each piece its gradients and weight."""

    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    parts: list[list[Tensor]]
    shares: list[float]
    counted: bool


class Replay:
    """A copy of a trainer on the CPU, on whose step batches can be run again and again.

    Parameters
    ----------
    trainer : Trainer
        Is not changed.
    modes : Modes
        Say which of its submodules train.
    instead : dict
        What the copy has in place of the trainer's own attributes.
    dtype : torch.dtype
        Of the copy's floating-point tensors.
    marks : dict, optional
        Which entries of a batch are per sample.
    """

    def __init__(
        self, trainer: Face, modes: Modes, instead: dict[str, Any], dtype: torch.dtype, marks: Marks | None = None
    ) -> None:
        self.marks = marks
        self._dtype, self._seed, self.shards = dtype, trainer.seed, trainer.shards
        self._probe = _copied(trainer, dtype)
        decide(self._probe, mode="train", device=CPU, **instead)
        self._model: nn.Module = self._probe.model
        self._modes, self._still = Modes(), modes.chosen(trainer.model)
        self._parameters = {own_name(n): p for n, p in self._model.named_parameters() if p.requires_grad}
        self._before = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        self.error: Exception | None = None
        self._narrowest(dtype)

    def _narrowest(self, dtype: torch.dtype) -> None:
        self.tolerance = _TOLERANCE.get(dtype, max(_TOLERANCE.values()))
        self._floor = _FLOOR.get(dtype, COARSE_FLOOR)
        self.precision = str(dtype).removeprefix("torch.")

    @property
    def norms(self) -> list[str]:
        """The names of the layers whose statistics are those of the batch."""
        return [
            name
            for name, module in self._model.named_modules()
            if isinstance(module, nn.modules.batchnorm._NormBase) and name not in self._still
        ]

    def samples(self, batch: Any) -> int:
        """How many samples a batch has."""
        return count_samples(batch, self.marks)

    def whole(self, batch: Any, without: Sequence[str] = (), stream: int = 0) -> Outcome:
        """Run a whole batch; say so when the copy cannot."""
        try:
            found = self._run(batch, [self.samples(batch)], without, stream)
        except _StepError as failed:
            if self._dtype == torch.float64:
                raise CannotRunError from failed
            error = failed.__cause__
            raise RuntimeError(
                "train_step failed on a copy of the model on the CPU, where verify replays it:"
                f" {type(error).__name__}: {error}"
            ) from error
        wrong = next((n for n, g in found.gradients.items() if not g.isfinite().all()), None)
        if wrong is not None:
            raise ValueError(
                f"the gradient of {wrong} is not finite for a whole batch, so there is nothing to compare; see that the"
                " loss is finite first"
            )
        if not any(gradient.any() for gradient in found.gradients.values()):
            raise ValueError(
                "no parameter of the model got a gradient from train_step, so there is nothing to compare; use"
                " self.model in the step, not the model by another name"
            )
        return found

    def compare(
        self, batch: Any, sizes: list[int], whole: Outcome, without: Sequence[str] = ()
    ) -> tuple[str | None, float]:
        """The first tensor that differs in pieces, and by how much; without one, the largest difference."""
        try:
            pieces = self._run(batch, sizes, without)
        except _StepError as failed:
            self.error = failed.__cause__  # type: ignore[assignment]  # it was raised from one
            return None, math.inf
        self.error = None
        found = differences(whole.gradients, pieces.gradients, self._floor)
        found |= differences(whole.buffers, pieces.buffers, self._floor)
        largest = max(found.values(), default=0.0)
        if self.tolerance < largest < math.inf and (narrow := self._computes_in(batch)) != self._dtype:
            self._narrowest(narrow)
        first = next((name for name, difference in found.items() if difference > self.tolerance), None)
        return first, found[first] if first is not None else largest

    def _computes_in(self, batch: Any) -> torch.dtype:
        """The narrowest number type of what the step computes."""
        watch = _Watch()
        self._run(batch, [self.samples(batch)], watch=watch)
        return max((t for t in watch.seen if t in _TOLERANCE), key=_TOLERANCE.__getitem__, default=self._dtype)

    def pieces(self, batch: Any, sizes: list[int], without: Sequence[str]) -> Outcome:
        """Run a batch in pieces."""
        return self._run(batch, sizes, without)

    def _run(
        self, batch: Any, sizes: list[int], without: Sequence[str] = (), stream: int = 0, watch: _Watch | None = None
    ) -> Outcome:
        self._reset("norms" in without)
        batch, edges = _on_cpu(batch, self._dtype), [0, *accumulate(sizes)]
        cut = slices(batch, list(pairwise(edges)), "verify", self.marks) if len(sizes) > 1 else [(batch, sizes[0])]
        window = Window([Micro(*piece, number) for number, piece in enumerate(cut)], edges[-1])
        parts, shares, counted = list[list[Tensor]](), list[float](), False
        with _Watch(still=True) if "dropout" in without else watch or nullcontext():
            for micro in window.micros:
                # Streams of its own, as a process has: pieces that draw from one stream may draw what the whole draws.
                set_streams(CPU, self._seed, "verify", stream, len(sizes), micro.number)
                items = self._step(micro.batch)
                counted |= items is not None
                share = window.share(items, micro)
                shares.append(1.0 if share is None else float(share))
                parts.append(self._taken())
        factor = window.correction()
        shares = [share * (1.0 if factor is None else float(factor)) for share in shares]
        gradients = [_weighted(column, shares) for column in zip(*parts, strict=True)]
        buffers = {own_name(n): buffer.detach().clone() for n, buffer in self._model.named_buffers()}
        return Outcome(dict(zip(self._parameters, gradients, strict=True)), buffers, parts, shares, counted)

    def _reset(self, frozen: bool) -> None:
        """Begin as the trainer would: in training, with the buffers as they were."""
        self._modes.choose(self._model, self._still)
        for name, buffer in self._before.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(owner), leaf, buffer.clone())
        for name in self.norms if frozen else ():
            self._model.get_submodule(name).eval()

    def _step(self, batch: Any) -> Any:
        """Forward and backward; return the step's ``"num_items"``."""
        try:
            values = self._probe.train_step(batch)
        except Exception as error:
            raise _StepError from error
        loss = refusals.check_step(values, "train_step", tuple(self._parameters.values()))
        try:
            loss.sum().backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise _StepError from error
        return values.get("num_items")

    def _taken(self) -> list[Tensor]:
        found = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self._parameters.values()]
        for parameter in self._parameters.values():
            parameter.grad = None
        return found


class _StepError(Exception):
    """The user's step raised its cause."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is
    """Notes the number types that are computed in; with `still`, random masks are their mean, which is no mask.

    So dropout is found wherever it is written: as a layer, as a function, within attention or a recurrent layer.
    """

    def __init__(self, still: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[torch.dtype] = set()
        self._still = still

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch in place of each operation."""
        instead: Any = _STILL.get(func.overloadpacket) if self._still else None
        if instead is not None:
            return instead(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self.seen |= {t.dtype for t in leaves(result) if isinstance(t, Tensor) and t.is_floating_point()}
        return result


def _mean_in_place(tensor: Tensor, p: Any = 0.5, **_: Any) -> Tensor:
    return tensor.copy_(p) if isinstance(p, Tensor) else tensor.fill_(p)


def _mean(tensor: Tensor, p: Any = None, **_: Any) -> Tensor:
    return tensor.clone() if p is None else _mean_in_place(torch.empty_like(tensor), p)


def _no_mask(tensor: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return tensor.clone(), torch.ones_like(tensor, dtype=torch.bool)


_STILL = {
    torch.ops.aten.bernoulli_: _mean_in_place,
    torch.ops.aten.bernoulli: _mean,
    torch.ops.aten.native_dropout: _no_mask,
}


def _weighted(column: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = column[0] * shares[0]
    for tensor, share in zip(column[1:], shares[1:], strict=True):
        total += tensor * share
    return total


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def differences(whole: Mapping[str, Tensor], pieces: Mapping[str, Tensor], floor: float) -> dict[str, float]:
    """How far each tensor is from the whole batch's, relative to its largest entry; infinity for other shapes, NaN."""
    least = floor * max((_largest(t) for t in whole.values() if t.is_floating_point()), default=0.0)
    found = {}
    for name, tensor in whole.items():
        other = pieces[name]
        if tensor.shape != other.shape:
            found[name] = math.inf
            continue
        apart = _largest(tensor - other) if tensor.dtype != torch.bool else float(not tensor.equal(other))
        ratio = apart / max(_largest(tensor), least, 1e-300) if tensor.dtype != torch.bool else apart
        found[name] = math.inf if math.isnan(ratio) else ratio
    return found


# ---------------------------------------------------------------------- the copy


def _copied(trainer: Face, dtype: torch.dtype) -> Face:
    """A shallow copy of the trainer with modules and tensors of its own, on the CPU; shared ones stay shared."""
    probe, copies = copy.copy(trainer), _Copies()
    try:
        own = {name: copies.of(value) for name, value in vars(trainer).items()}
    except Exception as error:
        raise TypeError(
            f"verify needs a deep copy of the model (and of modules that the trainer holds): {error}; keep what cannot"
            " be copied out of them"
        ) from error
    for tensor in copies.tensors():
        tensor.data = _cast(tensor.data, dtype)
    vars(probe).update(own)
    return probe


class _Copies:
    """Deep copies of modules and tensors; one that was met before gives the same copy."""

    def __init__(self) -> None:
        self._memo: dict[int, Any] = {}
        self._made: list[Any] = []

    def of(self, value: Any) -> Any:
        """A copy of a module, a tensor, or a container of such; anything else as it is."""
        if type(value) is dict:
            return {key: self._one(item) for key, item in value.items()}
        return type(value)(map(self._one, value)) if type(value) in (list, tuple, set) else self._one(value)

    def _one(self, value: Any) -> Any:
        if not isinstance(value, (nn.Module, Tensor)):
            return value
        computed = isinstance(value, Tensor) and not value.is_leaf  # which has no deep copy
        made = value.detach().clone() if computed else copy.deepcopy(value, self._memo)  # type: ignore[operator]
        self._made.append(made)
        return made

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the copies."""
        for made in self._made:
            if isinstance(made, Tensor):
                yield made
                continue
            for module in made.modules():
                held = (module._parameters, module._buffers, vars(module))
                yield from (t for found in held for t in found.values() if isinstance(t, Tensor))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the CPU with other numbers where they are floating-point ones."""
    if tensor.is_complex():
        dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    elif not tensor.is_floating_point():
        dtype = tensor.dtype
    return tensor.detach().cpu().to(dtype=dtype, copy=True)  # two steps, as some devices have no float64


def _on_cpu(batch: Any, dtype: torch.dtype) -> Any:
    """A copy of a batch, since a step may change it."""
    return map_nest(lambda leaf: _cast(leaf, dtype) if isinstance(leaf, Tensor) else leaf, place(batch, CPU))
