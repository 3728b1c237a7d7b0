"""Whether a run that goes on has the data that it had: its split, its length, and a few of its samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..data.plan import named
from ..data.random_streams import OwnStreams, mix, seed_host
from ..data.sample_ids import set_epoch
from ..data.seeded_samples import InPlace, draws_nothing, fetch
from ..data.subsets import split_of
from ..hangs.waits import WaitError
from ..nested_values import fingerprint, leaves
from ..object_state import Generators
from ..processes.group import Processes

_SAMPLES, _SECONDS = 16, 1.0  # how many are looked at, and after which time no further one
_LEAVES = 64  # of each
_BINS, _LARGE = 8, 64
_CLOSE = 1e-4  # what another machine may round or decode otherwise, of the root mean square

Marks = list[str | None]
Look = tuple[Marks, bool]
Facts = dict[str, Any]
Walk = Callable[[Iterable[Any]], Iterator[Any]]


def look(loader: Any, valid_loader: Any, seed: int, processes: Processes) -> Facts:
    """What can be compared of the data of a call of `run`, as plain values; every process calls it.

    Parameters
    ----------
    loader, valid_loader
        As `run` gets them; nothing of them is changed, and no random stream.
    seed : int
        Tells which samples are looked at.
    processes : Processes
        What differs between them is left out.
    """
    loaders = {"the loader": loader}
    loaders |= {f"valid_loader {name!r}" if name else "valid_loader": one for name, one in named(valid_loader).items()}
    with OwnStreams():
        set_epoch(loader, 0)  # wherever an earlier call of `run` has left it
        mine = {name: _facts(one, seed, processes.waits.walk) for name, one in loaders.items()}
    everyone = processes.gather(mine)
    return {name: _agreed([other[name] for other in everyone]) for name in mine}


def others(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each of the loaders whose data are not what they were; of a set that is new, or gone, nothing."""
    lines = []
    for name in then:
        if isinstance(one := then[name], dict) and isinstance(other := now.get(name), dict):
            lines += [f"{name}: {line}" for line in islice(_others(one, other), 1)]
    return lines


def _others(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if then.get("length") != now.get("length"):
        yield f"its length: {then.get('length')} in the checkpoint, {now.get('length')} now"
    splits, here = then.get("split") or {}, now.get("split") or {}
    for path in dict.fromkeys((*splits, *here)):
        if splits.get(path) != here.get(path):
            yield (
                f"another split: {path} {splits.get(path, 'were not there')} in the checkpoint,"
                f" {here.get(path, 'not there')} now. random_split draws anew at each start, unless it has a generator"
                " of its own: random_split(..., generator=torch.Generator().manual_seed(0))"
            )
    samples, looked = then.get("samples") or {}, now.get("samples") or {}
    both = [place for place in samples if place in looked]
    drawn = bool(then.get("drawn") or now.get("drawn"))
    differing = [place for place in both if not _alike(samples[place], looked[place], drawn)]
    if differing:
        yield (
            f"other samples: {len(differing)} of the {len(both)} that were looked at, number {differing[0]} say, are"
            " not what they were"
        )


def _alike(one: Sequence[str | None], other: Sequence[str | None], drawn: bool) -> bool:
    """Whether two samples have the same content, as far as it could be told in both.

    Parameters
    ----------
    drawn : bool
        Whether the dataset draws from generators of its own, be it the number of a sample's parts.
    """
    if len(one) != len(other):
        return drawn
    return all(a is None or b is None or a == b or _close(a, b) for a, b in zip(one, other, strict=True))


def _close(one: str, other: str) -> bool:
    """Whether two marks of measured numbers differ by rounding only."""
    kind, _, numbers = one.rpartition(" ")
    other_kind, _, others_ = other.rpartition(" ")
    if kind != other_kind or not kind.startswith("about"):
        return False
    pairs = list(zip(map(float, numbers.split(",")), map(float, others_.split(",")), strict=True))
    scale = max(map(abs, pairs[0]))  # the root mean square comes first
    return all(a == b or abs(a - b) <= _CLOSE * scale or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


# ---------------------------------------------------------------------- one loader


def _facts(loader: Any, seed: int, walk: Walk) -> Facts:
    dataset = getattr(loader, "dataset", loader)
    facts: Facts = {"length": _length(dataset), "split": split_of(loader), "samples": {}, "drawn": False}
    if not isinstance(dataset, IterableDataset) and hasattr(dataset, "__getitem__") and facts["length"]:
        places = sorted({mix(seed, "place", i) % facts["length"] for i in range(_SAMPLES)})
        try:
            for place, (marks, drawn) in zip(places, _looked_at(loader, dataset, places, seed, walk), strict=False):
                facts["samples"][str(place)] = marks
                facts["drawn"] |= drawn
        except WaitError:
            raise
        except Exception:  # ids may be names; what is wrong with a dataset shows when it is used
            pass
    _drop_unsteady(facts["samples"])
    return facts


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _looked_at(loader: Any, dataset: Any, places: list[int], seed: int, walk: Walk) -> Iterator[Look]:
    """What is seen of some samples, until it takes too long.

    Where the loader has workers, one of these does it: a file that a dataset opens when it is first asked must not be
    open in this process when others are started.
    """
    looking: Any = Looking(dataset, seed)
    samples: Iterable[Look] = map(looking.__getitem__, places)
    if getattr(loader, "num_workers", 0) and not draws_nothing(dataset):
        options = {name: getattr(loader, name) for name in ("multiprocessing_context", "worker_init_fn", "timeout")}
        samples = walk(DataLoader(looking, None, sampler=places, num_workers=1, collate_fn=as_it_is, **options))
    began = time.perf_counter()
    for seen in samples:
        yield seen
        if time.perf_counter() - began > _SECONDS:
            return


def as_it_is(seen: Any) -> Any:
    """The collate function of what is seen."""
    return seen


class Looking(InPlace, Dataset[Look]):
    """In place of a dataset: marks of its samples, each drawn twice with the same random streams.

    Beside them stands whether it has drawn from generators of its own.

    What differs between the two is drawn from elsewhere, and has no mark. The generators that the dataset keeps for
    itself are put back; where one has moved, numbers that are measured have no mark.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self._seed = dataset, seed
        self._generators: Generators | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_generators": None}

    def __getitem__(self, place: int) -> Look:
        if draws_nothing(self.dataset):
            return _marks(self.dataset[place]), False
        self._generators = self._generators or Generators(self.dataset)
        with OwnStreams(), self._generators:
            one, other = self._drawn(place), self._drawn(place)
            moved = self._generators.moved()
        if len(one) != len(other):
            return [], moved
        steady = [a if a == b else None for a, b in zip(one, other, strict=True)]
        return [None if moved and mark is not None and mark.startswith("about") else mark for mark in steady], moved

    def _drawn(self, place: int) -> Marks:
        seed_host(mix(self._seed, "place", place))
        return _marks(fetch(self.dataset, [place])[0])


def _drop_unsteady(samples: dict[str, Marks]) -> None:
    """Leave out, of every sample, what had no mark in one of them: it is drawn from elsewhere, if not each time."""
    if not all(samples.values()):  # not even the number of a sample's parts is steady
        samples.clear()
    unsteady = {i for marks in samples.values() for i, mark in enumerate(marks) if mark is None}
    for marks in samples.values():
        marks[:] = [None if i in unsteady else mark for i, mark in enumerate(marks)]


def _agreed(everyone: list[Facts]) -> Facts:
    """What all processes have found; of what differs between them nothing."""
    first, samples = everyone[0], {}
    for place, marks in first["samples"].items():
        theirs = [other["samples"].get(place) for other in everyone]
        if all(other is not None and len(other) == len(marks) for other in theirs):
            samples[place] = [a if all(other[i] == a for other in theirs) else None for i, a in enumerate(marks)]
    return {**first, "samples": samples, "drawn": any(other["drawn"] for other in everyone)}


# ---------------------------------------------------------------------- one sample


def _marks(sample: Any) -> Marks:
    return [_mark(leaf) for leaf in islice(leaves(sample), _LEAVES)]


def _mark(leaf: Any) -> str:
    """A hash, or of what is measured a few means, which rounding moves little."""
    if hasattr(leaf, "__array_interface__") and not isinstance(leaf, Tensor):  # an image's
        leaf = np.asarray(leaf)
    if isinstance(leaf, np.ndarray):
        if leaf.dtype.kind not in "biufc":
            return fingerprint(repr(leaf.tolist()))
        leaf = torch.from_numpy(np.ascontiguousarray(leaf).astype(leaf.dtype.newbyteorder("="), copy=False))
    if isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_nested and leaf.numel():
        pixels = leaf.dtype == torch.uint8 and leaf.numel() > _LARGE
        if leaf.is_floating_point() or leaf.is_complex() or pixels:
            return _about(leaf)
    if isinstance(leaf, (float, np.floating)):
        return _about(torch.tensor(float(leaf), dtype=torch.float64))
    return fingerprint(leaf)


def _about(tensor: Tensor) -> str:
    """The root mean square, and the means of equal stretches."""
    whole = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = whole.detach().cpu().reshape(-1).to(torch.float64)
    means = [part.mean().item() for part in flat.tensor_split(min(_BINS, len(flat)))]
    numbers = [flat.square().mean().sqrt().item(), *means]
    kind = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}".replace(" ", "")
    return f"about {kind} {','.join(f'{number:.9g}' for number in numbers)}"
