"""Small checkpoints of a few real files, for the tests of the commit, the folder and the command line."""

import hashlib
import os
import traceback
import warnings
from pathlib import Path

from zae_engine.checkpoint.commit import Commit
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.folder import name_of

FILES = {"model.safetensors": 9000, "state.json": 300, "process-0.json": 70, "sharded/0.safetensors": 5000}


def content(name: str, size: int, serial: int = 0) -> bytes:
    """Bytes that are others for every file and serial."""
    seed = hashlib.sha256(f"{name} {serial}".encode()).digest()
    return (seed * (size // len(seed) + 1))[:size]


def writer(serial: int = 0, files: dict[str, int] | None = None):
    """A function for `Commit.write`."""

    def write(partial: Path) -> list[str]:
        for name, size in (FILES if files is None else files).items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(content(name, size, serial))
        return list(FILES if files is None else files)

    return write


def summary(number: int, /, **said) -> dict:
    return {"serial": number, "step": 10 * number, "epoch": 1, "metrics": {"loss": 1 / number}} | said


def begin(folder: Path, serial: int, token: str = "a", index: int = 0, count: int = 1) -> Commit:
    return Commit(folder, name_of(serial, 10 * serial), token, index, count)


def make(folder: Path, serial: int, files: dict[str, int] | None = None, **said) -> Path:
    commit = begin(folder, serial)
    commit.write(writer(serial, files))
    return commit.finish(summary(serial, **said))


def watched(value: float, mode: str = "min", name: str = "loss") -> dict:
    return {"monitored": {"name": name, "value": value, "mode": mode}}


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def fork(function, *arguments):
    """Start a child that calls the function and ends: 0 done, 3 CheckpointError, 4 anything else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's threads are idle
        child = os.fork()
    if child:
        return child
    code = 4
    try:
        function(*arguments)
        code = 0
    except CheckpointError:
        code = 3
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def ended(child):
    """The exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
