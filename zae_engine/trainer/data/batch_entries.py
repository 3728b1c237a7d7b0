"""Which entries of a loader's batches are per sample: decided once, from batches that the loader makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import cycle, islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from ...launch.child_processes import walk
from ..nested_values import fingerprint, is_nest, leaves
from .cut import (
    CutError,
    Marks,
    Path,
    child_of,
    count_samples,
    entry_at,
    in_words,
    keys_of,
    length_of_all,
    marks_of,
    names_samples,
    raw_samples,
    sample_lists,
)
from .random_streams import OwnStreams, generators_kept
from .sample_ids import like_loader

_SIZES = (2, 3)  # of the batches that are made to be compared


class PerSample:
    """The decision for one loader, made when it is first asked for.

    torch's own collate function gives every tensor an entry for each sample. Of any other function, a batch of 2 and
    one of 3 samples are made and compared. Where batches come as they are, their lengths have to tell.

    Attributes
    ----------
    proven : bool
        Whether more than the lengths within one batch tells it.
    """

    def __init__(self) -> None:
        self.proven = False
        self._marks: Marks | None = None
        self._ahead: Sequence[Any] = ()
        self._doubt: _Weights | None = None

    def look(self, ahead: Sequence[Any]) -> None:
        """Be shown the first batches of a stream, to decide by."""
        self._ahead = ahead if self._marks is None else ()

    def marks(self, loader: Any, batch: Any, ids: Sequence[Any], why: str) -> Marks | None:
        """The decision; None as long as nothing can be told, of batches with one sample.

        Parameters
        ----------
        loader, batch
            And a batch of it.
        ids : sequence
            Of samples of the loader, when it knows them.
        why : str
            Who wants batches cut, for the message.
        """
        if self._marks is None:
            self._marks = self._decided(loader, batch, ids, why)
            if self._marks is not None and not self.proven and not isinstance(loader, (list, tuple)):
                doubt = _Weights(batch, self._marks)
                self._doubt = doubt if doubt.same else None
        elif self._doubt is not None and self._doubt.batch is not batch:
            doubt, self._doubt = self._doubt, None
            doubt.see(batch)
            doubt.refuse(why)
        return self._marks

    def _decided(self, loader: Any, batch: Any, ids: Sequence[Any], why: str) -> Marks | None:
        self.proven = True
        if collates_as_usual(loader):
            return _usual(batch)
        batched = ids and loader.batch_sampler is not None  # else its samples are batches
        if batched and (made := _made(loader, ids)) is not None and (found := _compared(made, why)) is not None:
            return found
        if isinstance(loader, (list, tuple)) and (found := _of_all(loader)) is not None:
            return found
        self.proven = False
        found = _of_one(loader, batch, why)
        batches, self._ahead = loader if isinstance(loader, (list, tuple)) else self._ahead, ()
        if found is not None and batches:
            _refuse_the_same(batches, found, why)
        return found


_decisions: WeakKeyDictionary[DataLoader[Any], tuple[Any, Any, PerSample]] = WeakKeyDictionary()


def per_sample(loader: Any) -> PerSample:
    """The decision for a loader; the same one every time, for a DataLoader with the same dataset and function."""
    if not isinstance(loader, DataLoader):
        return PerSample()
    dataset, function, decision = _decisions.get(loader, (None, None, None))
    if decision is None or dataset is not loader.dataset or function is not loader.collate_fn:
        decision = PerSample()
        _decisions[loader] = loader.dataset, loader.collate_fn, decision
    return decision


def collates_as_usual(loader: Any) -> bool:
    """Whether batches are what torch's collate function makes of samples, and nothing is done to them after that."""
    return type(loader) is DataLoader and loader.collate_fn is default_collate


class Sizes:
    """How many samples the loader has put into each batch, for batches of whose entries that may not be the first.

    A function that leaves samples out is believed.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        assert loader.batch_size is not None  # or nobody asks
        self._size, self._last, self._rest = loader.batch_size, -1, 0
        if not isinstance(loader.dataset, IterableDataset) and isinstance(loader.sampler, Sized):
            self._last, self._rest = divmod(len(loader.sampler), self._size)
        self._marks: Marks | None = None

    def first(self) -> int:
        """Those of the first batch."""
        return self._rest if self._last == 0 else self._size

    def count(self, batch: Any, number: int) -> int:
        """Those of a batch, by its number from 0; of a stream, whose last batch is any, the first one tells where."""
        if self._last < 0:
            if self._marks is None:
                total = self._size if self._size in _every_length(batch) else count_samples(batch)
                self._marks = marks_of(batch, total)
            entries = [entry_at(batch, path) for path, cuts in self._marks.items() if cuts]
            lengths = dict.fromkeys(len(entry) for entry in entries if entry is not None)
            # What is as long as a whole batch, while others are not, is no part of the samples.
            return next((n for n in lengths if n != self._size), count_samples(batch, self._marks))
        expected, found = self._rest if number == self._last else self._size, count_samples(batch)
        return expected if found != expected and expected in _every_length(batch) else found


class Lengths:
    """How many samples batches have that come as they are, where their tensors are not all of one length.

    What tells it are the other batches of a list, or the entries whose lengths have changed, or else what most have.
    """

    def __init__(self, loader: Any) -> None:
        self._batches = loader if isinstance(loader, (list, tuple)) else ()
        self._first: dict[Path, int] | None = None
        self._marks: Marks | None = None

    def count(self, batch: Any, number: int) -> int:
        """Those of a batch; its number tells nothing."""
        if self._marks is None and self._first is not None and (length := length_of_all(batch)) is not None:
            return length
        if self._marks is None and _of_several_lengths(batch):
            self._marks = _of_all(self._batches) or self._moved(batch) or marks_of(batch, _usual_length(batch))
        if self._marks is None:
            self._first = self._first or _lengths(batch)
        return count_samples(batch, self._marks)

    def _moved(self, batch: Any) -> Marks | None:
        """What is not as long as in the first batch, if all of it is of one length."""
        now, first = _lengths(batch), self._first or {}
        moved = {path: length != first.get(path, length) for path, length in now.items()}
        return moved if len({now[path] for path, changed in moved.items() if changed}) == 1 else None


def sizes_of(loader: Any) -> Sizes | Lengths | None:
    """What tells the samples of a loader's batches; None where each of their entries does."""
    if isinstance(loader, DataLoader):
        if collates_as_usual(loader):
            return None
        if loader.batch_size is not None:
            return Sizes(loader)
    return Lengths(loader)


def _every_length(batch: Any) -> set[int]:
    return {leaf.size(0) for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim}


def _of_several_lengths(batch: Any) -> bool:
    return len(_every_length(batch)) > 1 and not raw_samples(batch) and sample_lists(batch) is None


def _usual_length(batch: Any) -> int:
    """The length that most entries have; of as many, one that is not 1, or the first."""
    count = Counter(_lengths(batch).values())
    return max(count, key=lambda n: (count[n], n > 1)) if count else 1


def _usual(batch: Any) -> Marks:
    """What torch's collate function does: it stacks tensors, leaves strings in a list, and turns lists inside out."""
    found = Marks()

    def mark(value: Any, path: Path) -> None:
        if isinstance(value, Tensor):
            found[path] = value.ndim > 0
        elif isinstance(value, (list, tuple)) and names_samples(value):
            found[path] = True
        elif is_nest(value):
            for key in keys_of(value):
                mark(child_of(value, key), (*path, key))

    mark(batch, ())
    return found


def _made(loader: DataLoader[Any], ids: Sequence[Any]) -> list[Any] | None:
    """Batches of 2 and of 3 samples, made as the loader makes its own; None where it cannot.

    Nothing of it is seen by the training: workers, if the loader has any, are others, and streams are put back.
    """
    each = [list(islice(cycle(ids), size)) for size in _SIZES]
    changes: dict[str, Any] = {"batch_sampler": each, "_iterator": None, "persistent_workers": False}
    changes["pin_memory"] = False
    if loader.num_workers:
        changes["num_workers"] = 1
    with OwnStreams(), generators_kept(loader):
        try:
            made = list(walk(like_loader(loader, **changes)))
        except Exception:  # a function that takes no such number of samples; what is wrong shows with its own batches
            return None
    return made if len(made) == len(_SIZES) else None


def _compared(made: list[Any], why: str) -> Marks | None:
    """What has as many entries as there are samples, in both; refuse what is neither that nor always the same."""
    found, shapes = Marks(), dict[Path, list[Sequence[int]]]()
    for path, entries in _together(made, (), why):
        lengths = [_shape(entry) for entry in entries]
        found[path] = all(shape[0] == size for shape, size in zip(lengths, _SIZES, strict=True))
        if isinstance(entries[0], Tensor):
            shapes[path] = lengths
    if not any(found.values()):
        return None  # a function that packs its samples, or pairs them
    inner = {tuple(column) for path, both in shapes.items() if found[path] for column in _columns(both)[1:]}
    for path, both in shapes.items():
        if not found[path]:
            _check_constant(path, _columns(both), inner, why)
    return found


def _check_constant(path: Path, columns: list[tuple[int, ...]], padded: set[tuple[int, ...]], why: str) -> None:
    """Refuse an entry that has no sample a row, but is not the same for every number of samples."""
    if _SIZES in columns[1:]:
        raise CutError(
            f"{why} cuts batches along their first dimension, but {in_words(path)} has its samples along dimension"
            f" {1 + columns[1:].index(_SIZES)}; let the loader put them first (batch_first=True), or leave it out"
        )
    moving = [column for column in columns if len(set(column)) > 1]
    if any(column not in padded for column in moving):  # a mask as wide as the padded samples may go with each piece
        raise CutError(
            f"{why} cannot cut {in_words(path)}: its length changes with the samples of a batch ({columns[0][0]} for"
            f" {_SIZES[0]} of them, {columns[0][1]} for {_SIZES[1]}), but is not their number. Let the loader yield"
            " tensors (or lists) with one entry a sample, or leave it out"
        )


def _columns(shapes: list[Sequence[int]]) -> list[tuple[int, ...]]:
    return list(zip(*shapes, strict=False))


def _shape(entry: Any) -> Sequence[int]:
    if not isinstance(entry, Tensor):
        return (len(entry),)
    return (entry.size(0),) if entry.is_nested else tuple(entry.shape)


def _together(nests: Sequence[Any], path: Path, why: str) -> Iterator[tuple[Path, Sequence[Any]]]:
    """The entries that lie at the same place of batches of 2 and of 3 samples."""
    if all(isinstance(nest, Tensor) for nest in nests):
        if all(nest.ndim for nest in nests):
            yield path, nests
    elif all(map(is_nest, nests)):
        sequences = all(isinstance(nest, (list, tuple)) for nest in nests)
        lengths = tuple(len(keys_of(nest)) for nest in nests)
        if sequences and lengths == _SIZES:
            yield path, nests
        elif sequences and len(set(lengths)) > 1:
            raise CutError(
                f"{why} cannot cut {in_words(path)}, a list whose length changes with the samples of a batch"
                f" ({lengths[0]} for {_SIZES[0]} of them, {lengths[1]} for {_SIZES[1]}), but is not their number. Let"
                " the loader yield tensors (or lists) with one entry a sample, or leave it out"
            )
        else:
            for key in keys_of(nests[0]):
                if all(key in keys_of(nest) for nest in nests):
                    yield from _together([child_of(nest, key) for nest in nests], (*path, key), why)


# ---------------------------------------------------------------------- batches that come as they are


def _lengths(batch: Any) -> dict[Path, int]:
    """How long each tensor is, by its place; those in lists of samples left out."""
    marked = marks_of(batch, count_samples(batch))
    return {path: entry.size(0) for path in marked if isinstance(entry := entry_at(batch, path), Tensor)}


def _of_all(batches: Iterable[Any]) -> Marks | None:
    """What changes its length together, in batches that are all there; None where not one length alone does."""
    batches = [batch for batch in batches if batch is not None]
    rows = [_lengths(batch) for batch in batches]
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        return None
    columns = {path: tuple(row[path] for row in rows) for path in rows[0]}
    moving = {column for column in columns.values() if len(set(column)) > 1}
    if len(moving) != 1:
        return None
    samples = moving.pop()
    marks = marks_of(batches[0], samples[0])
    return marks | {path: column == samples for path, column in columns.items()}


def _of_one(loader: Any, batch: Any, why: str) -> Marks | None:
    """What has the length that the first entry has, if most have it; or that the loader tells."""
    lengths, sizes = _lengths(batch), sizes_of(loader)
    count = Counter(lengths.values())
    expected = sizes.first() if isinstance(sizes, Sizes) and sizes.first() in _every_length(batch) else None
    total = count_samples(batch) if expected is None else expected
    if total == 1 and _of_several_lengths(batch):  # what the samples share stands first
        total = _usual_length(batch)
    if total < 2:
        return None
    most = max((n for length, n in count.items() if length != total), default=0)
    if expected is None and count[total] and most >= count[total]:
        shown = ", ".join(f"{in_words(path)} {length}" for path, length in lengths.items())
        raise CutError(
            f"{why} cannot tell which entries of the batch are per sample, since their lengths differ: {shown}. Keep"
            " what is the same for all samples outside of the batch (on the trainer, say), or give it a first"
            " dimension of 1; or load with a DataLoader, which can be asked for batches of other sizes"
        )
    return marks_of(batch, total)


class _Weights:
    """What of a batch may be weights that are the same for all samples, as long as no other batch tells.

    These are numbers in a row that are not all the same, as a constant for each class or target is, and not whole ones,
    which may be the classes of a sampler that takes as many of each.
    """

    def __init__(self, batch: Any, marks: Marks) -> None:
        self.batch = batch  # itself, until the next one comes: a number of it may be given to that one
        entries = {path: entry_at(batch, path) for path, cuts in marks.items() if cuts}
        self.same = {p: fingerprint(entry) for p, entry in entries.items() if _may_be_weights(entry)}
        others = entries.keys() - self.same.keys() if self.same else ()
        self._others = {path: fingerprint(entries[path]) for path in others}
        self._differ = False

    def see(self, batch: Any) -> None:
        """Keep what is the same in this batch, too."""
        count = len(self.same)
        self.same = {path: own for path, own in self.same.items() if fingerprint(entry_at(batch, path)) == own}
        self._differ |= len(self.same) < count
        self._differ |= any(fingerprint(entry_at(batch, path)) != own for path, own in self._others.items())

    def refuse(self, why: str) -> None:
        """Refuse an entry that has been the same in all batches that were seen, while others differ."""
        if self._differ and self.same:
            raise CutError(
                f"{why} cannot tell whether {in_words(next(iter(self.same)))} is per sample: it has as many entries as"
                " a batch has samples, but is the same in every batch. Keep what is the same for all samples outside of"
                " the batch (on the trainer, say), or give it a first dimension of 1; or load with a DataLoader, which"
                " can be asked for batches of other sizes"
            )


def _may_be_weights(entry: Any) -> bool:
    if isinstance(entry, Tensor):
        plain = entry.layout == torch.strided and not entry.is_nested
        return plain and entry.ndim == 1 and entry.is_floating_point() and bool((entry != entry[:1]).any())
    return isinstance(entry, (list, tuple)) and all(isinstance(v, float) for v in entry) and len(set(entry)) > 1


def _refuse_the_same(batches: Sequence[Any], marks: Marks, why: str) -> None:
    """Refuse weights that are the same in all of these batches, while others differ."""
    first, *others = [batch for batch in batches if batch is not None]
    weights = _Weights(first, marks)
    for batch in others:
        if not weights.same:
            return
        weights.see(batch)
    weights.refuse(why)
