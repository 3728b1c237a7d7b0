"""Text from a folder, as a terminal may get it: what is not printable is escaped, as `repr` does.

Names and values may come from anyone. An escape sequence among them would move the cursor, rename the window or hide
what follows; a line's end would make lines that nobody wrote. Imports nothing but the standard library.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn, TextIO

_UNREAD = 141  # what a shell gives for a process that SIGPIPE has ended


def in_line(text: object) -> str:
    r"""Text in one line: a line's end, too, is escaped.

    Examples
    --------
    >>> print(in_line("run\x1b[2J\n1"))
    run\x1b[2J\n1
    """
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable(text: object) -> str:
    """Text that may have several lines of our own, each as `in_line` has it."""
    text = str(text)
    return text if text.isprintable() else "\n".join(map(in_line, text.split("\n")))


class PrintableError(Exception):
    """An error whose message may have a name from a folder in it, and which Python shows as it is."""

    def __str__(self) -> str:
        return printable(super().__str__())


def say(*lines: object, err: bool = False) -> None:
    """Print lines. A reader that has gone (``zae runs | head -1``) ends the program, as it does any other."""
    stream = sys.stderr if err else sys.stdout
    try:
        for line in lines:
            stream.write(_fitting(in_line(line), stream) + "\n")
        stream.flush()
    except BrokenPipeError:
        leave()


def _fitting(text: str, stream: TextIO) -> str:
    """As the stream's encoding can hold it: ``LC_ALL=C`` has no dash."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def leave() -> NoReturn:
    """End without a word where nobody reads any more, as a shell's own tools do; Python's flush at the exit, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(nowhere, stream.fileno())
        except (OSError, ValueError):
            continue
    sys.exit(_UNREAD)
