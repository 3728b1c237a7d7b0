"""The workers of a loader: which one is waited for, and what is the matter with it."""

from __future__ import annotations

import faulthandler
import functools
import multiprocessing.util
import os
import re
import signal
import sys
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch.multiprocessing

from .code_lines import is_library, is_ours, line_of

_FRAME = re.compile(r'^ +File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_STARTED = "pt_data_worker"  # what torch calls a worker's main thread once that is at work
_LONGEST = 107  # bytes that the path of a socket may have on Linux


@functools.cache
def _stacks() -> int | None:
    """A file into which every worker that is forked from now on writes its stack when it gets SIGURG."""
    number = getattr(signal, "SIGURG", None)  # which does nothing to a process that does not know it
    if number is None or signal.getsignal(number) not in (signal.SIG_DFL, None):
        return None
    with tempfile.NamedTemporaryFile() as file:
        handle = os.open(file.name, os.O_RDWR | os.O_APPEND)
    faulthandler.register(number, file=handle, all_threads=False)
    return handle


def let_tell() -> None:
    """Let workers that are forked later tell where they stand, when they are asked."""
    import_module("psutil")  # now: whoever asks does so while something hangs, which may be an import
    with suppress(OSError, RuntimeError):
        _stacks()


def check_sockets() -> None:
    """Refuse workers whose tensors would never arrive: the path of the sockets that they come through is too long.

    A worker's thread fails then, and says so; the loader goes on waiting for what that was to send.

    Raises
    ------
    ValueError
        Naming the folder.
    """
    strategy: str = torch.multiprocessing.get_sharing_strategy()  # type: ignore[no-untyped-call]
    by_file = strategy != "file_descriptor"
    if sys.platform != "linux" or by_file or hasattr(multiprocessing.util, "_get_base_temp_dir"):  # which finds another
        return
    chosen = multiprocessing.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
    path = os.path.join(chosen or os.path.join(tempfile.gettempdir(), "pymp-01234567"), "listener-01234567")
    if (length := len(os.fsencode(path))) > _LONGEST:
        raise ValueError(
            f"the loader's workers send tensors through sockets in {os.path.dirname(os.path.dirname(path))!r}, and a"
            f" socket's path may have {_LONGEST} characters, while theirs have {length}, so no batch would ever arrive."
            " Set TMPDIR to a folder with a shorter path, /tmp say"
        )


def describe_awaited(iterator: Any) -> str:
    """The worker whose batch comes next, and any other one with which something is wrong."""
    with suppress(Exception):  # private attributes of torch's, which may become others
        task = iterator._task_info.get(iterator._rcvd_idx)
        awaited = task[0] if task else None
        problems = {i: _problem(worker) for i, worker in enumerate(iterator._workers)}
        bad = [i for i, problem in problems.items() if problem]
        if awaited is not None and awaited not in bad:
            problems[awaited] = _where(iterator._workers[awaited].pid)
            bad = [awaited, *bad]
        told = [f"worker {i} (pid {iterator._workers[i].pid}) of its loader, which {problems[i]}" for i in bad]
        if told:
            return "; ".join(told)
    return "the workers of its loader"


def lost_workers(iterator: Any, seconds: float = 1.0) -> str:
    """The workers that are gone before they were done, which is looked for so long; empty when all are there."""
    end = time.monotonic() + seconds
    while True:
        with suppress(Exception):  # private attributes; and torch's handler of a worker's end may raise right here
            workers = dict(enumerate(iterator._workers))
            if gone := {i: w for i, w in workers.items() if _is_lost(iterator, i, w)}:
                return "; ".join(
                    f"worker {i} (pid {w.pid}) of its loader, which {_problem(w)}" for i, w in gone.items()
                )
            time.sleep(0.05)
        if time.monotonic() >= end:
            return ""


def _is_lost(iterator: Any, number: int, worker: Any) -> bool:
    return not worker.is_alive() and (iterator._workers_status[number] or worker.exitcode != 0)


def _problem(worker: Any) -> str:
    """What keeps a worker from working; empty when it is at work."""
    if not worker.is_alive():
        code = worker.exitcode or 0
        return f"has ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
    import psutil  # type: ignore[import-untyped]  # comes with Accelerate

    with suppress(psutil.Error):
        process = psutil.Process(worker.pid)
        if process.status() == psutil.STATUS_STOPPED:
            return f"is stopped (`kill -CONT {worker.pid}` lets it go on)"
        if sys.platform == "linux" and process.name() != _STARTED:
            return "has not started"
    return ""


def _where(pid: int) -> str:
    """The line in which a worker is, if it tells."""
    places = [place for place in _FRAME.findall(_ask(pid)) if not is_library(place[0])]
    if not places:
        return "is at work"
    return f"is in {line_of(*next((place for place in places if not is_ours(place[0])), places[0]))}"


def _ask(pid: int) -> str:
    handle = _stacks()
    if handle is None:
        return ""
    os.ftruncate(handle, 0)
    with suppress(OSError):
        os.kill(pid, signal.SIGURG)
    size, end = 0, time.monotonic() + 1.0
    while time.monotonic() < end and (not size or os.fstat(handle).st_size != size):
        size = os.fstat(handle).st_size
        time.sleep(0.02)
    return os.pread(handle, size, 0).decode(errors="replace")
