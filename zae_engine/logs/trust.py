"""What a run folder says is data: no address and no path of it is used outside of it, unless the user names it, too.

A folder may come from anyone. Its notes name servers, which would be sent the user's own credentials, and files, which
would be cut or renamed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..terminal import PrintableError
from .cursor import Cursor, path_of
from .loggers.logger import Logger

_LOCAL = re.compile(r"sqlite:///|file://(?=/)|file:(?!//)")


class ForeignError(PrintableError, ValueError):
    """A run folder names an address or a path outside of it, which the user has not named."""


def vetted(kind: type[Logger], cursor: Cursor, folder: Path, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings that a folder's note has, as far as they may be used, and the user's `own` over them.

    Raises
    ------
    ForeignError
        With what is refused, and how it is allowed.
    """
    check_places(kind, folder)
    own = own or {}
    noted = {name: value for name, value in cursor.settings.items() if name not in own}
    foreign = [item for item in _items(kind, noted) if not _harmless(kind, *item, folder)]
    if foreign:
        named = ", ".join(f"{name}={value!r}" for name, value in foreign)
        raise ForeignError(
            f"{kind.name} gets nothing: {path_of(folder, kind.name)} says {named}, which may lead out of the run "
            f"folder. If that is right, {_remedy(kind, [name for name, _ in foreign], folder)}"
        )
    return {**noted, **own}


def check_places(kind: type[Logger], folder: Path) -> None:
    """Refuse a folder in which a link leads a logger's files out of it, or that has settings for its client.

    Raises
    ------
    ForeignError
        With the link, or the file.
    """
    if (found := kind.misled_by(folder)) is not None:
        raise ForeignError(
            f"{kind.name} gets nothing: it would take its settings from {str(found)!r}, which is in the run folder; "
            "remove that file, or run this from another directory"
        )
    _refuse_links(kind, folder, _way_out)


def check_begin(kind: type[Logger], folder: Path) -> None:
    """Refuse a folder to train in, in which what the logger makes is a link that leads out of it.

    Links within are a client's own: W&B makes one to each file that a script has it save.

    Raises
    ------
    ForeignError
        With the link.
    """
    _refuse_links(kind, folder, lambda path, folder: None if is_inside(path, folder) else path)


def _refuse_links(kind: type[Logger], folder: Path, found: Callable[[Path, Path], Path | None]) -> None:
    for place in ("loggers", *kind.places):
        for path in sorted(folder.glob(place)):
            if link := found(path, folder):
                raise ForeignError(
                    f"{kind.name} gets nothing: {str(link)!r} is a link that leads out of the run folder; remove it, or"
                    " put in its place what it leads to"
                )


def is_inside(path: str | os.PathLike[str], folder: Path) -> bool:
    """Whether a path, with all links followed, is in a folder."""
    try:
        return Path(path).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a name that is none, a link to itself
        return False


def is_name(value: Any) -> bool:
    """Whether a value that becomes part of a path stays where it is put."""
    return value is None or (isinstance(value, str) and not re.search(r"[/\\\0]|^\.*$", value))


def is_named(own: Any, path: str | os.PathLike[str]) -> bool:
    """Whether a setting of the user's own is that path, as seen from here or from the directory of an earlier start."""
    if own is None:
        return False
    path, own = Path(os.path.abspath(path)), Path(own)
    relative = not own.is_absolute() and ".." not in own.parts and path.parts[-len(own.parts) :] == own.parts
    return relative or path == Path(os.path.abspath(own))


def refuse_elsewhere(kind: type[Logger], id: str, path: Path, setting: str) -> None:
    """Say that the note's id is a path outside of the run folder that the settings do not name.

    Raises
    ------
    ForeignError
        Always.
    """
    raise ForeignError(
        f"{kind.name} gets nothing: the run folder says that it is kept in {id!r}, which is not in the folder. If that "
        f"is right, give {setting}={os.path.normpath(path) if '://' not in id else id!r} in its settings, or "
        f"`zae logs sync PATH {kind.name} --set {setting}=...`"
    )


def _items(kind: type[Logger], settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in kind.nested and isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", it) for inner, it in value.items())
        else:
            yield name, value


def _harmless(kind: type[Logger], name: str, value: Any, folder: Path) -> bool:
    if value in (None, ""):
        return True
    if isinstance(value, str) and value == os.environ.get(kind.variables.get(name, ""), None):
        return True
    if name in kind.paths:
        return isinstance(value, str) and is_inside(_path(value), folder)
    return kind.admits(name, value)


def _path(value: str) -> str:
    """The path in a local address; what has another scheme is none, and in no folder."""
    local = _LOCAL.match(value)
    if local and not re.search(r"[?#]", value):
        return unquote(value[local.end() :])
    return "\0" if re.match(r"[a-zA-Z][\w+.-]+:", value) else value


def _remedy(kind: type[Logger], foreign: list[str], folder: Path) -> str:
    variables = [kind.variables[name] for name in foreign if name in kind.variables]
    either = f"set {', '.join(variables)} to the same, or " if len(variables) == len(foreign) else ""
    given = dict.fromkeys(f"--set '{outer}={{\"{inner}\": ...}}'" if inner else f"--set {outer}=..."
                          for outer, _, inner in (name.partition(".") for name in foreign))  # fmt: skip
    return f"{either}give your own: `zae logs sync {folder} {kind.name} {' '.join(given)}`"


def _way_out(path: Path, folder: Path) -> Path | None:
    """The link at or below a path that leads out of the folder."""
    if not is_inside(path, folder):
        return path
    for at, folders, files in os.walk(path):
        for name in (*folders, *files):
            found = Path(at, name)
            if found.is_symlink() and not is_inside(found, folder):
                return found
    return None
