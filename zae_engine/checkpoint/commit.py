"""Write one checkpoint by several processes so that it is there whole, or not at all. Imports no torch."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..files import clear_partials, read_bytes, read_json, refuse_outside, writable, write_text
from .disk import digest, in_words, remove, sync, write_json
from .errors import CheckpointError
from .folder import FORMAT, MANIFEST, faults_of, is_inside, name_of, near, parse_name, seal

Files = dict[str, dict[str, Any]]  # size and SHA-256 by name
_LONGEST_PAUSE = 0.05
_LEFT = re.compile(r"\.(?P<name>[^.]+)\.(?:[\w-]+\.(?P<kind>partial|failed|replaced)|trash)")


class Commit:
    """One checkpoint while it is written, by `count` processes with a Commit each.

    All files go into ``parent/.NAME.TOKEN.partial``; every process calls `write`, process 0 then calls `finish`,
    which gives the folder its final name. Whatever ends this in between, nothing that is committed is touched. A
    process that fails leaves a note beside the folder for the others (``.NAME.TOKEN.failed``), so that none of them
    waits for it; `clear_leftovers` removes the notes.

    Parameters
    ----------
    parent : Path
        The run's ``checkpoints/``; made when it is missing.
    name : str
        Of the checkpoint, by `name_of`.
    token : str
        The same in all processes, another one for every attempt.
    index : int
        Of this process, from 0.
    count : int
        Of processes that write.
    """

    def __init__(self, parent: Path, name: str, token: str, index: int = 0, count: int = 1) -> None:
        if parse_name(name) is None:
            raise ValueError(f"{name!r} is no name of a checkpoint; write name_of(serial, step)")
        if not re.fullmatch(r"[\w-]+", token):
            raise ValueError(f"token={token!r} has other signs than letters, digits, _ and -")
        if not 0 <= index < count:
            raise ValueError(f"index={index} is not below count={count}")
        self.path = Path(parent) / name
        self._token = f"{name}.{token}"
        self.partial = self.path.with_name(f".{name}.{token}.partial")
        self.index = index
        self.count = count
        self._note = self.path.with_name(f".{name}.{token}.failed")
        self._aside = self.path.with_name(f".{name}.{token}.replaced")

    def write(self, function: Callable[[Path], Sequence[str]]) -> Files:
        """Let this process write its files, and list them with their checksums.

        Parameters
        ----------
        function : callable
            Gets the partial folder, writes into it, and returns the names of its files, with forward slashes where
            they are in folders of it (``"sharded/0.safetensors"``).

        Returns
        -------
        dict
            Size and SHA-256 of each file.

        Raises
        ------
        CheckpointError
            When the disk refuses, in words, or another process has failed. The partial folder is removed.
        """
        with self._guarded():
            self._check_others()
            self._make_folder()
            files = self._record(function(self.partial))
            sync(self.partial)
            self._check_others()
            # The last thing done in the folder: process 0 may rename it as soon as all lists are there.
            write_json(self.partial / f"files-{self.index}.json", files)
        return files

    def finish(
        self, summary: Mapping[str, Any], timeout: float = 600.0, given_up: Callable[[], bool] = lambda: False
    ) -> Path:
        """Wait for the files of all processes, write the manifest and give the folder its name. By process 0 only.

        Parameters
        ----------
        summary : mapping
            ``serial`` and ``step``, which the name has, and whatever else the manifest shall say in plain values:
            ``epoch``, ``metrics``, ``monitored`` (name, value, mode), ``best``, ``refers_to``.
        timeout : float
            Seconds to wait for the other processes.
        given_up : callable
            Asked again and again while it waits; true ends it.

        Returns
        -------
        Path
            The committed folder. One of the same name that was there is removed after it.

        Raises
        ------
        CheckpointError
            When it is not committed; the partial folder is removed.
        """
        with self._guarded():
            manifest = self._manifest(summary, self._gather(timeout, given_up))
            write_json(self.partial / MANIFEST, manifest)
            for index in range(self.count):
                (self.partial / f"files-{index}.json").unlink()
            sync(self.partial)
            self._settle()
        with suppress(OSError):  # it is committed; what could not be removed is for clear_leftovers
            remove(self._aside)
        return self.path

    def abandon(self, reason: str = "it was given up") -> None:
        """Remove the partial folder, and tell the other processes why. Never raises."""
        for _ in range(2):  # a full disk may take the note only after the folder has gone
            with suppress(OSError):
                self._leave_note(reason)
            with suppress(OSError):
                remove(self.partial)

    def _leave_note(self, reason: str) -> None:
        if self.count == 1 or self._note.exists():
            return
        write_text(self._note, f"process {self.index}: {reason}", sync=False)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Leave nothing behind, and put what the disk says in words."""
        try:
            yield
        except BaseException as error:
            # Where another process failed first, its reason counts: the folder was taken away under this one.
            reason = self._said_by_others() or in_words(error, self.partial)
            self.abandon(reason or str(error) or type(error).__name__)
            if not reason or not isinstance(error, Exception):
                raise
            raise CheckpointError(f"checkpoint {self.path.name} is not written: {reason}") from error

    def _check_others(self) -> None:
        if reason := self._said_by_others():
            raise CheckpointError(f"checkpoint {self.path.name} is not written: {reason}")

    def _said_by_others(self) -> str:
        with suppress(OSError):
            return read_bytes(self._note).decode("utf-8", "replace") if self.count > 1 else ""
        return ""

    def _make_folder(self) -> None:
        parent = self.path.parent
        refuse_outside(parent.parent, parent)
        if not parent.is_dir():
            parent.mkdir(parents=True, exist_ok=True)
            sync(parent.parent)
        self.partial.mkdir(exist_ok=True)
        refuse_outside(parent, self.partial)

    def _record(self, names: Sequence[str]) -> Files:
        files: Files = {}
        for name in names:
            path = self.partial / name
            if not is_inside(name) or name == MANIFEST or re.fullmatch(r"files-\d+\.json(\.partial)?", name):
                raise CheckpointError(
                    f"{name!r} cannot be a file of a checkpoint; take another name, within the folder"
                )
            if not path.is_file() or path.is_symlink():
                there = [found.relative_to(self.partial).as_posix() for found in self.partial.rglob("*")]
                raise CheckpointError(f"{name!r} was to be written, and is no file{near(name, there)}")
            sync(path)
            files[name] = dict(zip(("size", "sha256"), digest(path), strict=True))
        for folder in {folder for name in names for folder in (self.partial / name).relative_to(self.partial).parents}:
            sync(self.partial / folder)
        return files

    def _gather(self, timeout: float, given_up: Callable[[], bool]) -> list[Files]:
        end, pause = time.monotonic() + timeout, 0.001
        found: dict[int, Files] = {}
        while True:
            there = set(os.listdir(self.partial))  # which makes a network file system look anew
            for index in range(self.count):
                if index not in found and f"files-{index}.json" in there:
                    found |= self._arrived(index)
            if len(found) == self.count:
                return [found[index] for index in range(self.count)]
            self._check_others()
            if given_up():
                raise CheckpointError(f"checkpoint {self.path.name} is not written: it was given up")
            if time.monotonic() >= end:
                raise CheckpointError(self._late(found, timeout))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _arrived(self, index: int) -> dict[int, Files]:
        """A process's list, by its index, when its files can be seen from here with the sizes that they have."""
        try:
            files: Files = read_json(self.partial / f"files-{index}.json")
            whole = all((self.partial / name).stat().st_size == files[name]["size"] for name in files)
        except (FileNotFoundError, ValueError):
            return {}
        return {index: files} if whole else {}

    def _late(self, found: Mapping[int, Files], timeout: float) -> str:
        late = ", ".join(str(index) for index in range(self.count) if index not in found)
        return (
            f"checkpoint {self.path.name} is not written: process {late} did not finish its files within {timeout:g} s;"
            f" is {str(self.path.parent)!r} the same folder on all machines?"
        )

    def _manifest(self, summary: Mapping[str, Any], lists: Sequence[Files]) -> dict[str, Any]:
        files: Files = {}
        for index, listed in enumerate(lists):
            if twice := sorted(files.keys() & listed.keys()):
                raise CheckpointError(
                    f"{twice[0]!r} was written by process {index} and by another one; name it by process"
                )
            files |= listed
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        said = {"format": FORMAT} | dict(summary) | {"created": created, "processes": self.count, "files": files}
        manifest: dict[str, Any] = json.loads(json.dumps(_plain(said)))
        manifest["sha256"] = seal(manifest)
        if faults := list(faults_of(manifest)):
            raise CheckpointError(f"the summary does not do: the manifest {faults[0]}")
        if name_of(manifest["serial"], manifest["step"]) != self.path.name:
            raise CheckpointError(
                f"the summary is of {name_of(manifest['serial'], manifest['step'])}, not {self.path.name}"
            )
        return manifest

    def _settle(self) -> None:
        if os.path.lexists(self.path):
            os.rename(self.path, self._aside)
        try:
            os.rename(self.partial, self.path)
        except OSError:
            if os.path.lexists(self._aside):
                os.rename(self._aside, self.path)
            raise
        sync(self.path.parent)


def clear_leftovers(parent: Path) -> list[str]:
    """Remove what killed runs left in ``checkpoints/``. Call it under the run's lock only, with no commit under way.

    A checkpoint that was moved away for another one of its name, which then did not come, is put back.

    Returns
    -------
    list of str
        A sentence for each leftover that cannot be removed.
    """
    kept = []
    clear_partials(parent)
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        found = _LEFT.fullmatch(path.name)
        if not found or parse_name(found["name"]) is None:
            continue
        try:
            if found["kind"] == "replaced" and not os.path.lexists(parent / found["name"]):
                os.rename(path, parent / found["name"])
            else:
                remove(path)
        except OSError as error:
            kept.append(f"{path.name} cannot be removed: {in_words(error, path)}")
    return kept


def _plain(value: Any, where: str = "summary") -> Any:
    """A nest that JSON holds as it is: no nan and inf, which other readers refuse; numbers of numpy and torch as such.

    Raises
    ------
    CheckpointError
        Naming the place of a value that is not plain.
    """
    if isinstance(value, Mapping):
        return {writable(str(key)): _plain(inner, f"{where}[{key!r}]") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{where}[{place}]") for place, inner in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return writable(value)
    raise CheckpointError(f"{where} is of type {type(value).__name__}; a manifest holds numbers, text, lists and dicts")
