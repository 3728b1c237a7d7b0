"""Run a function in several processes forked from this one, and bring back what the first of them returns.

A session (a notebook, a prompt) has no script that could be started again, and what was defined in it cannot be
pickled; a fork inherits it.
"""

from __future__ import annotations

import codecs
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from .child_processes import end_with_parent
from .environment import LaunchError

V = TypeVar("V")

_GRACE = 5.0  # seconds in which the others may tell their own errors, once one worker has failed


class WorkerError(RuntimeError):
    """A worker ended before its work was done; the message has its error and its traceback."""


def check_fork(kind: str) -> None:
    """Refuse devices that forked processes could not use.

    Parameters
    ----------
    kind : str
        ``'cpu'``, ``'cuda'`` and so on.

    Raises
    ------
    LaunchError
        When the system or such devices cannot be forked, or this process has used one already.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        _refuse(f"{sys.platform} does not have")
    if kind not in ("cpu", "cuda"):
        _refuse(f"{kind} does not support")
    if kind != "cpu" and _asks(kind, "is_initialized"):
        raise _used(kind)


def _refuse(who: str) -> NoReturn:
    raise LaunchError(
        f"several devices in a session need processes that are forked from it, which {who}; write the trainer into a"
        " file and run `python FILE`, or give one device"
    )


def _asks(kind: str, question: str) -> bool:
    import torch

    return bool(getattr(torch.get_device_module(kind), question, bool)())


def _used(kind: str) -> LaunchError:
    return LaunchError(
        f"this session has used {kind} already, or called backward(), and processes that are started from it then"
        f" cannot use {kind}; restart the kernel (or the session), leave the model and the data on the CPU, call"
        f" neither backward() nor anything of torch.{kind} before run(), and run it again"
    )


def run_workers(function: Callable[[], V], count: int, kind: str, environ: Mapping[str, str]) -> V:
    """Call `function` in `count` processes, and return what it returned in the first one.

    Each of them has the variables that a launcher would set, and one thread: OpenMP's threads do not outlive a fork,
    and who asks for more waits for ever. What they print appears here, on ``sys.stdout`` and ``sys.stderr``. None of
    them is left when this returns or raises.

    Parameters
    ----------
    function : callable
        Takes nothing; what it returns in the first process has to be picklable, tensors come back on the CPU.
    count : int
        How many processes.
    kind : str
        The devices that they use.
    environ : mapping
        More variables for them.

    Raises
    ------
    LaunchError
        When the processes could not use such devices.
    WorkerError
        The cause of the exception that a worker raised first, which is raised here; or itself, when that one cannot be
        pickled, or a worker ended without any.
    """
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not say that it exports it
    from torch.multiprocessing.spawn import start_processes

    check_fork(kind)
    # Held here, it has a port that nobody else can take in between.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    world = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        **environ,
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as name:
        folder, output, others = Path(name), _Output(), set(multiprocessing.active_children())
        try:
            arguments = (function, kind, world, output, folder)
            with warnings.catch_warnings():
                # Python's advice against forks beside threads; what they lead to here is said above and in _work.
                warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
                context = start_processes(_work, arguments, count, join=False, start_method="fork")  # type: ignore[no-untyped-call]
            failed = _watch(context.processes, output)
        finally:
            del store  # with its thread, which an error's traceback would keep, into a later fork
            _end(set(multiprocessing.active_children()) - others, output)
        _raise_first(context.processes, failed, folder)
        return torch.load(folder / "value", map_location="cpu", weights_only=False)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- here


class _Output:
    """What the workers write, by two pipes; it goes on to this process's streams, as these are now."""

    def __init__(self) -> None:
        sys.stdout.flush()  # else the workers inherit what waits, and write it again
        sys.stderr.flush()
        self.pipes = os.pipe(), os.pipe()
        self.open: dict[int, tuple[TextIO, Any]] = {}
        for (reader, _), stream in zip(self.pipes, (sys.stdout, sys.stderr), strict=True):
            os.set_blocking(reader, False)
            self.open[reader] = stream, codecs.getincrementaldecoder("utf-8")("replace")

    def take(self) -> None:
        """The worker's side: what is written from now on, by whatever means, goes into the pipes."""
        for (reader, writer), number, name in zip(self.pipes, (1, 2), ("stdout", "stderr"), strict=True):
            os.close(reader)
            os.dup2(writer, number)
            stream = open(number, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)

    def pass_on(self) -> None:
        """Show what there is to read."""
        for reader, (stream, decoder) in self.open.items():
            with suppress(BlockingIOError):
                while data := os.read(reader, 1 << 16):
                    with suppress(OSError, ValueError):  # an output that is gone ends no training
                        stream.write(decoder.decode(data))
                        stream.flush()

    def close(self) -> None:
        """Show the rest."""
        self.pass_on()
        for number in (end for pipe in self.pipes for end in pipe):
            os.close(number)


def _watch(processes: list[Any], output: _Output) -> int | None:
    """Show what the workers write until all have ended, or one has failed and the others had time to tell their errors.

    The number of the one that failed first is returned, None if all is well.
    """
    running, deadline = {process.sentinel: process for process in processes}, float("inf")
    first: int | None = None
    while running and time.monotonic() < deadline:
        ready = wait([*running, *output.open], timeout=0.5)
        output.pass_on()
        for process in [running.pop(each) for each in ready if each in running]:
            process.join()
            if process.exitcode and first is None:
                first, deadline = processes.index(process), time.monotonic() + _GRACE
    return first


def _end(processes: Collection[Any], output: _Output) -> None:
    """End those that are left, first gently."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + _GRACE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
        process.join()
    output.close()


def _raise_first(processes: list[Any], failed: int | None, folder: Path) -> None:
    """Raise what a worker raised first, as the others' errors are mostly about its end."""
    who = f"process {failed or 0} of {len(processes)}"
    if failed is None:
        if not (folder / "value").exists():
            raise WorkerError(f"{who} was interrupted before its work was done")
    elif (folder / f"{failed}.error").exists():
        told = [pickle.loads(file.read_bytes()) for file in folder.glob("*.error")]
        _raise_told(min(told, key=lambda each: float(each["time"])), len(processes))
    else:
        code = processes[failed].exitcode
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        raise WorkerError(f"{who} ended with {how}, and the others with it")


def _raise_told(told: dict[str, Any], count: int) -> NoReturn:
    cause = WorkerError(f"process {told['index']} of {count} failed\n\n{told['traceback']}")
    error: BaseException | None = None
    with suppress(Exception):  # an exception's own class may refuse to be made again
        error = pickle.loads(told["error"])
    raise cause if error is None else error from cause


# ---------------------------------------------------------------------- in the workers


def _work(
    index: int, function: Callable[[], Any], kind: str, environ: Mapping[str, str], output: _Output, folder: Path
) -> None:
    import torch

    if (session := multiprocessing.parent_process()) is not None and session.pid is not None:
        end_with_parent(session.pid)
    gc.freeze()  # what the session left to be collected has threads and processes that are not here
    output.take()
    os.environ.update({**environ, "RANK": str(index), "LOCAL_RANK": str(index)})
    torch.set_num_threads(1)
    try:
        _leave_notebook()
        if kind != "cpu" and _asks(kind, "_is_in_bad_fork"):
            raise _used(kind)  # by something that asked for the devices only
        value = function()
        if index == 0:
            torch.save(value, folder / "value")
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except Exception as error:
        _keep(_explained(error, kind), index, folder)
        sys.exit(1)


def _explained(error: Exception, kind: str) -> Exception:
    """The remedy, where torch says that something did not survive the fork: CUDA, or the threads of `backward`."""
    if kind == "cpu" or not isinstance(error, RuntimeError) or "fork" not in str(error):
        return error
    try:
        raise _used(kind) from error
    except LaunchError as explained:
        return explained


def _leave_notebook() -> None:
    """The kernel's connections belong to the session: from here on this is a plain Python, whose bars are lines."""
    shell = sys.modules.get("IPython")
    if shell is not None and (instance := shell.get_ipython()) is not None:
        type(instance).clear_instance()


def _keep(error: Exception, index: int, folder: Path) -> None:
    text = "".join(traceback.format_exception(error))
    told: dict[str, Any] = {"index": index, "time": time.time(), "traceback": text, "error": b""}
    with suppress(Exception):
        told["error"] = pickle.dumps(error)
    (folder / f"{index}.error").write_bytes(pickle.dumps(told))
