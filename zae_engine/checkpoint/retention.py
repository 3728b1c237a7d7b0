"""Remove the checkpoints that need not be kept, and never the last whole one. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .disk import in_words, remove, sync
from .folder import Checkpoint, committed, problems_of, ranked


def retain(folder: Path, keep_last: int | None, keep_best: int = 0) -> list[str]:
    """Remove every committed checkpoint that is not kept.

    Kept are the newest ones, the best ones, and those that a kept one refers to (``refers_to`` in its manifest: a list
    of serials). The newest is verified before anything goes; if it is damaged, the newest whole one is kept, too, and
    if none is whole, nothing is removed.

    Parameters
    ----------
    folder : Path
        The run's ``checkpoints/``.
    keep_last : int or None
        How many of the newest, at least 1. None keeps all.
    keep_best : int
        How many of the best by their monitored value.

    Returns
    -------
    list of str
        A sentence for each problem: what is damaged, what cannot be removed. None is raised.

    Raises
    ------
    ValueError
        For counts that are too small.
    """
    if (keep_last is not None and keep_last < 1) or keep_best < 0:
        raise ValueError(f"keep_last={keep_last}, keep_best={keep_best}; keep_last is at least 1, keep_best at least 0")
    try:
        there = committed(folder)
        if keep_last is None or len(there) <= keep_last:
            return []
        return _thin(folder, there, [*there[-keep_last:], *ranked(there)[:keep_best]])
    except OSError as error:
        return [f"old checkpoints are kept: {in_words(error, folder)}"]


def _thin(folder: Path, there: list[Checkpoint], kept: list[Checkpoint]) -> list[str]:
    referred = _with_referred(kept, there)
    if len(referred) == len(there):
        return []
    whole, said = _newest_whole(there)
    if whole is None:
        return [*said, "old checkpoints are kept, as none is whole"]
    stay = _with_referred([*kept, whole], there)
    gone = [checkpoint.path for checkpoint in there if checkpoint.path not in stay]
    return said + _remove_all(folder, gone)


def _newest_whole(there: list[Checkpoint]) -> tuple[Checkpoint | None, list[str]]:
    said: list[str] = []
    for checkpoint in reversed(there):
        problems = problems_of(checkpoint.path)
        if not problems:
            return checkpoint, said
        said.append(f"{checkpoint.path.name} is damaged: {'; '.join(problems)}")
    return None, said


def _with_referred(kept: Iterable[Checkpoint], there: list[Checkpoint]) -> set[Path]:
    """Paths of those that are kept, and of those that they refer to, directly or not."""
    found: set[Path] = set()
    rest = list(kept)
    while rest:
        checkpoint = rest.pop()
        if checkpoint.path not in found:
            found.add(checkpoint.path)
            serials = checkpoint.manifest.get("refers_to")
            rest += [other for other in there if isinstance(serials, list) and other.serial in serials]
    return found


def _remove_all(folder: Path, paths: list[Path]) -> list[str]:
    """Take the names away first, so that one that is half removed is never taken for a checkpoint."""
    said = []
    for path in paths:
        trash = path.with_name(f".{path.name}.trash")
        try:
            remove(trash)
            os.rename(path, trash)
            sync(folder)
            remove(trash)
        except OSError as error:
            said.append(f"{path.name} cannot be removed: {in_words(error, path)}")
    return said
