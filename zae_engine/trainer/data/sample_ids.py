"""From a loader to the ids of its global batches, and to a loader over the share of one process."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    IterDataPipe,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ..nested_values import fingerprint
from ..processes.group import Processes
from ..warn import warn
from .layout import Layout, Share, Start, ids_hash, nothing
from .random_streams import OwnStreams, draw_seed, generators_of
from .seeded_samples import Ids, SeededSamples, SeededStream
from .subsets import Split, split_of

_KNOWN = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)


def is_known(loader: DataLoader[Any]) -> bool:
    """Whether the loader's order is a function of its generators, so that every process draws it for itself."""
    batches = loader.batch_sampler
    if batches is None:
        return type(loader.sampler) in _KNOWN
    return type(batches) is BatchSampler and type(batches.sampler) in _KNOWN


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell whatever wants to know it that an epoch begins, counted from 0."""
    batches = getattr(loader, "batch_sampler", None)
    owners = (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    for owner in {id(o): o for o in (*owners, getattr(loader, "dataset", None))}.values():
        if callable(setter := getattr(owner, "set_epoch", None)):
            setter(epoch)


def undistributed(sampler: Any) -> Any:
    """A DistributedSampler's whole order, of which each process gets its share by the plan; any other as it is."""
    if not isinstance(sampler, DistributedSampler):
        return sampler
    whole, size = copy.copy(sampler), len(sampler.dataset)  # type: ignore[arg-type]  # it has asked for the length, too
    whole.num_replicas, whole.rank, whole.num_samples, whole.total_size = 1, 0, size, size
    return whole


def length_of(loader: Any) -> int:
    """The loader's batches an epoch; a DistributedSampler, whose own length is one process's, is taken for its order.

    Raises
    ------
    TypeError, NotImplementedError
        When the loader does not know.
    """
    batches = getattr(loader, "batch_sampler", None)
    sampler = batches.sampler if type(batches) is BatchSampler else getattr(loader, "sampler", None)
    whole = undistributed(sampler)
    if whole is sampler or (batches is not None and type(batches) is not BatchSampler):
        return len(loader)
    return len(whole) if batches is None else len(BatchSampler(whole, batches.batch_size, batches.drop_last))


def check_shared(loader: Any, processes: Processes) -> None:
    """Say what is wrong with a loader, or taken otherwise than it was meant, when it is shared out over processes."""
    batches = getattr(loader, "batch_sampler", None)
    if isinstance(getattr(batches, "sampler", getattr(loader, "sampler", None)), DistributedSampler):
        warn(
            "the loader's DistributedSampler is taken for its order only: the trainer shares each batch of the loader"
            f" out over the processes, so that batch_size={loader.batch_size} is the batch of all of them together"
            " (split_batches=False makes it each one's). A plain shuffle=True does the same"
        )
    if processes.count == 1:
        return
    if type(loader).__module__.startswith("accelerate."):
        raise TypeError(
            f"the loader is a {type(loader).__name__}, which Accelerate has prepared for one of {processes.count}"
            " processes; give the DataLoader itself, and the trainer shares it out"
        )
    samples, splits = zip(*processes.gather((_first_sample(loader), tuple(split_of(loader).items()))), strict=True)
    _refuse_other_splits([dict(split) for split in splits])
    if len(set(samples)) > 1:
        warn(
            f"the first sample of the loader's {type(loader.dataset).__name__} is not the same on every process. The"
            " trainer gives each process its share of one dataset; one that is another on each process, or draws from"
            " a generator of its own, makes another model for another number of processes"
        )


def _refuse_other_splits(everyone: list[Split]) -> None:
    for index, other in enumerate(everyone):
        if path := next((p for p in dict.fromkeys((*everyone[0], *other)) if other.get(p) != everyone[0].get(p)), None):
            raise ValueError(
                f"{path} of the loader's data are not the same on process 0 ({everyone[0].get(path)}) and on process"
                f" {index} ({other.get(path)}), so that one trains on what is another's held out. random_split draws"
                " on each process by itself, unless it has a generator of its own: random_split(...,"
                " generator=torch.Generator().manual_seed(0))"
            )


def _first_sample(loader: Any) -> str:
    """A hash of ``dataset[0]``, drawn with the same random streams on every process; empty where there is none."""
    dataset = getattr(loader, "dataset", None)
    if dataset is None or isinstance(dataset, IterableDataset):
        return ""
    with OwnStreams():
        try:
            return fingerprint(dataset[0])
        except Exception:  # ids may be names; what is wrong with a dataset shows when it is used
            return ""


def global_ids(loader: DataLoader[Any], start: int = 0) -> Iterator[list[Any]]:
    """The ids of the loader's batches, from number `start` on; without batching, each id by itself. Loads nothing."""
    batches = loader.batch_sampler
    if batches is None:
        yield from ([one] for one in _ids(undistributed(loader.sampler), start))
    elif type(batches) is BatchSampler:
        size, ids = batches.batch_size, _ids(undistributed(batches.sampler), start * batches.batch_size)
        while len(batch := list(islice(ids, size))) == size or (batch and not batches.drop_last):
            yield batch
    else:
        yield from map(list, islice(iter(batches), start, None))


def _ids(sampler: Any, start: int) -> Iterator[Any]:
    """The sampler's ids from number `start` on, without walking over the first ones where that is possible."""
    if start and type(sampler) is SequentialSampler:
        return iter(range(start, len(sampler.data_source)))
    if start and type(sampler) is RandomSampler and not sampler.replacement:
        size = len(sampler.data_source)
        if size == sampler.num_samples:
            return _permuted(sampler.generator, size, start)
    return islice(iter(sampler), start, None)


def _permuted(generator: torch.Generator | None, size: int, start: int) -> Iterator[int]:
    """What a RandomSampler gives from number `start` on; its generator ends where the sampler would leave it."""
    if generator is None:
        generator = torch.Generator()
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
    order = torch.randperm(size, generator=generator)
    for first in range(start, size, 65536):
        yield from order[first : first + 65536].tolist()
    torch.randperm(size, generator=generator)


class Shares(Sampler[list[Any]]):
    """The batch sampler of one process: the ids of its share of each global batch.

    A process without a share loads the batch's first sample, as a stand-in.

    Parameters
    ----------
    loader : DataLoader
        Whose order is shared out.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        # The loader itself must not be kept: the copies below live as long as it does.
        self._order = copy.copy(loader)
        vars(self._order)["_iterator"] = None

    def begin(
        self, layout: Layout, processes: Processes | None, start: Start, key: str, drawn: Callable[[], object] = nothing
    ) -> deque[Share]:
        """Get ready for an epoch; return the queue into which each batch's share will be put.

        `drawn` is called before the order is drawn.
        """
        self._layout, self._processes, self._start, self._key, self._drawn = layout, processes, start, key, drawn
        self._queue: deque[Share] = deque()
        return self._queue

    def __len__(self) -> int:
        whole = length_of(self._order)
        return max(-(-whole // self._layout.loader_batches) - self._start.batch, 0)

    def __iter__(self) -> Iterator[list[Any]]:
        # Kept here, since a walk within this one (a validation on the training set, say) begins anew.
        layout, queue, key, start = self._layout, self._queue, self._key, self._start
        self._drawn()
        first = max(start.batch - bool(start.before), 0)
        batches = global_ids(self._order, first * layout.loader_batches)
        if not is_known(self._order):
            batches = _asked(batches, self._processes)
        if first < start.batch:
            _refuse_other_order(list(islice(batches, layout.loader_batches)), start)
        if layout.processes == 1:  # the usual walk needs no more
            for ids in batches:
                queue.append(Share(len(ids), len(ids), [ids]))
                start.call()
                yield Ids(ids, key)
            return
        while group := list(islice(batches, layout.loader_batches)):
            samples = sum(map(len, group))
            mine = _mine(group, layout, samples)
            queue.append(Share(samples, len(mine), group))
            start.call()
            yield Ids(mine or group[0][:1], key)


def _refuse_other_order(group: list[list[Any]], start: Start) -> None:
    if ids_hash(group) != start.before:
        raise ValueError(
            f"the samples come in another order than before: batch {start.batch} of this epoch is not the one that the"
            " checkpoint was made after. The dataset, its length, the sampler or its seed has changed; with these as"
            " they were, the run goes on; from a checkpoint of an epoch's end it goes on with any order"
        )


def _mine(group: list[list[Any]], layout: Layout, samples: int) -> list[Any]:
    """A process's ids of a global batch that is made of one or several of the loader's."""
    if layout.split_batches:
        start, stop = layout.mine(samples)
        return list(islice(chain.from_iterable(group), start, stop))
    return group[layout.index] if layout.index < len(group) else []


class SingleIds(Sampler[Any]):
    """The ids of a loader that does not batch, with their key when the samples are seeded."""

    def __init__(self, shares: Shares, seeded: bool) -> None:
        self._shares, self._seeded = shares, seeded

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[Any]:
        return (ids if self._seeded else ids[0] for ids in self._shares)


def _asked(batches: Iterator[list[Any]], processes: Processes | None) -> Iterator[list[Any]]:
    """Ask a sampler that nothing is known about: on process 0 only, and with random streams of its own.

    So it may draw, or look at whatever it wants, and still every process has the same batches for any number of
    processes. This sends the ids of each batch.
    """
    streams = OwnStreams(draw_seed())
    while True:
        batch: list[Any] | None = None
        if processes is None or processes.first:
            with streams:
                batch = next(batches, None)
        if processes is not None:
            batch = processes.from_first(batch)
        if batch is None:
            return
        yield batch


Copy = tuple[DataLoader[Any], Shares, dict[str, Any]]
copies: WeakKeyDictionary[DataLoader[Any], Copy] = WeakKeyDictionary()
streams: WeakKeyDictionary[DataLoader[Any], tuple[DataLoader[Any], dict[str, Any]]] = WeakKeyDictionary()


def shared_copy(loader: DataLoader[Any], seeded: bool) -> tuple[DataLoader[Any], Shares]:
    """Return a loader over this process's shares, with everything else as in `loader`; the same one every time.

    Parameters
    ----------
    seeded : bool
        Whether each sample is drawn with streams of its own.
    """
    now = {name: value for name, value in vars(loader).items() if name != "_iterator"} | {"seeded samples": seeded}
    if loader in copies:
        like, shares, then = copies[loader]
        if then.keys() == now.keys() and all(then[name] is now[name] for name in now):
            return like, shares
    shares = Shares(loader)
    dataset: Any = SeededSamples(loader.dataset) if seeded else loader.dataset
    changes = {"dataset": dataset, "in_order": True, "_iterator": None}  # the queue of shares needs the order
    single = loader.batch_sampler is None
    changes |= {"sampler": SingleIds(shares, seeded)} if single else {"batch_sampler": shares}
    like = like_loader(loader, **changes)
    copies[loader] = like, shares, now
    return like, shares


def with_stream_seeds(loader: Iterable[Any]) -> Iterable[Any]:
    """Return a loader over the same stream whose workers, if they stay, are seeded for each walk; else `loader`."""
    if not isinstance(loader, DataLoader) or not loader.persistent_workers or isinstance(loader.dataset, IterDataPipe):
        return loader  # torch seeds the pipes by itself
    now = {name: value for name, value in vars(loader).items() if name != "_iterator"}
    if loader in streams:
        like, then = streams[loader]
        if then.keys() == now.keys() and all(then[name] is now[name] for name in now):
            return like
    like = like_loader(loader, dataset=SeededStream(loader.dataset), _iterator=None)
    streams[loader] = like, now
    return like


def like_loader(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """Return `loader`, of whatever subclass, with some attributes changed."""
    like = copy.copy(loader)
    vars(like).update(changes)  # into __dict__, since a DataLoader does not let its sampler be set
    return like


def in_dataset_order(loader: Iterable[Any]) -> Iterable[Any]:
    """Return a loader over the same batches whose samples come in the dataset's order.

    A loader that shuffles the whole dataset is walked in order; any other sampler is the user's choice and stays.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    batches = loader.batch_sampler
    sampler = batches.sampler if type(batches) is BatchSampler else loader.sampler
    if isinstance(sampler, DistributedSampler):
        data: Any = sampler.dataset
    elif isinstance(sampler, RandomSampler) and not sampler.replacement:
        data = sampler.data_source
        if sampler.num_samples != len(data):
            return loader
    else:
        return loader
    order = SequentialSampler(data)
    changes: dict[str, Any] = {"sampler": order, "_iterator": None, "persistent_workers": False}
    if isinstance(batches, BatchSampler):
        changes["batch_sampler"] = BatchSampler(order, batches.batch_size, batches.drop_last)
    return like_loader(loader, **changes)


def agree_on_generators(loader: Any, processes: Processes) -> None:
    """Give the generators that a loader owns the state that they have on process 0."""
    generators = generators_of(loader)
    for generator, state in zip(generators, processes.from_first([g.get_state() for g in generators]), strict=False):
        generator.set_state(state)
