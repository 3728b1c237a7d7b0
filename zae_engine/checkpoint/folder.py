"""Find committed checkpoints, and tell whole ones from damaged ones. Imports no torch, so that it is quick."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard

from ..files import may_have_surrogates, parse_json, read_bytes, writable
from ..suggestions import nearest, nearest_path
from . import best_rule
from .disk import digest
from .errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"
_NAME = re.compile(r"([0-9]{6,})-step-([0-9]+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def name_of(serial: int, step: int) -> str:
    """Name a checkpoint's folder: ``name_of(7, 420)`` is ``"000007-step-420"``."""
    return f"{serial:06d}-step-{step}"


def parse_name(name: str) -> tuple[int, int] | None:
    """Serial and step of a checkpoint's folder; None for a name that `name_of` does not give."""
    found = _NAME.fullmatch(name)
    parsed = (int(found[1]), int(found[2])) if found else None
    return parsed if parsed and name_of(*parsed) == name else None


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint, not verified yet. What its manifest does not say properly is empty here.

    Attributes
    ----------
    path : Path
    serial : int
        Number of the commit: the higher, the later.
    step : int
        Optimizer steps that were done.
    manifest : dict
        Empty when it cannot be read.
    """

    path: Path
    serial: int
    step: int
    manifest: dict[str, Any]

    @property
    def epoch(self) -> int | None:
        """The manifest's epoch."""
        epoch = self.manifest.get("epoch")
        return epoch if _is_count(epoch) else None

    @property
    def processes(self) -> int | None:
        """How many processes wrote it."""
        processes = self.manifest.get("processes")
        return processes if _is_count(processes) else None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics by name; "nan" and "inf", which JSON has no numbers for, are numbers again."""
        metrics = _dict(self.manifest.get("metrics"))
        return {name: number for name, value in metrics.items() if (number := _number(value)) is not None}

    @property
    def files(self) -> dict[str, Any]:
        """Size and SHA-256 of each file, by its name within the folder."""
        return _dict(self.manifest.get("files"))

    @property
    def size(self) -> int:
        """Bytes of all files that are listed."""
        sizes = [_dict(entry).get("size") for entry in self.files.values()]
        return sum(size for size in sizes if _is_count(size))

    @property
    def created(self) -> datetime | None:
        """When it was committed, with its time zone."""
        try:
            return datetime.fromisoformat(self.manifest.get("created", "")).astimezone()
        except (TypeError, ValueError, OverflowError, OSError):
            return None

    @property
    def monitored(self) -> tuple[str, str, float] | None:
        """Name, mode ("min" or "max") and value of what is watched for the best; None without a finite value."""
        watched = _dict(self.manifest.get("monitored"))
        value, mode = _number(watched.get("value")), watched.get("mode")
        if value is None or not best_rule.is_finite(value) or mode not in best_rule.MODES:
            return None
        return str(watched.get("name")), mode, value

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists; whatever else lies in the folder is never loaded.

        Raises
        ------
        CheckpointError
            With the nearest name that is listed.
        """
        if name in self.files:
            return self.path / name
        raise CheckpointError(f"{str(self.path)!r} lists no file {name!r}{near(name, self.files)}")


def read_checkpoint(path: Path) -> Checkpoint:
    """Look at one checkpoint, under any name. Errors are left to `problems_of`."""
    manifest, _ = _read_manifest(path)
    serial, step = parse_name(path.name) or (manifest.get("serial"), manifest.get("step"))
    return Checkpoint(path, serial if _is_count(serial) else 0, step if _is_count(step) else 0, manifest)


def committed(folder: Path, newest: int | None = None) -> list[Checkpoint]:
    """Checkpoints in a folder ``checkpoints/``, whole or damaged, in order of serial; at most so many of the newest.

    Stray files, folders of other names and what is still being written are passed over; no folder has none.
    """
    found = [path for path in _entries(folder) if parse_name(path.name) and path.is_dir()]
    found.sort(key=lambda path: parse_name(path.name) or (0, 0))
    return [read_checkpoint(path) for path in (found if newest is None else found[-newest:])]


def next_serial(folder: Path) -> int:
    """The serial for the next commit: above all that are there, damaged and unfinished ones, too."""
    names = [path.name.removeprefix(".").split(".")[0] for path in _entries(folder)]
    return 1 + max((parsed[0] for name in names if (parsed := parse_name(name))), default=0)


def problems_of(path: Path, checksums: bool = True) -> list[str]:
    """Verify a checkpoint: its manifest, and that each file that it lists is there, whole and unchanged.

    Files that are not listed are no problem: an operating system, a sync tool or the user may put some there, and
    nothing reads them (see `Checkpoint.file`). `foreign_files` names them.

    Parameters
    ----------
    path : Path
        The checkpoint's folder.
    checksums : bool
        Read the files and compare SHA-256. False compares sizes only.

    Returns
    -------
    list of str
        A sentence for each problem; empty for a whole one.
    """
    return [problem for problem in examine(path, checksums).values() if problem]


def examine(path: Path, checksums: bool = True) -> dict[str, str]:
    """As `problems_of`, by name of the file, the manifest first; "" for a file that is whole.

    Checksums are compared only where manifest and sizes are right: the rest is known to be damaged.
    """
    manifest, problem = _read_manifest(path)
    if problem:
        return {MANIFEST: problem}
    files: dict[str, Any] = manifest["files"]
    found = {name: _look(path, name, entry["size"]) for name, entry in files.items()}
    if checksums and not any(found.values()):
        # Beside a training, one thread: the others' cores are busy, and at the interpreter's end there are no new ones.
        alone = threading.current_thread() is threading.main_thread()
        with ThreadPoolExecutor(4) if alone else nullcontext() as pool:
            sums = (pool.map if pool else map)(lambda name: _compare(path, name, files[name]["sha256"]), files)
            found = dict(zip(files, sums, strict=True))
    return {MANIFEST: ""} | found


def foreign_files(path: Path) -> list[str]:
    """Names of the files in a checkpoint's folder that its manifest does not list; nothing loads them."""
    listed = read_checkpoint(path).files
    there = [found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_symlink() or found.is_file()]
    return sorted(name for name in there if name not in listed and name != MANIFEST)


def choose(folder: Path, which: str | Path = "last") -> tuple[Checkpoint | None, list[str]]:
    """Choose the checkpoint to go on from. It has been verified.

    Parameters
    ----------
    folder : Path
        The run's ``checkpoints/``.
    which : str or Path
        ``"last"``: the newest whole one. ``"best"``: the whole one with the best monitored value, of equal ones the
        first. Else a path: a checkpoint, which is taken or refused, or a run folder, of which the last is taken.

    Returns
    -------
    tuple of Checkpoint or None, and list of str
        None when there is none that is whole; and a sentence for each that was passed over, saying why.

    Raises
    ------
    CheckpointError
        For a path at which there is no checkpoint, or a damaged one.
    """
    if which == "last":
        return _first_whole(reversed(committed(folder)))
    if which == "best":
        return _best(committed(folder))
    found = locate(which, words=("best", "last"))
    if isinstance(found, Checkpoint):
        if problems := problems_of(found.path):
            raise CheckpointError(f"{str(found.path)!r} is damaged: {'; '.join(problems)}")
        return found, []
    chosen, skipped = _first_whole(reversed(found))
    if chosen is None:
        raise CheckpointError(f"{str(which)!r} has no whole checkpoint; {'; '.join(skipped) or 'it has none at all'}")
    return chosen, skipped


def locate(path: str | Path, words: tuple[str, ...] = ()) -> Checkpoint | list[Checkpoint]:
    """Find what a path means: one checkpoint; or those of a run folder, or of its ``checkpoints/``.

    Parameters
    ----------
    path : str or Path
    words : tuple of str
        What could have been written in place of a path, for the message.

    Raises
    ------
    CheckpointError
        When it is neither, with the nearest name.
    """
    path = Path(path)
    if (path / MANIFEST).is_file() or (path.is_dir() and parse_name(path.resolve().name)):
        return read_checkpoint(path)
    inside = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    if found := committed(inside):
        return found
    if inside != path or (path / "run.json").is_file() or (path.is_dir() and path.resolve().name == CHECKPOINTS):
        return []
    what = f"{str(path)!r} is no checkpoint and no run folder" if path.exists() else f"there is no {str(path)!r}"
    meant = nearest(str(path), words) or nearest_path(path)
    raise CheckpointError(f"{what}; did you mean {meant!r}?" if meant else what)


def ranked(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Those with a monitored value, the best first, of equal ones the earlier first.

    The newest one says what is monitored; values of another name or mode cannot be compared with it.
    """
    watched = [(checkpoint, checkpoint.monitored) for checkpoint in checkpoints]
    last = next((monitored for _, monitored in reversed(watched) if monitored), None)
    if last is None:
        return []
    values = [(monitored[2], c) for c, monitored in watched if monitored and monitored[:2] == last[:2]]
    return [checkpoint for _, checkpoint in best_rule.ranked(values, lambda pair: pair[0], last[1])]


def seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, but for the key that holds it: a flipped byte in it is found out."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def faults_of(manifest: Any) -> Iterator[str]:
    """What is wrong with what a manifest says."""
    if not isinstance(manifest, dict) or not _is_count(manifest.get("format")):
        yield "is no manifest of a checkpoint"
    elif manifest["format"] > FORMAT:
        yield f"was written by a newer zae-engine (format {manifest['format']}); upgrade zae-engine to read it"
    elif manifest["format"] != FORMAT:
        yield f"has the unknown format {manifest['format']}"
    elif seal(manifest) != manifest.get("sha256"):
        yield "was changed after it was written: its own checksum differs"
    else:
        yield from _wrong_values(manifest)


def near(name: str, names: Iterator[str] | list[str] | Mapping[str, Any]) -> str:
    """End a message with the nearest of `names`, if there is one."""
    meant = nearest(name, names)
    return f"; did you mean {meant!r}?" if meant else ""


def _wrong_values(manifest: dict[str, Any]) -> Iterator[str]:
    for key in ("serial", "step", "processes"):
        if not _is_count(manifest.get(key)):
            yield f"says {key}: {manifest.get(key)!r}, which is no count"
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        yield "lists no files"
        return
    for name, entry in files.items():
        entry = _dict(entry)
        if not _is_count(entry.get("size")) or not _SHA256.fullmatch(str(entry.get("sha256"))):
            yield f"lists {name!r} without its size and SHA-256"
        elif not is_inside(name) or Path(name).drive or name == MANIFEST:
            yield f"lists {name!r}, which is no file within the checkpoint"


def is_inside(name: str) -> bool:
    """Whether a name, with forward slashes, stays within the folder that it is taken from."""
    return name.isprintable() and not any(part in ("", ".", "..") or "\\" in part for part in name.split("/"))


def _read_manifest(path: Path) -> tuple[dict[str, Any], str]:
    """The manifest, whatever of it can be read, and what is wrong with it or ""."""
    try:
        if problem := _look(path, MANIFEST):
            return {}, problem
        text = read_bytes(path / MANIFEST, follow=True)
        manifest, odd = parse_json(text, as_is=True), may_have_surrogates(text)
    except OSError as error:
        return {}, f"{MANIFEST} cannot be read: {error.strerror}"
    except ValueError:
        return {}, f"{MANIFEST} is damaged: it is not JSON"
    faults = [f"{MANIFEST} {fault}" for fault in faults_of(manifest)]
    own = parse_name(path.name)
    if not faults and own and own != (manifest["serial"], manifest["step"]):
        faults = [f"{MANIFEST} is of {name_of(manifest['serial'], manifest['step'])!r}"]
    return writable(_dict(manifest)) if odd else _dict(manifest), "; ".join(faults)


def _look(path: Path, name: str, size: int | None = None) -> str:
    """What can be seen to be wrong with a file without reading it; of no known size, any is right."""
    try:
        status = (path / name).stat()
        if not (path / name).resolve().is_relative_to(path.resolve()):
            return f"{name} is a link to outside of the checkpoint"
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        return f"{name} is missing" if missing else f"{name} cannot be read: {error.strerror}"
    except RuntimeError:  # a ring of links, before Python 3.13
        return f"{name} is a link to itself"
    if not stat.S_ISREG(status.st_mode):
        return f"{name} is no file"
    if size is not None and status.st_size != size:
        empty = "is empty" if not status.st_size else f"has {status.st_size} bytes"
        return f"{name} {empty}, and had {size} when it was written"
    return ""


def _compare(path: Path, name: str, sha256: str) -> str:
    try:
        return "" if digest(path / name)[1] == sha256 else f"{name} was changed: its checksum differs"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


def _best(checkpoints: list[Checkpoint]) -> tuple[Checkpoint | None, list[str]]:
    marked = [checkpoint for checkpoint in reversed(checkpoints) if checkpoint.manifest.get("best") is True]
    candidates = ranked(checkpoints) or marked
    if candidates:
        return _first_whole(candidates)
    watched = [_dict(checkpoint.manifest.get("monitored")) for checkpoint in checkpoints]
    if seen := [(str(w["name"]), _number(w.get("value"))) for w in watched if "name" in w]:
        name, values = seen[-1][0], dict.fromkeys(str(value) for _, value in seen)
        return None, [f"no checkpoint is the best: {name} was never finite ({', '.join(values)}), and {best_rule.RULE}"]
    return None, ["no checkpoint has a value that tells the best"]


def _first_whole(checkpoints: Iterator[Checkpoint] | list[Checkpoint]) -> tuple[Checkpoint | None, list[str]]:
    skipped: list[str] = []
    for checkpoint in checkpoints:
        problems = problems_of(checkpoint.path)
        if not problems:
            return checkpoint, skipped
        skipped.append(f"{checkpoint.path.name} is passed over: {'; '.join(problems)}")
    return None, skipped


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> float | None:
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, float) or (_is_count(value) and value < 1 << 63):
        return float(value)
    return float(value) if isinstance(value, int) and -1 << 63 <= value < 0 else None  # larger ones are no metrics
