"""The batch plan: from a loader to this process's share of each global batch, and from a share to its window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from .batch import count_samples, cut, fingerprint, slices
from .processes import Processes
from .sampling import Layout, Share, agree_on_generators, is_known, shared_copy
from .seeded import draws_nothing
from .seeding import OwnStreams, draw_seed

Items = int | float | Tensor

_ALONE = Layout()


class Micro(NamedTuple):
    """A micro-batch on the device, its number of samples (0: a stand-in), and its number in the window."""

    batch: Any
    samples: int
    number: int = 0


class Counting:
    """Whether the step returns ``"num_items"``, which the processes have to know of each other: whoever counts, waits.

    They ask once, at an epoch's first window.
    """

    def __init__(self) -> None:
        self._found: bool | None = None

    def settle(self, processes: Processes | None, counted: bool) -> bool:
        """Whether the processes count items; refuse a step that begins to."""
        if processes is None or processes.count == 1:
            return False
        if self._found is None:
            self._found = any(processes.gather(counted))
        if counted and not self._found:
            raise ValueError(
                "train_step returned 'num_items' now, but did not in the epoch's first step; on several processes,"
                " return it in every step (0 where there is nothing to count)"
            )
        return self._found


class Window:
    """One optimizer step: this process's micro-batches of one global batch, and the share that each has of it.

    Parameters
    ----------
    micros : list of Micro
        This process's.
    samples : int
        In the whole global batch.
    processes : Processes, optional
        Over which the global batch is shared out.
    shards : bool
        Whether the micro-batches are shards, whose weights must not depend on the number of processes, to the bit.
    counting : Counting, optional
        The epoch's.

    Attributes
    ----------
    here : int
        Samples in this process's share.
    items : list
        Items of its micro-batches: samples, or the ``"num_items"`` that the step returned; 0 before it did.
    values : dict
        What the step returned, put together over the micro-batches; `Trainer.optimize` fills it in.
    stepped : bool
        Whether the optimizer stepped; fp16 leaves out a step whose gradients overflowed.
    """

    def __init__(
        self,
        micros: list[Micro],
        samples: int,
        processes: Processes | None = None,
        shards: bool = False,
        counting: Counting | None = None,
    ) -> None:
        self.micros, self.samples = micros, samples
        self._counting = counting
        self.here = sum(micro.samples for micro in micros)
        self.items: list[Items] = [0] * len(micros)
        self.values: dict[str, Any] = {}
        self.stepped = True
        self._processes, self._shards = processes, shards
        self._whole: Items | None = None
        self._counted = False

    @property
    def weights(self) -> list[Items]:
        """Items of the micro-batches that are no stand-ins."""
        return [self.items[m.number] for m in self.micros if m.samples or not self.samples]

    def share(self, items: Items | None, micro: Micro) -> Items | None:
        """Note a micro-batch's items (None: its samples), and return its weight, None for 1.

        The weight is its share of the window's items, times the number of processes, since they average their
        gradients. With ``"num_items"``, the window's total is known only after its last forward. Until then it is
        estimated from the first micro-batches, as if each sample had as many items; `correction` makes up for the
        difference.
        """
        self._counted, samples = self._counted or items is not None, micro.samples
        if self._processes is None and len(self.micros) == 1:  # the usual batch needs no more
            self.items[0] = samples if items is None else items
            return None
        if (
            not self._shards
            and self._counting is not None
            and self._counting.settle(self._processes, items is not None)
        ):
            items = samples if items is None else items  # as the others, who wait for a number
        self.items[micro.number] = (samples if items is None else items) if samples else 0
        processes = 1 if self._processes is None or self._shards else self._processes.count
        if processes == 1 and len(self.micros) == 1 and not self._shards:
            return None
        if self._whole is None:
            self._whole = self.samples if items is None or self._shards else self._estimate(processes, samples)
        if items is None:  # of plain samples the shares are known, and often 1
            return None if samples * processes == self._whole else samples * processes / self._whole
        return self.items[micro.number] * processes / self._whole

    def _estimate(self, processes: int, samples: int) -> Items:
        """The window's items, from the first micro-batch of every process; they are all of it if each has one only."""
        first, seen = self.items[0], samples
        if self._processes is not None and processes > 1:
            sums = self._processes.sum([first, samples])
            first, seen = sums[0], sums[1]  # type: ignore[assignment]  # tensors, so that nothing waits for the device
            if len(self.micros) == 1:
                return torch.where(sums[0] == 0, 1.0, sums[0])
        whole = first * self.samples / seen
        return whole.clamp(min=1) if isinstance(whole, Tensor) else max(whole, 1)

    def correction(self) -> Items | None:
        """The factor that turns gradients under the estimated total into those under the real one; None for 1."""
        if self._shards:  # a process without samples has asked no step
            if self._counting is not None:
                self._counted = self._counting.settle(self._processes, self._counted) or self._counted
            self._whole = self.samples
        if not self._counted or self._whole is None:
            return None
        if self._processes is not None and self._processes.count > 1 and len(self.micros) == 1 and not self._shards:
            return None
        total = self._total()
        if isinstance(total, Tensor):
            return torch.where(total == 0, 1.0, self._whole / total)
        return None if total in (0, self._whole) else self._whole / total

    def _total(self) -> Items:
        if self._processes is None or (self._processes.count == 1 and not self._shards):
            return sum(self.items)
        if not self._shards:
            return self._processes.sum([sum(self.items)])[0]
        # Every shard's items in one order, so that the sum is the same to the bit for any number of processes.
        return self._processes.stack(self._processes.numbers(self.items)).sum()


class BatchPlan:
    """What one process takes of each global batch of an epoch, for any loader.

    Parameters
    ----------
    loader : DataLoader or iterable of batches
        The loader's batch is the global batch, unless the layout says otherwise.
    layout : Layout
        How a global batch is shared out.
    processes : Processes, optional
        Over which it is shared out.
    seeded, key : bool and str
        Whether each sample is drawn with random streams of its own, and what these are derived from, beside its id.
    start : int
        The number of the first global batch to give; those before it are not loaded where the loader knows its samples.
    began : callable, optional
        Called when the first batch is there, and the loader's order with it.
    """

    def __init__(
        self,
        loader: Iterable[Any] | None,
        layout: Layout = _ALONE,
        processes: Processes | None = None,
        *,
        seeded: bool = False,
        key: str = "",
        start: int = 0,
        began: Callable[[], None] | None = None,
    ) -> None:
        self.loader, self.layout, self.start = loader, layout, start
        self._processes = processes if processes is not None and processes.count > 1 else None
        self._counts = processes
        self._seeded, self._key, self._began = seeded, key, began
        self._share: Share | None = None
        self._counting = Counting()

    def __iter__(self) -> Iterator[Any]:
        """Yield this process's share of each global batch; the whole of it when there is one process.

        A None (a collate function's way to say "nothing") is left out.
        """
        first = None
        try:
            for batch in self._batches():
                if first is None:
                    first = batch
                    if self._began is not None:
                        self._began()
                if batch is not None:
                    yield batch
                elif self._share is not None:
                    self._share = Share(self._share.samples, 0)  # the others may have something
                    yield _stand_in(first, self.layout.index)
        finally:
            self._share = None

    def _batches(self) -> Iterator[Any]:
        loader = self.loader
        if self._processes is not None and loader is not None:
            agree_on_generators(loader, self._processes)
        if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
            if loader.batch_sampler is not None:
                yield from self._by_ids(loader, self.layout)
            else:  # its items are batches
                first = self.start * self.layout.loader_batches
                yield from self._whole(self._by_ids(loader, _ALONE, first))
        elif loader is not None:
            walked = isinstance(loader, (list, tuple))
            yield from islice(self._whole(iter(loader) if walked else _with_own_streams(loader)), self.start, None)

    def _by_ids(self, loader: DataLoader[Any], layout: Layout, start: int | None = None) -> Iterator[Any]:
        """Of a loader that knows its samples, each process loads its own."""
        start = self.start if start is None else start
        seeded = self._seeded and not draws_nothing(loader.dataset)
        if self._processes is None and not start and is_known(loader) and not seeded and layout.loader_batches == 1:
            yield from loader
            return
        like, shares = shared_copy(loader, seeded)
        queue = shares.begin(layout, self._processes, start, self._key)
        for batch in like:
            share = queue.popleft()
            self._share = share if self._processes is not None and layout is self.layout else None
            yield batch

    def _whole(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Of any other loader, each process walks over the whole batches, and takes its share of each."""
        if self._processes is not None:
            first = list(islice(batches, 1))
            _refuse_other_batches(self._processes.gather(fingerprint(first)))
            batches = chain(first, batches)
        for batch in batches:
            if batch is None:
                continue
            if self._processes is not None and not self.layout.split_batches:
                group = [batch, *islice(batches, self._processes.count - 1)]
                sizes = [count_samples(b) for b in group]
                index = self.layout.index if self.layout.index < len(group) else 0
                self._share = Share(sum(sizes), sizes[index] if index == self.layout.index else 0)
                batch = group[index]
            yield batch

    def window(self, batch: Any) -> Window:
        """The window of a batch that the plan gave, or of a global batch that every process has."""
        layout, share = self.layout, self._share
        if layout.alone:
            parts = layout.micro_batches
            micros = [(batch, count_samples(batch))] if parts == 1 else cut(batch, parts)
            return Window([Micro(*m, i) for i, m in enumerate(micros)], sum(m[1] for m in micros))
        why = f"shards={layout.shards}" if layout.shards else f"training on {layout.processes} processes"
        if share is None:
            samples = count_samples(batch)
            start, stop = layout.mine(samples)
            share = Share(samples, stop - start)
            if share.here < samples:
                batch = slices(batch, [(start, stop) if start < stop else (0, min(1, samples))], why)[0][0]
        sizes = layout.pieces(share.samples, share.here)
        return Window(
            _micros(batch, sizes, why), share.samples, self._counts, layout.shards is not None, self._counting
        )

    @property
    def batches(self) -> int | None:
        """Global batches an epoch, or None where the loader cannot tell."""
        try:
            length = len(self.loader)  # type: ignore[arg-type]  # a loader without length raises
        except (TypeError, NotImplementedError):
            return None
        return -(-length // self.layout.loader_batches)

    @property
    def batch_size(self) -> int | None:
        """Samples in a global batch, or None where the loader does not say."""
        size = getattr(self.loader, "batch_size", None)
        if size is None:
            size = getattr(getattr(self.loader, "batch_sampler", None), "batch_size", None)
        return int(size) * self.layout.loader_batches if size is not None else None

    def describe(self) -> str:
        """The layout in words, such as ``batch 256 = 8 processes × 4 micro-batches × 8 samples``."""
        layout, size = self.layout, self.batch_size
        on = f" on {layout.processes} processes" if layout.processes > 1 else ""
        if layout.shards:
            each = f" × {-(-size // layout.shards)} samples" if size else ""
            return f"batch{f' {size}' if size else ''} = {_many(layout.shards, 'shard')}{each}{on}"
        micro_batches = _many(layout.micro_batches, "micro-batch", "es")
        if size is None:
            return f"batches as the loader gives them, in {micro_batches}{on}"
        samples = _many(-(-size // (layout.processes * layout.micro_batches)), "sample")
        return f"batch {size} = {_many(layout.processes, 'process', 'es')} × {micro_batches} × {samples}"


def _micros(batch: Any, sizes: list[int], why: str) -> list[Micro]:
    """Cut a process's share; a piece without samples gets the first one's batch, as a stand-in."""
    real = [size for size in sizes if size]
    if len(real) <= 1:
        pieces = [batch]
    elif count_samples(batch) == sum(real):
        edges = [sum(real[:i]) for i in range(len(real) + 1)]
        pieces = [piece for piece, _ in slices(batch, list(pairwise(edges)), why)]
    else:  # a collate function that leaves some samples out, or packs them
        pieces = [piece for piece, _ in cut(batch, len(real), why)]
    rest = deque(pieces)
    return [Micro(rest.popleft() if size and rest else pieces[0], size, i) for i, size in enumerate(sizes)]


def _stand_in(first: Any, index: int) -> Any:
    """The epoch's first batch, for a share of which the collate function has left nothing."""
    if first is None:
        raise ValueError(
            f"the loader's collate function returned None for the first share of process {index}; let the dataset leave"
            " such samples out, or train on fewer processes, whose shares are larger"
        )
    return first


def _with_own_streams(loader: Iterable[Any]) -> Iterator[Any]:
    """Walk with random streams of the loader's own, so that what it draws does not depend on the steps between."""
    streams, missing = OwnStreams(draw_seed()), object()
    with streams:
        batches = iter(loader)
    while True:
        with streams:
            batch = next(batches, missing)
        if batch is missing:
            return
        yield batch


def _refuse_other_batches(fingerprints: list[str]) -> None:
    """Refuse a stream that gives other batches on other processes."""
    if len(set(fingerprints)) > 1:
        other = next(i for i, f in enumerate(fingerprints) if f != fingerprints[0])
        raise ValueError(
            f"the loader gives process {other} another first batch than process 0. The trainer shares each batch out"
            " over the processes by itself, so a stream has to be the same on each of them: leave its own sharding by"
            " rank out, and draw random numbers from python's, numpy's or torch's global generators, which are"
            " set alike"
        )


def _many(count: int, one: str, ending: str = "s") -> str:
    return f"{count} {one}{ending if count != 1 else ''}"


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
