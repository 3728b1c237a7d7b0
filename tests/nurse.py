"""Starts processes by way of `tests.nursery`, and knows how each ended."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 60.0  # seconds that any command may take which says nothing else
PICTURES = ("matplotlib",)
_NOT_OURS = ("ACCELERATE", "RANK", "LOCAL_", "WORLD", "MASTER", "SLURM", "TORCHELASTIC")


def environment() -> dict[str, str]:
    """Of a shell in which no launcher has set anything."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_OURS)}
    return outside | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class Child:
    """A process that the nursery has forked.

    Attributes
    ----------
    pid : int
    out, err : Path
        What it writes.
    """

    def __init__(self, nursery: Nursery, pid: int, argv: list[str], out: Path, err: Path) -> None:
        self._nursery, self.pid, self._argv, self.out, self.err = nursery, pid, argv, out, err

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def until(self, condition: Callable[[], bool], timeout: float = LONGEST) -> None:
        """Wait for something while it runs."""
        end = time.monotonic() + timeout
        while not condition():
            assert self._nursery.code(self.pid, 0.005) is None, f"it has ended\n{self._said()}"
            assert time.monotonic() < end, f"it did not come in {timeout:g} s\n{self._said()}"

    def wait(self, timeout: float = LONGEST) -> subprocess.CompletedProcess:
        """Its end, with what it wrote as texts; it does not survive."""
        code = self._nursery.code(self.pid, timeout)
        self.kill()  # those that it has started, too
        assert code is not None, f"not done after {timeout:g} s\n{self._said()}"
        return subprocess.CompletedProcess(self._argv, code, *self._said())

    def kill(self) -> None:
        """End it with those that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._nursery.code(self.pid, 10.0)

    def _said(self) -> list[str]:
        return [path.read_text(errors="replace") for path in (self.out, self.err)]


class Nursery:
    """Forks processes of a parent that has imported everything."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.nursery"]
        self._parent = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._buffer = b""
        self._texts = tempfile.TemporaryDirectory(prefix="zae-")
        self._started = itertools.count()
        self.codes: dict[int, int] = {}
        assert self._next(LONGEST) == {"ready": True}

    def start(self, *argv: object, out: Path, err: Path | None = None, cwd=ROOT, env=None, without=PICTURES) -> int:
        """Start what would be ``python *argv``; return the process's id.

        Parameters
        ----------
        *argv
            ``"-m", MODULE``, ``"-c", CODE`` or a script, with arguments; the interpreter may stand in front.
        out, err : Path
            Files that its output is appended to; both to `out` where there is no `err`.
        cwd : Path
        env : dict of str to str, optional
            The whole environment; that of a shell when it is not given.
        without : sequence of str
            Packages that cannot be imported; without matplotlib, a run that ends draws no picture, which takes long.
        """
        words = [str(word) for word in argv]
        order = {"argv": words[words[0] == sys.executable :], "cwd": str(cwd), "without": list(without)}
        order |= {"out": str(out), "err": str(err or out)}
        order["env"] = environment() if env is None else {k: str(v) for k, v in env.items()}
        self._parent.stdin.write(json.dumps(order).encode() + b"\n")
        while True:
            told = self._next(30.0)
            assert told is not None, "the nursery is silent"
            if "code" not in told:
                return told["pid"]
            self.codes[told["pid"]] = told["code"]

    def begin(self, *argv: object, **settings) -> Child:
        """The same, with files of its own for what it writes."""
        number = next(self._started)
        files = {name: Path(self._texts.name, f"{number}.{name}") for name in ("out", "err")}
        for file in files.values():
            file.touch()
        return Child(self, self.start(*argv, **files, **settings), list(map(str, argv)), **files)

    def run(self, *argv: object, timeout: float = LONGEST, **settings) -> subprocess.CompletedProcess:
        """``subprocess.run([sys.executable, *argv], ...)``."""
        return self.begin(*argv, **settings).wait(timeout)

    def code(self, pid: int, timeout: float = 0.0) -> int | None:
        """Its exit code, or minus its signal; None while it runs."""
        end = time.monotonic() + timeout
        while pid not in self.codes:
            told = self._next(max(0.0, end - time.monotonic()))
            if told is None:
                return None
            self.codes[told["pid"]] = told["code"]
        return self.codes[pid]

    def _next(self, timeout: float) -> dict | None:
        end = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._parent.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            self._buffer += os.read(self._parent.stdout.fileno(), 65536)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        with suppress(BrokenPipeError):  # an empty line, since a child of this process may keep the pipe open
            self._parent.stdin.write(b"\n")
            self._parent.stdin.close()
        self._parent.wait(30)
        self._parent.stdout.close()
        self._texts.cleanup()
