"""Whether the processes still train one model: what they hold is compared, bit by bit, now and then."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..interface import Face
from ..object_state import Root, owned_by, trained_tensors
from ..processes.group import Processes
from .trained_parameters import parameters_of

_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ULPS = 4  # how far apart one update may put two processes that compute on different processors
_DRIFT = 1e-4  # and many updates, relative to the largest entry
_PACKAGE = __name__.partition(".")[0]

Named = list[tuple[str, Tensor]]


class SameModel:
    """Compares the parameters of several processes. Every process calls the same methods at the same place.

    Parameters
    ----------
    processes : Processes
        More than one.
    trainer : Trainer
        Whose own modules are looked at besides the model, since a second optimizer may train them.
    """

    def __init__(self, processes: Processes, trainer: Face) -> None:
        self._processes = processes
        self._others: Named = []
        self._before: list[int] = []
        self.look(trainer)

    def look(self, trainer: Face) -> None:
        """Note what there is to compare beside the model, some of which may be made in the first step only."""
        known = {id(t) for _, t in self._others}
        new = [(name, t) for name, t in self._found(trainer) if id(t) not in known]
        self._others, self._before = [*self._others, *new], [*self._before, *_marks([t for _, t in new])]

    def _found(self, trainer: Face) -> Named:
        """What can be trained beside the model, as far as every process has it."""
        root = Root("trainer", trainer, owned_by(type(trainer), _PACKAGE) | {"model"})
        known = {id(p) for p in trainer.model.parameters()}
        mine = {name: t for name, t in trained_tensors({"trainer": root}) if id(t) not in known and _comparable(t)}
        everyone = self._processes.gather({name: (tuple(t.shape), str(t.dtype)) for name, t in mine.items()})
        first, *others = everyone
        return [(name, mine[name]) for name, kind in first.items() if all(other.get(name) == kind for other in others)]

    def difference(self, model: nn.Module, first: bool, trained: Collection[str]) -> Difference | None:
        """The first parameter that is not the same on every process, and of two the one that is a cause.

        Where the optimizer lacks one of them, something else trains it, and may have taken gradients of the others.

        Parameters
        ----------
        model : nn.Module
            With the same parameters on every process.
        first : bool
            Whether one update was made only, so that no rounding can have added up.
        trained : collection of str
            The names of what the optimizer has.

        Returns
        -------
        Difference or None
            None when all are the same.
        """
        own = [(n, p.detach()) for n, p in parameters_of(model) if _comparable(p)]
        marks, others = _marks([t for _, t in own]), _marks([t for _, t in self._others])
        changed = [int(a != b) for a, b in zip(self._before, others, strict=True)]
        row = torch.tensor([*marks, *others, *changed], dtype=torch.int64, device=self._processes.device)
        everyone = self._processes.stack(row[None])
        if bool((everyone == everyone[0]).all()):
            return None
        differs = (everyone != everyone[0]).any(0).tolist()
        moved = [True] * len(own) + everyone[:, len(own) + len(others) :].any(0).tolist()
        named = [*own, *((n, t.detach()) for n, t in self._others)]
        wrong = [each for each, other, there in zip(named, differs, moved, strict=False) if other and there]
        wrong.sort(key=lambda each: each[0] in trained)
        return self._largest(wrong, first, {n for n, _ in self._others}) if wrong else None

    def _largest(self, wrong: Named, first: bool, others: set[str]) -> Difference:
        """How far they are apart: the first one that is more than rounding, else the first."""
        apart = []
        for _, tensor in wrong:
            mine = _real(tensor)
            reference = mine.clone()
            torch.distributed.broadcast(reference, src=0)
            apart.append(torch.stack([(mine - reference).abs().max(), reference.abs().max()]))
        found = self._processes.stack(torch.stack(apart)[None])  # of shape (processes, parameters, 2)
        for number, (name, tensor) in enumerate(wrong):
            eps = torch.finfo(tensor.dtype).eps if tensor.dtype.is_floating_point else 1e-7
            allowed = (_ULPS * eps if first else max(_DRIFT, _ULPS * eps)) * found[:, number, 1]
            beyond = ~(found[:, number, 0] <= allowed)  # so that NaN is beyond
            if bool(beyond.any()):
                process = int(beyond.nonzero()[0])
                return Difference(name, process, float(found[process, number, 0]), False, name in others)
        process = int(found[:, 0, 0].argmax())
        return Difference(wrong[0][0], process, float(found[process, 0, 0]), True, wrong[0][0] in others)


class Difference:
    """Of one parameter, between process 0 and another one.

    Parameters
    ----------
    name : str
    process : int
        The first one that has it otherwise.
    apart : float
        The largest difference of an entry.
    rounding : bool
        Whether it is no more than what other processors make of the same numbers.
    beside : bool
        Whether it is none of the model's.
    """

    def __init__(self, name: str, process: int, apart: float, rounding: bool, beside: bool) -> None:
        self.name, self.process, self.apart, self.rounding, self.beside = name, process, apart, rounding, beside

    def words(self, step: int, trained: Collection[str]) -> str:
        """What differs, and why that can be; `trained` are the names of what the optimizer has."""
        where = (
            f"{self.name!r} is not the same on process {self.process} as on process 0 after step {step}: they are apart"
            f" by {self.apart:.2g}"
        )
        if self.rounding:
            return (
                f"{where}, which is rounding, as different processors or numbers of threads make it; it may grow. Run"
                " all processes on the same kind of machine, with the same OMP_NUM_THREADS"
            )
        if self.beside or self.name not in trained:
            return (
                f"{where}. It is not in the trainer's optimizer, so something else changes it on each process by"
                " itself: an optimizer of its own in train_step or optimize, say, whose gradients nobody exchanges."
                " Give all that is trained to the one optimizer, in groups (as part of the model), or train on one"
                " process"
            )
        return (
            f"{where}. So each process trains a model of its own: its gradient was not exchanged whole, as with"
            " torch.utils.checkpoint(..., use_reentrant=True) of a module that is used twice (write"
            " use_reentrant=False), or something changes it on one process only. `accelerate launch --num_processes 1`"
            " trains it meanwhile"
        )


def _comparable(tensor: Tensor) -> bool:
    """Whether it has bits to be compared: it has a shape by now, and is a plain tensor."""
    return not is_lazy(tensor) and type(tensor.detach()) is Tensor and tensor.layout == torch.strided


def _marks(tensors: Sequence[Tensor]) -> list[int]:
    """A sum of the bits of each; one wait for the device."""
    if not tensors:
        return []
    sums = [_bits(t.detach()).sum(dtype=torch.int64) for t in tensors]
    places = dict.fromkeys(s.device for s in sums)
    if len(places) == 1:
        found: list[int] = torch.stack(sums).tolist()
        return found
    return [int(s) for s in sums]


def _bits(tensor: Tensor) -> Tensor:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.view(_WHOLE[tensor.element_size()])


def _real(tensor: Tensor) -> Tensor:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.to(torch.float64).reshape(-1)
