"""The batch plan: from a loader to this process's share of each global batch, and from a share to its window."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice, pairwise, repeat, starmap
from operator import is_not
from typing import Any
from weakref import WeakMethod

import torch
from torch.utils.data import DataLoader, IterableDataset, dataloader

from ..hangs.waits import Waits
from ..nested_values import fingerprint
from ..processes.group import Processes
from .batch_entries import collates_as_usual, per_sample, sizes_of
from .cut import Marks, count_samples, cut, slices
from .layout import Layout, Share, Start, ids_hash, nothing
from .random_streams import OwnStreams, base_seed, draw_seed
from .sample_ids import agree_on_generators, is_known, length_of, shared_copy, with_stream_seeds
from .seeded_samples import SeededStream, draws_nothing
from .window import Counting, Micro, WholeWindow, Window

_ALONE = Layout()
_NOBODY = Waits(None, 0, 1, str)  # of whom a plan knows that has no processes


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
    start : Start, optional
        The first global batch to give; those before it are not loaded where the loader knows its samples.
    exceeds : bound method, optional
        Told of each batch that the loader gives beyond its length: how many there are by now, and the length.
    keeps_ids : bool
        Remember each batch's ids, for a checkpoint.

    Attributes
    ----------
    position : int
        The number of the global batch that comes next.
    """

    def __init__(
        self,
        loader: Iterable[Any] | None,
        layout: Layout = _ALONE,
        processes: Processes | None = None,
        *,
        seeded: bool = False,
        key: str = "",
        start: Start | None = None,
        exceeds: Callable[[int, int], None] | None = None,
        keeps_ids: bool = False,
    ) -> None:
        self.loader, self.layout, self.start = loader, layout, start or Start()
        self.position = self.start.batch
        self._keeps_whole = layout.alone and layout.micro_batches == 1
        self._processes = processes if processes is not None and processes.count > 1 else None
        self._counts = processes
        self._walk = getattr(processes, "waits", _NOBODY).walk
        self._seeded, self._key, self._keeps_ids = seeded, key, keeps_ids
        # Weak, since the trainer holds the plan: without a cycle, its memory is free when it goes out of sight.
        self._exceeds, self._exceeded = None if exceeds is None else WeakMethod(exceeds), False
        self._ids: Sequence[list[Any]] = ()
        self._share: Share | None = None
        self._counting = Counting()
        self._per_sample = per_sample(loader)
        self._sizes = sizes_of(loader)

    def __iter__(self) -> Iterator[Any]:
        """Yield this process's share of each global batch; the whole of it when there is one process.

        A None (a collate function's way to say "nothing") is left out.
        """
        first, length = None, self.batches if self._exceeds is not None else None
        last = math.inf if length is None else length
        try:
            for batch in self._batches():
                self.position += 1
                if self.position > last:
                    self._go_beyond(int(last))
                if first is None:
                    first = batch
                    self.start.call()
                if batch is not None:
                    yield batch
                elif self._share is not None:
                    self._share = Share(self._share.samples, 0)  # the others may have something
                    yield _stand_in(first, self.layout.index)
            self.start.call()  # of an epoch of which nothing is left
        finally:
            self._share = None
            # The loader keeps its copy, and the trainer its last plan, none of which must keep the trainer.
            self.start.began = self._exceeds = None

    def _go_beyond(self, length: int) -> None:
        """The loader gives more than it has said: nothing is known of its length any more."""
        self._exceeded = True
        if self._exceeds is not None and (told := self._exceeds()) is not None:
            told(self.position, length)

    def _batches(self) -> Iterator[Any]:
        loader = self.loader
        if loader is None:
            return iter(())
        if self._processes is not None:
            agree_on_generators(loader, self._processes)
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            own = not isinstance(loader, (list, tuple))
            batches = _with_own_streams(with_stream_seeds(loader), self._walk) if own else iter(loader)
            return islice(self._whole(batches), self.start.batch, None)
        if loader.batch_sampler is not None:
            return self._by_ids(loader, self.layout)
        # Its items are batches.
        first = Start(self.start.batch * self.layout.loader_batches, began=self.start.began)
        self.start.began = None
        return self._whole(self._by_ids(loader, _ALONE, first))

    def _by_ids(self, loader: DataLoader[Any], layout: Layout, start: Start | None = None) -> Iterator[Any]:
        """Of a loader that knows its samples, each process loads its own."""
        start = start or self.start
        seeded = self._seeded and not draws_nothing(loader.dataset)
        if not self._watches(loader, start) and not seeded and layout.loader_batches == 1:
            return _directly(self._walk(loader))
        like, shares = shared_copy(loader, seeded)
        stays = loader.persistent_workers and vars(like).get("_iterator") is not None
        drawn = partial(base_seed, loader.generator) if stays else nothing  # starting workers draws it by itself
        queue = shares.begin(layout, self._processes, start, self._key, drawn)
        return self._shared(_directly(self._walk(like)), queue, layout)

    def _shared(self, batches: Iterator[Any], queue: deque[Share], layout: Layout) -> Iterator[Any]:
        """Batches with what is known of each."""
        for batch in batches:
            share = queue.popleft()
            self._ids = share.ids
            self._share = share if self._processes is not None and layout is self.layout else None
            yield batch

    def _watches(self, loader: DataLoader[Any], start: Start) -> bool:
        """Whether the walk over a loader needs more than the loader itself."""
        own = self._processes is not None or start.batch or self._keeps_ids or loader.persistent_workers
        return bool(own) or not is_known(loader) or (self.layout.cuts and not collates_as_usual(loader))

    @property
    def last_ids(self) -> str:
        """The `ids_hash` of the last batch that was given; empty where the loader has no ids."""
        return ids_hash(self._ids)

    @property
    def ids(self) -> list[Any]:
        """Of the samples of the last batch that was given; empty where they are not kept."""
        return list(chain.from_iterable(self._ids))

    def _whole(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Of any other loader, each process walks over the whole batches, and takes its share of each."""
        if self._processes is not None:
            first = list(islice(batches, 1))
            _refuse_other_batches(self._processes.gather(fingerprint(first)))
            batches = chain(first, batches)
        if self._looks_ahead:
            ahead = list(islice(batches, 2))
            self._per_sample.look(ahead)
            batches = chain(ahead, batches)
        batches = filter(partial(is_not, None), batches)
        if self._processes is None or self.layout.split_batches:
            return batches
        return self._mine(batches, self._processes.count)

    def _mine(self, batches: Iterator[Any], processes: int) -> Iterator[Any]:
        """One batch of each group of as many as there are processes."""
        index = self.layout.index
        while group := [*islice(batches, processes)]:
            sizes = [count_samples(batch, self.marks(batch)) for batch in group]
            own = index if index < len(group) else 0
            self._share = Share(sum(sizes), sizes[own] if own == index else 0)
            yield group[own]

    @property
    def _looks_ahead(self) -> bool:
        """Whether two batches of a stream are compared before the first is taken; the loader makes each anew."""
        stream = isinstance(self.loader, DataLoader) and self.loader.batch_size is not None
        return stream and (self.layout.cuts or self._processes is not None) and not collates_as_usual(self.loader)

    def window(self, batch: Any) -> Window:
        """The window of a batch that the plan gave, or of a global batch that every process has."""
        layout, share = self.layout, self._share
        if self._keeps_whole:  # the usual batch
            samples = count_samples(batch) if self._sizes is None else self._sizes.count(batch, self.position - 1)
            return WholeWindow(batch, samples)
        marks, parts = self.marks(batch), layout.micro_batches
        if layout.alone:
            pieces = cut(batch, parts, marks=marks)
            return Window([Micro(*piece, i) for i, piece in enumerate(pieces)], sum([size for _, size in pieces]))
        if share is None:
            samples = count_samples(batch, marks)
            start, stop = layout.mine(samples)
            share = Share(samples, stop - start)
            if share.here < samples:
                span = (start, stop) if start < stop else (0, min(1, samples))
                batch = slices(batch, [span], self._why, marks)[0][0]
        micros = _micros(batch, layout.pieces(share.samples, share.here), self._why, marks)
        return Window(micros, share.samples, self._counts, layout.shards is not None, self._counting)

    @property
    def _why(self) -> str:
        """What batches are cut for, in words."""
        layout = self.layout
        if layout.alone and layout.micro_batches > 1:
            return f"gradient_accumulation_steps={layout.micro_batches}"
        return f"shards={layout.shards}" if layout.shards else f"training on {layout.processes} processes"

    def marks(self, batch: Any) -> Marks | None:
        """Which entries of the loader's batches are per sample, decided at the first one; None where nobody cuts."""
        cuts = self.layout.cuts or (self._processes is not None and self._share is None)
        if not cuts:
            return None
        return self._per_sample.marks(self.loader, batch, self.ids, self._why)

    @property
    def batches(self) -> int | None:
        """Global batches an epoch, or None where the loader cannot tell, or has told less than it gave."""
        if self._exceeded:
            return None
        try:
            length = length_of(self.loader)
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


def _micros(batch: Any, sizes: list[int], why: str, marks: Marks | None) -> list[Micro]:
    """Cut a process's share; a piece without samples gets the first one's batch, as a stand-in."""
    real = [size for size in sizes if size]
    if len(real) <= 1:
        pieces = [batch]
    elif count_samples(batch, marks) == sum(real):
        edges = [sum(real[:i]) for i in range(len(real) + 1)]
        pieces = [piece for piece, _ in slices(batch, list(pairwise(edges)), why, marks)]
    else:  # a collate function that leaves some samples out, or packs them
        pieces = [piece for piece, _ in cut(batch, len(real), why, marks)]
    rest = deque(pieces)
    return [Micro(rest.popleft() if size and rest else pieces[0], size, i) for i, size in enumerate(sizes)]


def _directly(batches: Any) -> Iterator[Any]:
    """The batches of a loader without workers, as torch's own iterator makes them.

    What it does around that is a record for a profiler, which takes longer than the rest of it; it is left out unless
    one is at work as the walk begins.
    """
    profiled = getattr(torch.autograd, "_profiler_enabled", lambda: True)()
    if profiled or type(batches) is not getattr(dataloader, "_SingleProcessDataLoaderIter", None):
        plain: Iterator[Any] = batches
        return plain
    return starmap(batches._next_data, repeat(()))


def _stand_in(first: Any, index: int) -> Any:
    """The epoch's first batch, for a share of which the collate function has left nothing."""
    if first is None:
        raise ValueError(
            f"the loader's collate function returned None for the first share of process {index}; let the dataset leave"
            " such samples out, or train on fewer processes, whose shares are larger"
        )
    return first


def _with_own_streams(loader: Iterable[Any], walk: Callable[[Iterable[Any]], Iterator[Any]]) -> Iterator[Any]:
    """Walk with random streams of the loader's own, so that what it draws does not depend on the steps between."""
    streams, missing = OwnStreams(draw_seed()), object()
    with streams:
        if isinstance(loader, DataLoader) and isinstance(loader.dataset, SeededStream):
            loader.dataset.begin(base_seed(loader.generator) if loader._iterator is not None else None)
        batches = walk(loader)
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
