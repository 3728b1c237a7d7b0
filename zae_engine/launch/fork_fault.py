"""A fault of some Pythons: what is forked beside gloo's threads can hang for ever."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

_MENDED = {10: 15, 11: 10}  # of Python 3.10 and 3.11, the first version without the fault; 3.12 never had it
_TASKS = "/proc/self/task"
_LONGEST = 1.0  # seconds that a fork is held up at most

_guarded = False


def fork_fault(version: Sequence[int] = sys.version_info[:3], platform: str = sys.platform) -> str | None:
    """Say what is wrong with a Python whose forked processes can hang beside torch's threads; None when it is not.

    Such a Python's child takes a lock of the interpreter (HEAD_LOCK, in _PyThreadState_DeleteExcept) before it makes
    the lock anew, and so waits for ever when a thread of the parent held it at the moment of the fork
    (python/cpython#112275). A thread of gloo holds it for a moment when it is the last to let go of a tensor.

    Parameters
    ----------
    version : sequence of int
        Of Python: major, minor, micro.
    platform : str
        As in ``sys.platform``.
    """
    major, minor, micro = version
    mended = _MENDED.get(minor, 0)
    if platform != "linux" or sys.implementation.name != "cpython" or major != 3 or micro >= mended:
        return None
    return (
        f"Python {major}.{minor}.{micro} can hang when it forks (a loader's workers, say) beside torch's threads"
        f" (python/cpython#112275), so each fork waits for these; Python 3.{minor}.{mended} has this mended"
    )


def guard_forks() -> None:
    """From now on, let each fork of this process wait until gloo's threads sleep, where Python has the fault."""
    global _guarded
    if not _guarded and fork_fault() is not None:
        _guarded = True
        os.register_at_fork(before=wait_for_gloo)


def wait_for_gloo() -> None:
    """Wait until all threads of gloo in this process sleep, a second at most."""
    threads = _gloo_threads()
    end, quiet = time.monotonic() + _LONGEST, 0
    # Twice: one that waits for the interpreter sleeps, too, and gets it while this thread does.
    while threads and quiet < 2 and time.monotonic() < end:
        time.sleep(0.001)
        quiet = quiet + 1 if all(_state(thread) in ("S", "") for thread in threads) else 0


def _gloo_threads() -> list[str]:
    try:
        return [thread for thread in os.listdir(_TASKS) if "(pt_gloo_run" in _stat(thread)]
    except OSError:
        return []


def _state(thread: str) -> str:
    """One letter, ``"S"`` for sleeping; empty when the thread is gone."""
    return _stat(thread).rpartition(")")[2].strip()[:1]


def _stat(thread: str) -> str:
    try:
        with open(f"{_TASKS}/{thread}/stat", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
