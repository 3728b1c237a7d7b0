"""Files in folders that others may have filled: made anew beside their place, and read only where they are plain.

Whoever sends a run folder decides what stands in it: a link where a file is to be written, a pipe where one is to be
read, a document that is nested without end. Everything that this package writes into a folder, or reads from one,
goes through here. Imports nothing but the standard library.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

SMALL = 1 << 24  # bytes of a note, which is read in one piece
LARGE = 1 << 28  # of a document, which may hold many numbers
LONGEST = 1 << 25  # of one line of a file that may be of any length
DEEPEST = 100  # lists and mappings within each other
_PLAIN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none of these, and asks before it makes links
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.partial")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")
_HOUR = 3600.0


class NotPlainError(OSError):
    """Something else stands where a plain file is to be read or written."""

    def __str__(self) -> str:
        return f"{self.filename!r} is refused: {self.strerror}"


# ---------------------------------------------------------------------- writing


@contextmanager
def replacing(path: str | os.PathLike[str], sync: bool = True) -> Iterator[Path]:
    """Make a file whole, or not at all: yield the place to write to, which becomes `path` at the end.

    What is written lies beside `path` under a name that nobody can know, so that nothing can wait there, and a link at
    `path` is replaced, never followed. The mode is what the umask leaves, whichever library writes.

    Parameters
    ----------
    path : path-like
        Of the file.
    sync : bool
        Wait until it would survive a power cut.
    """
    path = Path(path)
    _refuse_odd(path)
    partial = path.with_name(f".{path.name[:64]}.{secrets.token_hex(8)}.partial")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _PLAIN, 0o666)
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
        finally:
            os.close(handle)
        yield partial
        _settle(partial, mode, sync)
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes, sync: bool = True) -> None:
    """Write a file whole, or not at all."""
    with replacing(path, sync) as partial, open(partial, "wb") as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], text: str, sync: bool = True) -> None:
    r"""Write text whole, or not at all, as UTF-8; what that cannot hold (half a surrogate) as ``\udce9``."""
    write_bytes(path, encoded(text), sync)


def write_all(file: FileIO, content: bytes) -> None:
    """Write it all to an unbuffered file; a disk that fills up takes a part first, and refuses the rest."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def encoded(text: str) -> bytes:
    r"""Text as UTF-8, which has no half of a surrogate pair (odd file names do): that is written as ``\udce9``."""
    return text.encode("utf-8", "backslashreplace")


def spreadsheet_text(text: str) -> str:
    """Text for a cell of a CSV file: in one line, and none that a spreadsheet computes.

    Excel and LibreOffice take what begins with ``=``, ``+``, ``-`` or ``@`` for a formula; an apostrophe before it
    makes it text. A line's end is written as an escape.
    """
    text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], writable(text))
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20") else text


def writable(value: Any) -> Any:
    """A text, or a nest of them, as UTF-8 can hold it; see `encoded`."""
    if isinstance(value, dict):
        return {writable(key): writable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [writable(inner) for inner in value]
    return encoded(value).decode() if isinstance(value, str) else value


@contextmanager
def appending(path: str | os.PathLike[str]) -> Iterator[FileIO]:
    """Open a file to write at its end, unbuffered; it is made if it is not there.

    Raises
    ------
    NotPlainError
        For a link, a folder, a pipe or a device.
    """
    with FileIO(path, "a+b", opener=lambda path, flags: _open(path, flags, follow=False)) as file:
        yield file


def cut(path: str | os.PathLike[str], size: int) -> None:
    """Leave only the first `size` bytes of a plain file.

    Raises
    ------
    NotPlainError
        For a link, a folder, a pipe or a device.
    """
    handle = _open(path, os.O_RDWR, follow=False)
    try:
        os.ftruncate(handle, size)
    finally:
        os.close(handle)


def folder_in(folder: str | os.PathLike[str], name: str) -> Path:
    """A folder within a folder, made if it is not there.

    Raises
    ------
    NotPlainError
        When it is a link that leads out of the folder: what is written into it would land elsewhere.
    """
    folder, path = Path(folder), Path(folder) / name
    refuse_outside(folder, path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_outside(folder: Path, path: Path) -> None:
    """Refuse a path, by its name within the folder, that links lead out of it."""
    if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), "")):
        raise NotPlainError(
            errno.ELOOP,
            "it is a link out of the folder, and nothing is written there; take the link away, or let the whole folder"
            " lie elsewhere",
            str(path),
        )


def clear_partials(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder; never one that may be written now."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if _PARTIAL.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < time.time() - _HOUR:
                        os.unlink(entry.path)


def _settle(partial: Path, mode: int, sync: bool) -> None:
    """Give a written file its mode (a library may have put one of its own there), and the disk its content."""
    handle = _open(partial, os.O_RDWR, follow=False)
    try:
        if hasattr(os, "fchmod") and stat.S_IMODE(os.fstat(handle).st_mode) != mode:
            os.fchmod(handle, mode)
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_odd(path: Path) -> None:
    """A file may be replaced, and a link to one; a folder, a pipe or a device is somebody's."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, RuntimeError):  # nothing there, or a link to nothing or to itself
        return
    if not stat.S_ISREG(mode):
        raise NotPlainError(errno.EEXIST, f"{_kind(mode)} stands there", str(path))


# ---------------------------------------------------------------------- reading


def open_plain(path: str | os.PathLike[str], follow: bool = False) -> BufferedReader:
    """Open a plain file to read; nothing else, so that nothing waits for a pipe, or reads a device without end.

    Parameters
    ----------
    path : path-like
    follow : bool
        Also by a link, which is right for a path that the user has written, and not for a name within a folder.

    Raises
    ------
    NotPlainError
        For a link, a folder, a pipe or a device.
    OSError
        When it cannot be opened.
    """
    return open(path, "rb", opener=lambda path, flags: _open(path, flags, follow))


def check_plain(path: str | os.PathLike[str]) -> None:
    """Refuse what is there and no plain file; nothing there is well.

    Raises
    ------
    NotPlainError
        For a link, a folder, a pipe or a device.
    """
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            raise _is_link(path)
        if not stat.S_ISREG(mode):
            raise NotPlainError(errno.EEXIST, f"{_kind(mode)} stands there", str(path))


def read_bytes(path: str | os.PathLike[str], most: int = SMALL, follow: bool = False) -> bytes:
    """Read a plain file of at most so many bytes.

    Raises
    ------
    NotPlainError
        For what is no plain file, or is larger.
    """
    with open_plain(path, follow) as file:
        size = os.fstat(file.fileno()).st_size  # the buffer is made before anything is read
        content = file.read(size + 1) if size <= most else b""
    if size > most:
        raise NotPlainError(errno.EFBIG, f"it has more than the {most >> 20} MB that are read", str(path))
    return content


def read_json(path: str | os.PathLike[str], most: int = SMALL) -> Any:
    """Read a plain file of JSON.

    Raises
    ------
    OSError
        For what is no plain file.
    ValueError
        For what is no JSON.
    """
    return parse_json(read_bytes(path, most))


def parse_json(text: bytes, as_is: bool = False) -> Any:
    """Parse JSON that anybody may have written; strings hold no half of a surrogate pair then, unless it is `as_is`.

    Raises
    ------
    ValueError
        For what is no JSON in UTF-8, or is nested more than `DEEPEST`.
    """
    said = text.decode("utf-8")
    try:
        value = json.loads(said)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if may_be_deep(text):
        _refuse_deep(value)
    return value if as_is or not _SURROGATE.search(said) else writable(value)


def may_have_surrogates(text: bytes) -> bool:
    """Whether what JSON says may have half of a surrogate pair in it, which UTF-8 cannot hold."""
    return _SURROGATE.search(text.decode("utf-8")) is not None


def may_be_deep(text: bytes) -> bool:
    """Whether JSON has so many brackets that it may be nested too deeply."""
    return text.count(b"[") + text.count(b"{") > DEEPEST


def lines_of(path: str | os.PathLike[str], begin: int = 0) -> Iterator[bytes]:
    """The lines of a plain file, without their ends, up to one that is longer than `LONGEST`, which nobody has written.

    Raises
    ------
    OSError
        For what is no plain file.
    """
    with open_plain(path) as file:
        file.seek(begin)
        while text := file.readline(LONGEST):
            if len(text) == LONGEST and not text.endswith(b"\n"):
                return
            yield text.removesuffix(b"\n")


def _open(path: str | os.PathLike[str], flags: int, follow: bool) -> int:
    """A handle of a plain file, which is asked about after it was opened, so that nothing can be exchanged between."""
    if not follow and not _NOFOLLOW and os.path.islink(path):
        raise _is_link(path)
    try:
        # Without O_NONBLOCK, opening a pipe would wait for whoever is at its other end.
        handle = os.open(path, flags | _PLAIN | _NONBLOCK | (0 if follow else _NOFOLLOW), 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) and os.path.islink(path):
            raise _is_link(path) from None
        if error.errno in (errno.ENXIO, errno.EISDIR):  # a pipe or a socket, to be written to; a folder
            raise NotPlainError(error.errno, f"{_kind(os.lstat(path).st_mode)} stands there", str(path)) from None
        raise
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise NotPlainError(errno.EEXIST, f"{_kind(mode)} stands there", str(path))
    return handle


def _is_link(path: str | os.PathLike[str]) -> NotPlainError:
    return NotPlainError(errno.ELOOP, "it is a link, which is not followed; put the file itself there", str(path))


def _kind(mode: int) -> str:
    """What is no plain file, in a word."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFLNK: "a link", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _refuse_deep(value: Any) -> None:
    level, depth = [value], 0
    while level := [outer for outer in level if isinstance(outer, (dict, list))]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
