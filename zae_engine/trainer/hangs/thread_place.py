"""Where a thread of this process stands: in an exchange of the processes, at a loader's workers, or in some code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

from .code_lines import OURS, is_in, is_library, line_of
from .loader_workers import describe_awaited

_EXCHANGES = (
    "/torch/distributed/",
    "/torch/nn/parallel/distributed.py",
    "/accelerate/utils/",
    "/accelerate/accelerator.py",
    OURS + "trainer/processes/group.py",
)
_BACKWARD = ("/torch/autograd/graph.py", "/torch/autograd/__init__.py")
_LOADER = "/torch/utils/data/dataloader.py"
_BETWEEN = OURS + "trainer/hangs/waits.py"  # stands between the loader's own frames


class ThreadPlace(NamedTuple):
    """Where a thread stands.

    Attributes
    ----------
    kind : {'exchange', 'backward', 'loader', 'code'}
    words : str
        To follow "is": with a file and a line, or with the worker that is waited for.
    frame : FrameType or None
        What stays the same for as long as one and the same wait lasts.
    """

    kind: str
    words: str
    frame: FrameType | None


CODE = ThreadPlace("code", "", None)


def place_of(thread: int, in_words: bool = True) -> ThreadPlace:
    """Where a thread, by its ident, stands at this moment; `in_words` asks a loader's workers, too."""
    frames = list(_outwards(sys._current_frames().get(thread)))
    for frame in frames:
        file = frame.f_code.co_filename
        if is_in(file, _LOADER) and (iterator := _with_workers(frame)) is not None:
            awaited = describe_awaited(iterator) if in_words else "its loader's workers"
            return ThreadPlace("loader", f"waiting for {awaited}", frame)
        if is_in(file, *_EXCHANGES, *_BACKWARD):
            backward = is_in(file, *_BACKWARD)  # of which torch's own threads do the exchange
            words = "in the exchange of gradients" if backward else f"in an exchange, from {_place(frames)}"
            return ThreadPlace("backward" if backward else "exchange", words, frame)
        if not is_library(file) and not is_in(file, _BETWEEN):
            break
    return ThreadPlace("code", f"in {_place(frames)}", None)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _with_workers(frame: FrameType) -> Any:
    """The iterator of a loader whose method this is, if it waits for workers."""
    iterator = frame.f_locals.get("self") if frame.f_code.co_name in ("_next_data", "__init__", "_reset") else None
    return iterator if hasattr(iterator, "_workers") else None


def _place(frames: list[FrameType]) -> str:
    """The innermost line of the user's; one of ours where the user has only called us, which says less."""
    for frame in frames:
        code = frame.f_code
        if not is_library(code.co_filename) and not is_in(code.co_filename, *_EXCHANGES):
            return line_of(code.co_filename, frame.f_lineno, code.co_name)
    return "a library"
