"""The batch plan: from a loader to global batches, and from a batch to its window of micro-batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler

from .batch import count_samples, cut

Items = int | float | Tensor


class Window:
    """One optimizer step: the micro-batches of one global batch, and the share that each has of it.

    Attributes
    ----------
    micros : list of (batch, int)
        The micro-batches, on the device, with their numbers of samples.
    samples : int
        Samples in the whole batch.
    items : list
        Items of the micro-batches seen so far: samples, or the ``"num_items"`` that the step returned.
    values : dict
        What the step returned, put together over the micro-batches; `Trainer.optimize` fills it in.
    stepped : bool
        Whether the optimizer stepped; fp16 leaves out a step whose gradients overflowed.
    """

    __slots__ = ("_whole", "items", "micros", "samples", "stepped", "values")

    def __init__(self, batch: Any, parts: int = 1) -> None:
        self.samples = count_samples(batch)
        self.micros: list[tuple[Any, int]] = [(batch, self.samples)] if parts == 1 else cut(batch, parts)
        self.items: list[Items] = []
        self.values: dict[str, Any] = {}
        self.stepped = True
        self._whole: Items = 0

    def share(self, items: Items, samples: int) -> Items | None:
        """Note a micro-batch's items and return its share of the window's; None for a window that is not cut.

        The window's total is known only after its last forward. Until then it is estimated from the first micro-batch,
        as if each sample had as many items; `correction` makes up for the difference.
        """
        self.items.append(items)
        if len(self.micros) == 1:
            return None
        if len(self.items) == 1:
            whole = items * self.samples / samples
            self._whole = whole.clamp(min=1) if isinstance(whole, Tensor) else max(whole, 1)
        return items / self._whole

    def correction(self) -> Items | None:
        """The factor that turns gradients under the estimated total into those under the real one; None for 1."""
        if len(self.micros) == 1:
            return None
        total = sum(self.items)
        if isinstance(total, Tensor):
            return torch.where(total == 0, 1.0, self._whole / total)
        return None if total in (0, self._whole) else self._whole / total


class BatchPlan:
    """Which batches an epoch has, for any loader.

    Parameters
    ----------
    loader : DataLoader or iterable of batches
        The loader's batch is the global batch.
    micro_batches : int
        Into how many micro-batches a global batch is cut.
    """

    def __init__(self, loader: Iterable[Any] | None, micro_batches: int = 1) -> None:
        self.loader = loader
        self.micro_batches = micro_batches

    def __iter__(self) -> Iterator[Any]:
        """The global batches of one epoch; a None (a collate function's way to say "nothing") is left out."""
        for batch in () if self.loader is None else self.loader:
            if batch is not None:
                yield batch

    @property
    def batches(self) -> int | None:
        """Global batches an epoch, or None where the loader cannot tell."""
        try:
            return len(self.loader)  # type: ignore[arg-type]  # a loader without length raises
        except (TypeError, NotImplementedError):
            return None

    @property
    def batch_size(self) -> int | None:
        """Samples in a global batch, or None where the loader does not say."""
        size = getattr(self.loader, "batch_size", None)
        if size is None:
            size = getattr(getattr(self.loader, "batch_sampler", None), "batch_size", None)
        return int(size) if size is not None else None

    def describe(self) -> str:
        """The layout in words, such as ``batch 256 = 1 process × 4 micro-batches × 64 samples``."""
        if self.batch_size is None:
            return f"batches as the loader gives them, in {self.micro_batches} micro-batch{_es(self.micro_batches)}"
        micro = -(-self.batch_size // self.micro_batches)
        return (
            f"batch {self.batch_size} = 1 process × {self.micro_batches} micro-batch{_es(self.micro_batches)}"
            f" × {micro} samples"
        )


def _es(count: int) -> str:
    return "" if count == 1 else "es"


def named(loaders: Any) -> dict[str, Iterable[Any]]:
    """Validation loaders by name; a single one has the empty name."""
    if loaders is None:
        return {}
    if not isinstance(loaders, Mapping):
        return {"": loaders}
    for name in loaders:
        if not isinstance(name, str) or not name:
            raise ValueError(f"valid_loader has a set named {name!r}; name each set by a word, such as 'clean'")
    return dict(loaders)


def in_dataset_order(loader: Iterable[Any]) -> Iterable[Any]:
    """Return a loader over the same batches whose samples come in the dataset's order.

    A loader that shuffles the whole dataset is walked in order; any other sampler is the user's choice and stays.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    batches = loader.batch_sampler
    sampler = batches.sampler if type(batches) is BatchSampler else loader.sampler
    if not isinstance(sampler, RandomSampler) or sampler.replacement or sampler.num_samples != len(sampler.data_source):
        return loader
    return _with_sampler(loader, SequentialSampler(sampler.data_source))


def _with_sampler(loader: DataLoader[Any], sampler: Sampler[int]) -> DataLoader[Any]:
    """Return `loader`, of whatever subclass, with another sampler and everything else as it was."""
    like = copy.copy(loader)
    # Into __dict__, since a DataLoader does not let its sampler be set.
    vars(like).update(sampler=sampler, _iterator=None, persistent_workers=False)
    batches = loader.batch_sampler
    if isinstance(batches, BatchSampler):
        vars(like)["batch_sampler"] = BatchSampler(sampler, batches.batch_size, batches.drop_last)
    return like
