"""Which entries of a batch are per sample, how many samples it has, and how it is cut along them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, MutableMapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..nested_values import is_nest, leaves, rebuild

Path = tuple[Any, ...]
Marks = dict[Path, bool]


class CutError(TypeError):
    """A batch cannot be cut along its samples."""


def count_samples(nest: Any, marks: Mapping[Path, bool] | None = None) -> int:
    """The number of samples in a batch.

    It is the length of the first entry that `marks` (see `marks_of`) says is per sample. Without any, it is the length
    of the first tensor that has a first dimension; of the lists, in a batch of `sample_lists`; without either, the
    length of the first list, tuple or object that has one; else 1.
    """
    first = nest[0] if type(nest) in (tuple, list) and nest else nest  # the usual batch is found at once
    if isinstance(first, Tensor) and first.ndim and (not marks or (first is not nest and marks.get((0,)))):
        return first.size(0)
    for path in marks or ():
        if marks and marks[path] and (length := _length_at(nest, path)) is not None:
            return length
    if isinstance(first, Tensor) and first.ndim:
        return first.size(0)
    if raw_samples(nest):
        return len(nest)
    if (listed := sample_lists(nest)) is not None:
        return listed
    for leaf in leaves(nest):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf.size(0)
    for value in nest.values() if isinstance(nest, MutableMapping) else (nest,):
        if hasattr(value, "__len__") and not isinstance(value, (str, bytes, Tensor)):
            return len(value)
    return 1


def length_of_all(nest: Any) -> int | None:
    """The length that all of a batch's entries have, of the usual one: a few tensors in a tuple or a list."""
    found = None
    for entry in nest if type(nest) in (tuple, list) else ():
        if type(entry) is not Tensor or not entry.ndim or (found is not None and found != entry.size(0)):
            return None
        found = entry.size(0)
    return found


def entry_at(batch: Any, path: Path) -> Any:
    """The entry at a place; None when this batch has none."""
    try:
        return reduce(child_of, path, batch)
    except (LookupError, AttributeError):
        return None


def _length_at(batch: Any, path: Path) -> int | None:
    entry = entry_at(batch, path)
    return entry if entry is None else entry.size(0) if isinstance(entry, Tensor) else len(entry)


def raw_samples(nest: Any) -> bool:
    """Whether a batch is the bare list of its samples, as ``collate_fn=list`` gives it.

    Those are dicts with the same keys, or tuples; torch's collate function makes of such samples a dict, or a list.
    """
    if type(nest) is not list or not nest:
        return False
    if all(type(item) is tuple for item in nest):
        return True
    return all(isinstance(item, dict) for item in nest) and len({tuple(item) for item in nest}) == 1


def sample_lists(nest: Any) -> int | None:
    """How many samples a batch has that holds them in lists, as detection's (images, targets); None for any other.

    Lists of one length are lists of samples when they hold dicts or objects, or tensors whose first dimensions differ;
    else they are taken for what torch's collate function makes of tuples, lists of fields.
    """
    children = list(nest.values()) if isinstance(nest, MutableMapping) else nest
    if not isinstance(children, (list, tuple)):
        return None
    lists = [child for child in children if type(child) in (list, tuple) and child]
    lengths = {len(child) for child in lists} | {c.size(0) for c in children if isinstance(c, Tensor) and c.ndim}
    if not lists or len(lengths) != 1:
        return None
    first_dimensions = {leaf.size(0) for leaf in leaves(lists) if isinstance(leaf, Tensor) and leaf.ndim}
    fields = (Tensor, str, bytes, tuple, list)
    objects = any(not isinstance(item, fields) for child in lists for item in child)
    return lengths.pop() if objects or len(first_dimensions) > 1 else None


def even_edges(total: int, parts: int) -> list[int]:
    """Where to cut `total` samples into `parts` pieces of nearly equal size, the larger ones first."""
    return [-(-total * i // parts) for i in range(parts + 1)]  # larger ones first, as memory is asked for


def cut(nest: Any, parts: int, why: str = "", marks: Marks | None = None) -> list[tuple[Any, int]]:
    """Cut a batch along its samples into at most `parts` pieces of nearly equal size.

    Parameters
    ----------
    nest : nest of tensors
        What `marks` says is per sample is cut; anything else goes to every piece.
    parts : int
        How many pieces; a batch with fewer samples gives fewer.
    why : str
        Who wants it cut, for the message.
    marks : dict, optional
        See `marks_of`, which is asked when there are none.

    Returns
    -------
    list of (piece, number of samples)

    Raises
    ------
    CutError
        When the batch holds nothing that can be cut, or something of which that cannot be told.
    """
    total = count_samples(nest, marks)
    edges = even_edges(total, parts)
    spans = [(start, stop) for start, stop in itertools.pairwise(edges) if start < stop]
    return slices(nest, spans or [(0, 0)], why or f"gradient_accumulation_steps={parts}", marks, total)


def slices(
    nest: Any, spans: Sequence[tuple[int, int]], why: str, marks: Marks | None = None, total: int | None = None
) -> list[tuple[Any, int]]:
    """Cut the samples from ``start`` to ``stop`` out of a batch of `total`, for each of `spans`; see `cut`."""
    total = count_samples(nest, marks) if total is None else total
    if marks and _is_plain(nest, marks, total):
        form = type(nest)
        return [(form([entry[start:stop] for entry in nest]), stop - start) for start, stop in spans]
    if not any(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves(nest)):
        raise CutError(
            f"{why} needs batches that can be cut along their first dimension; this batch, a"
            f" {type(nest).__name__}, has no such tensor. Let the loader yield tensors, or leave it out"
        )
    known = marks_of(nest, total) if marks is None else marks
    if not any(known.values()):
        raise CutError(
            f"{why} cannot cut this batch, a {type(nest).__name__}: nothing in it has an entry for each of its samples"
            " along its first dimension. Let the loader yield tensors (or lists) of one length, or leave it out"
        )
    return [(_piece(nest, (), known, total, span, why), span[1] - span[0]) for span in spans]


def _is_plain(nest: Any, marks: Marks, total: int) -> bool:
    """Whether a batch is the usual one: a few tensors with a row a sample, each of them marked so."""
    if type(nest) not in (tuple, list) or len(marks) != len(nest):
        return False
    for place, entry in enumerate(nest):
        if type(entry) is not Tensor or not entry.ndim or entry.size(0) != total or not marks.get((place,)):
            return False
        if entry.layout != torch.strided or entry.is_nested:
            return False
    return True


def keys_of(nest: Any) -> list[Any]:
    """What leads to the children of a nest, in the order of `leaves`."""
    if isinstance(nest, MutableMapping):
        return list(nest)
    return list(range(len(nest))) if isinstance(nest, (tuple, list)) else [f.name for f in dataclasses.fields(nest)]


def child_of(nest: Any, key: Any) -> Any:
    """The child of a nest that one of `keys_of` leads to."""
    return nest[key] if isinstance(nest, (MutableMapping, tuple, list)) else getattr(nest, key)


def in_words(path: Path) -> str:
    """A place in a batch as one writes it, such as ``batch['y'][0]``."""
    return "batch" + "".join(f"[{key!r}]" for key in path) if path else "the batch"


def marks_of(nest: Any, total: int) -> Marks:
    """Which entries of one batch are per sample, as far as that can be told from their lengths.

    By its place, each tensor has True when its first dimension is `total`, else False; a list has True when it is one
    of samples. What is in such a list has no mark.
    """
    found = Marks()
    whole_list = raw_samples(nest)
    lists = whole_list or sample_lists(nest) is not None

    def mark(value: Any, path: Path) -> None:
        if isinstance(value, Tensor):
            if value.ndim:
                found[path] = value.size(0) == total
        elif is_nest(value):
            if isinstance(value, (list, tuple)) and (path or whole_list) and _of_samples(value, total, lists):
                found[path] = True
                return
            for key in keys_of(value):
                mark(child_of(value, key), (*path, key))

    mark(nest, ())
    return found


def _of_samples(value: Sequence[Any], total: int, lists: bool) -> bool:
    """Whether a list has one entry a sample; those of the usual fields hold tensors, which are cut themselves."""
    if len(value) != total:
        return False
    return lists or names_samples(value) or (isinstance(value, list) and not any(isinstance(v, Tensor) for v in value))


def names_samples(value: Sequence[Any]) -> bool:
    """Whether it is what torch's collate function makes of strings: a list of them, or a tuple."""
    return bool(value) and all(isinstance(item, (str, bytes)) for item in value)


def _piece(nest: Any, path: Path, marks: Marks, total: int, span: tuple[int, int], why: str) -> Any:
    cuts = marks.get(path)
    if isinstance(nest, Tensor):
        if cuts if cuts is not None else nest.ndim and nest.size(0) == total:
            _check_entry(nest, path, total, why)
            return nest[span[0] : span[1]]
        return nest
    if not is_nest(nest):
        if callable(getattr(nest, "to", None)):
            raise CutError(
                f"{why} cannot cut a {type(nest).__name__}, which may hold something of every sample; let the loader"
                " yield tensors (or lists) of one length, or leave it out"
            )
        return nest
    if cuts and isinstance(nest, (list, tuple)):
        _check_entry(nest, path, total, why)
        return nest[span[0] : span[1]]
    keys = iter(keys_of(nest))
    return rebuild(nest, lambda child: _piece(child, (*path, next(keys)), marks, total, span, why))


def _check_entry(entry: Any, path: Path, total: int, why: str) -> None:
    """Refuse to cut what has not one part a sample, or is of a kind that torch cannot cut."""
    length = entry.size(0) if isinstance(entry, Tensor) else len(entry)
    if length != total:
        raise CutError(
            f"{why} cannot cut this batch: {in_words(path)} had an entry for each sample before, and has {length} for"
            f" {total} samples now. If it is the same for all samples, keep it outside of the batch (on the trainer,"
            " say), or give it a first dimension of 1"
        )
    if isinstance(entry, Tensor) and (entry.is_nested or entry.layout != torch.strided):
        kind = "nested" if entry.is_nested else str(entry.layout).removeprefix("torch.")
        raise CutError(
            f"{why} cannot cut {in_words(path)}, a {kind} tensor, which torch cannot cut along its samples; let the"
            " loader yield plain tensors (padded, say, or .to_dense()) and make the other kind in the step, or leave"
            " it out"
        )
