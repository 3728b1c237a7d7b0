"""Random augmentation that belongs to the sample: the same for any number of workers and processes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset, get_worker_info
from torch.utils.data._utils.worker import _generate_state

from .random_streams import OwnStreams, mix, seed_host

_MARK = 1  # any seed does: what counts is that its first numbers are known


class Ids(list[Any]):
    """The ids of the samples to load, with what their random streams are derived from."""

    def __init__(self, ids: Sequence[Any] = (), key: str = "") -> None:
        super().__init__(ids)
        self.key = key


class InPlace:
    """Stands where a `dataset` was: whoever asks it for anything else, a worker_init_fn say, asks that one."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededSamples(InPlace, Dataset[Any]):
    """A dataset whose samples are drawn with python's, numpy's and torch's generators set from (key, id).

    The process's own streams are left as they were. A dataset that draws nothing costs one look a batch, and no
    seeding: a batch is taken as it is if none of the three generators has moved. At the first that has, it is loaded
    again sample by sample, and so is every later one.

    Parameters
    ----------
    dataset : Dataset
        With ``dataset[id]``, or ``dataset.__getitems__(ids)``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._draws = False
        self._streams: OwnStreams | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_streams": None}  # a worker has streams of its own

    def __getitem__(self, ids: Ids) -> Any:
        """One sample, of a loader that does not batch."""
        return self.__getitems__(ids)[0]

    def __getitems__(self, ids: Ids) -> list[Any]:
        self._streams = self._streams or OwnStreams()
        with self._streams:
            if not self._draws:
                seed_host(_MARK)
                samples = fetch(self.dataset, ids)
                if _untouched():
                    return samples
                self._draws = True
            samples = []
            for one in ids:
                seed_host(mix(ids.key, one))
                samples += fetch(self.dataset, [one])
            return samples


class SeededStream(InPlace, IterableDataset[Any]):
    """A stream whose workers stay, and get for each walk the random streams that workers started for it would have.

    So its order depends on seed and epoch only, also when a run goes on in a later epoch.
    """

    def __init__(self, dataset: Any) -> None:
        own = {"dataset": dataset, "_base": torch.full((1,), -1, dtype=torch.int64)}
        own["_base"].share_memory_()
        vars(self).update(own)

    def begin(self, seed: int | None) -> None:
        """Before a walk: the base seed of its workers; None when they are started, and seeded, for it."""
        self._base[0] = -1 if seed is None else seed

    def __setattr__(self, name: str, value: Any) -> None:
        """What a worker_init_fn gives to the dataset."""
        setattr(self.dataset, name, value)

    def __iter__(self) -> Iterator[Any]:
        info, base = get_worker_info(), int(self._base[0])
        if info is not None and base >= 0:
            seed = base + info.id
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            np.random.seed(_generate_state(base, info.id))  # type: ignore[no-untyped-call]  # torch's is
            object.__setattr__(info, "seed", seed)  # which cannot be set otherwise
        return iter(self.dataset)


def fetch(dataset: Any, ids: list[Any]) -> list[Any]:
    """As torch's loader does it; some datasets load many samples at once."""
    many = getattr(dataset, "__getitems__", None)
    return list(many(list(ids))) if many else [dataset[one] for one in ids]


def _untouched() -> bool:
    """Whether no generator has given a number since it was seeded with the mark."""
    return _next_numbers() == _FIRST


def _next_numbers() -> tuple[float, ...]:
    return random.random(), np.random.random_sample(), torch.rand((), dtype=torch.float64).item()


with OwnStreams():
    seed_host(_MARK)
    _FIRST = _next_numbers()


def draws_nothing(dataset: Any) -> bool:
    """Whether a dataset is known to be without randomness, so that nothing needs to be watched."""
    if type(dataset) is TensorDataset or isinstance(dataset, (list, tuple, range, str, np.ndarray, Tensor)):
        return True
    if type(dataset) is Subset:
        return draws_nothing(dataset.dataset)
    return type(dataset) is ConcatDataset and all(map(draws_nothing, dataset.datasets))
