"""Processes that end with the one that started them, however that ended: a launcher's, and a loader's workers.

Only Linux can do this; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from .environment import LaunchError, by_accelerate

_PR_SET_PDEATHSIG = 1

_starting = threading.local()  # .parent is this process's id while this thread starts a loader's workers
_registered = False


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Let the kernel send this process a signal when its parent ends, or at once when that has ended already."""
    if sys.platform != "linux":
        return
    _prctl()(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), number)


@functools.cache
def _prctl() -> Any:
    return ctypes.CDLL(None).prctl


def end_with_launcher(env: Mapping[str, str]) -> None:
    """Let this process get SIGTERM when the launcher that started it is gone, even if that was killed.

    Parameters
    ----------
    env : mapping
        ``os.environ``.

    Raises
    ------
    LaunchError
        When torch's launcher is gone already.
    """
    if not is_launched(env) or sys.platform != "linux":
        return
    if os.getppid() == 1 and not _is_python(1):
        _refuse_orphan(env)  # or a process of a container, whose launcher is outside
    elif not is_launched(_environment_of(os.getppid())):  # else a wrapper's, or what a process has started for itself
        end_with_parent(os.getppid())


def is_launched(env: Mapping[str, str]) -> bool:
    """Whether torch's or Accelerate's launcher has started a process with these variables."""
    return "TORCHELASTIC_RUN_ID" in env or by_accelerate(env)


def _environment_of(pid: int) -> dict[str, str]:
    """The variables that a process was started with; none when that cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _is_python(pid: int) -> bool:
    try:
        return "python" in Path(f"/proc/{pid}/exe").resolve().name
    except OSError:
        return True  # nobody knows


def _refuse_orphan(env: Mapping[str, str]) -> None:
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    try:
        socket.create_connection((env["MASTER_ADDR"], int(env["MASTER_PORT"])), timeout=5).close()
    except ConnectionRefusedError:
        raise LaunchError(
            "the launcher that started this process is gone, and so are the others; start it anew"
        ) from None
    except (OSError, KeyError, ValueError):
        return  # what is wrong there is found when the processes meet


def walk(loader: Iterable[Any]) -> Iterator[Any]:
    """Begin to walk over a loader; workers that it forks now are killed when this process ends.

    They would else live on after a kill of this process for as long as they load, which may be for ever.
    """
    # The kernel takes a thread's end for its process's, so this is for the thread that ends last.
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    _register()
    with _workers_start():
        iterator = iter(loader)
    # What wraps a loader walks over it, and so starts its workers, once it is asked for a batch.
    return iterator if hasattr(loader, "num_workers") or not has_workers(loader) else _asked_first(iterator)


def has_workers(loader: Any) -> bool:
    """Whether a loader has workers, or one that it wraps and keeps."""
    return any(getattr(one, "num_workers", 0) for one in (loader, *getattr(loader, "__dict__", {}).values()))


def _asked_first(iterator: Iterator[Any]) -> Iterator[Any]:
    with _workers_start():
        first = list(islice(iterator, 1))
    yield from first
    yield from iterator


@contextmanager
def _workers_start() -> Iterator[None]:
    _starting.parent = os.getpid()
    try:
        yield
    finally:
        _starting.parent = None


def _register() -> None:
    global _registered
    if not _registered:
        _registered = True
        _prctl()  # found now, since a child of a process with threads should do as little as possible
        os.register_at_fork(after_in_child=_end_with_starter)


def _end_with_starter() -> None:
    if (parent := getattr(_starting, "parent", None)) is not None:
        _starting.parent = None
        end_with_parent(parent, signal.SIGKILL)
