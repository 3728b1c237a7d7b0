"""From a trainer's state to a committed checkpoint: copied at once, written beside the training."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ...checkpoint.background import Background
from ...checkpoint.codec import pack
from ...checkpoint.commit import Commit
from ...checkpoint.documents import write_packed, write_tensors
from ...checkpoint.folder import CHECKPOINTS, name_of
from ...checkpoint.retention import retain
from ...checkpoint.snapshot import Snapshot, equal
from ...files import replacing
from ...logs.history_file import HistoryFile
from ..processes.group import Processes

Weights = Mapping[str, Mapping[str, Tensor]]
MODEL, BEST, STATE = "model", "best", "state"
_PATIENCE = 600.0  # seconds that process 0 waits for the files of the others


def own_stem(index: int) -> str:
    """The name of the document of one process."""
    return f"process-{index}"


@dataclass
class Contents:
    """What one process puts into a checkpoint.

    Attributes
    ----------
    summary : dict
        For the manifest: ``serial``, ``step`` and more.
    documents : dict
        Nests of plain values, arrays and tensors by stem.
    weights, private : dict
        Tensors by stem, for files that hold nothing else; private ones change no more, and need no copy.
    sharded : Shards, optional
        What this process holds of a sharded training.
    together : callable, optional
        Writes further files into the folder, and has to be called by all processes at once, not beside the training.
    history : int
        How many lines the history has at this point.
    is_best : bool
        Whether the best weights are in it.
    """

    summary: dict[str, Any]
    documents: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    private: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    sharded: Any = None
    together: Callable[[Path], list[str]] | None = None
    history: int = 0
    is_best: bool = False


class Saver:
    """Writes the checkpoints of one run, one at a time.

    Parameters
    ----------
    folder : Path
        The run's.
    processes : Processes
        Each has a Saver, and calls the same methods.
    suffix : str
        ``.safetensors`` or ``.ckpt``.
    keep_last, keep_best : int
        See `retain`.
    token : str
        The same on all processes, another one in every attempt.
    history : HistoryFile or None
        Of process 0.
    in_background : bool
        Whether the training goes on meanwhile.

    Attributes
    ----------
    committed : str or None
        The last checkpoint that this process knows to be committed; on process 0 only.
    blocked : float
        Seconds that the training was kept waiting so far, which the Checkpointer counts.
    """

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        suffix: str,
        keep: tuple[int | None, int],
        token: str,
        history: HistoryFile | None,
        in_background: bool = True,
    ) -> None:
        self.folder, self.suffix = folder, suffix
        self.committed: str | None = None
        self.blocked = 0.0
        self._processes, self._keep, self._token, self._history = processes, keep, token, history
        self._in_background, self._background = in_background, Background()
        self._snapshots: dict[str, dict[str, Snapshot]] = {}  # by kind and stem
        self._failure: BaseException | None = None
        self._patience = math.inf  # until when, by time.monotonic, the files of other processes are waited for
        self._problems: list[str] = []

    def save(self, contents: Contents) -> None:
        """Copy, and begin to write; nothing else may be under way."""
        job = self._frozen(contents)
        if self._in_background and contents.together is None:
            self._background.submit(job)
        else:
            self._try(job)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for what is being written."""
        self._background.wait(timeout)

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return self._background.busy

    def give_up(self, seconds: float) -> None:
        """Let process 0 wait only so long for the files of others, who may be gone."""
        self._patience = time.monotonic() + seconds

    def failure(self) -> BaseException | None:
        """Why the last one was not written, told once; None while it is being written, or when all is well."""
        if self._background.busy:
            return None
        failure, self._failure = self._failure or self._background.failure(), None
        return failure

    def problems(self) -> list[str]:
        """What went wrong beside a commit, told once: old checkpoints that could not be removed, say."""
        problems, self._problems = self._problems, []
        return problems

    def _try(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self._failure = error

    def _frozen(self, contents: Contents) -> Callable[[], None]:
        """Copy everything, so that the training can change it; return what writes the copy."""
        values, packed = dict[str, Any](), dict[str, dict[str, Tensor]]()
        for stem, tree in contents.documents.items():
            values[stem], packed[stem] = pack(tree)
        packed = self._copies("documents", packed)
        weights = self._copies("weights", contents.weights)
        if contents.sharded is not None:
            contents.sharded.tensors = self._copies("sharded", {"": contents.sharded.tensors})[""]
        files = {stem: (values[stem], tensors) for stem, tensors in packed.items()}
        return partial(self._write, contents, files, weights | contents.private)

    def _copies(self, kind: str, tensors: Weights) -> dict[str, dict[str, Tensor]]:
        """Copies of the tensors of each stem, in memory that is used again and let go with its stem."""
        before = self._snapshots.get(kind, {})
        self._snapshots[kind] = now = {stem: before.get(stem) or Snapshot() for stem in tensors}
        return {stem: now[stem].take(each) for stem, each in tensors.items()}

    def _write(self, contents: Contents, documents: dict[str, Any], weights: Weights) -> None:
        weights = _each_once(weights)
        name = name_of(contents.summary["serial"], contents.summary["step"])
        commit = Commit(self.folder / CHECKPOINTS, name, self._token, self._processes.index, self._processes.count)
        commit.write(partial(self._files, contents, documents, weights))
        if not self._processes.first:
            return
        if self._history is not None:
            try:
                self._history.write(flush=True)
            except OSError as error:
                commit.abandon(str(error))
                raise
            contents.summary["history"] = contents.history
        path = commit.finish(contents.summary, _PATIENCE, lambda: time.monotonic() > self._patience)
        self.committed = str(path)
        if contents.is_best:
            source = next(path / f"{stem}{self.suffix}" for stem in (BEST, MODEL) if stem in weights)
            self._problems += publish(source, self.folder)
        self._problems += retain(self.folder / CHECKPOINTS, *self._keep)

    def _files(self, contents: Contents, documents: dict[str, Any], weights: Weights, folder: Path) -> list[str]:
        names = []
        for stem, (values, tensors) in documents.items():
            names += write_packed(folder, stem, values, tensors, self.suffix)
        for stem, tensors in weights.items():
            own, metadata = _without_twins(tensors)
            write_tensors(folder / f"{stem}{self.suffix}", own, metadata)
            names.append(f"{stem}{self.suffix}")
        names += contents.sharded.write(folder) if contents.sharded is not None else []
        return names + (contents.together(folder) if contents.together is not None else [])


def publish(source: Path, folder: Path) -> list[str]:
    """Let the best weights lie in the run folder, too; as the same file where the file system can do that.

    Returns
    -------
    list of str
        A sentence when that could not be done.
    """
    try:
        with replacing(folder / f"{MODEL}{source.suffix}") as partial_name:
            partial_name.unlink()
            try:
                os.link(source, partial_name)
            except OSError:
                shutil.copyfile(source, partial_name)
    except OSError as error:
        return [f"the best weights are in {str(source)!r} only: {error}"]
    return []


def _each_once(weights: Weights) -> Weights:
    """Without a file of the best weights where they are the model's, to the bit, which an add-on may have swapped."""
    if BEST in weights and MODEL in weights and equal(weights[BEST], weights[MODEL]):
        return {stem: tensors for stem, tensors in weights.items() if stem != BEST}
    return weights


def _without_twins(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tied weight once; the others are named in the file's header, as safetensors does it."""
    own, first, twins = dict[str, Tensor](), dict[int, str](), dict[str, str]()
    for name, tensor in tensors.items():
        if id(tensor) in first:
            twins[name] = first[id(tensor)]
        else:
            own[name], first[id(tensor)] = tensor, name
    return own, twins
