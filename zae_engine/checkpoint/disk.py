"""What a checkpoint asks of the disk: whole files, checksums, and its errors in words. Imports no torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..files import NotPlainError, open_plain, write_text

_BLOCK = 1 << 20
_WORDS = {
    "ENOSPC": "no space left on the disk; free some, keep fewer checkpoints, or save to another disk",
    "EDQUOT": "the disk quota is used up; free some of it, keep fewer checkpoints, or save elsewhere",
    "EROFS": "the file system is read-only; save to another one",
    "EACCES": "no permission to write there; save to another folder, or change its owner or mode",
    "EPERM": "no permission to write there; save to another folder, or change its owner or mode",
    "EFBIG": "a file is larger than the file system, or `ulimit -f`, allows",
    "EIO": "the disk reports an error; save to another one",
    "ENOENT": "the folder has gone while it was written",
    "ESTALE": "the file server has lost the folder while it was written",
    "ENOTDIR": "a file stands where a folder should be; move it away, or save to another folder",
    "EMFILE": "too many files are open; raise `ulimit -n`",
}
_OF_NUMBER = {getattr(errno, name): words for name, words in _WORDS.items() if hasattr(errno, name)}


def digest(path: Path) -> tuple[int, str]:
    """Read a file in blocks, with the interpreter's lock free most of the time.

    Returns
    -------
    tuple of int and str
        Its size in bytes, and its SHA-256 as 64 hexadecimal digits.
    """
    found, size, block = hashlib.sha256(), 0, memoryview(bytearray(_BLOCK))
    with open_plain(path, follow=True) as file:
        while count := file.raw.readinto(block):
            found.update(block[:count])
            size += count
    return size, found.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut.

    Windows syncs neither folders nor files that are open for reading; nothing is done there.
    """
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync files only
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` whole or not at all: under another name, synced, then renamed."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def remove(path: Path) -> None:
    """Remove a file, a link (not what it points to), or a folder with all that is in it; nothing there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def in_words(error: BaseException, path: Path) -> str:
    """Say why nothing could be written at `path`, or "" for an error that is not the disk's.

    Parameters
    ----------
    error : BaseException
        An OSError, or what a library in Rust (safetensors) makes of one: its text ends in ``(os error 28)``.
    path : Path
        Named when the error names no file.
    """
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    said = re.search(r"\(os error (\d+)\)", str(error))
    if number is None and said:
        number = int(said[1])
    if number is None:
        return f"{error}" if isinstance(error, OSError) else ""
    where = getattr(error, "filename", None) or path
    if isinstance(error, NotPlainError):
        return f"{error.strerror} ({os.fsdecode(where)!r})"
    return f"{_OF_NUMBER.get(number, os.strerror(number))} ({os.fsdecode(where)!r})"
