"""A command with all the processes that come of it: done in time and gone, or ended, with the stacks of all of them.

Ranks are session leaders, and outlive a launcher that is killed; what they have in common is their environment.

    python -m tests.family NAME=VALUE    fails and names what is alive with that variable
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "ZAE_TEST_FAMILY"
TOLD_BY = signal.SIGUSR2  # to a process that has registered faulthandler for it
_GRACE = 10.0  # seconds that processes may take to end after their command


def run_in_time(command: list[str], timeout: float, env: dict[str, str], **settings) -> subprocess.CompletedProcess:
    """Run a command; an AssertionError tells the stacks of all its processes when it takes longer, or leaves some."""
    value = uuid.uuid4().hex
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, env={**env, MARK: value}, stdout=out, stderr=err, **settings)
        try:
            problem = _wait(process, value, timeout)
        finally:
            for one in family(MARK, value):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()
        out.seek(0), err.seek(0)
        done = subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())
    assert not problem, f"{problem}\n{done.stdout[-3000:]}\n{done.stderr[-12000:]}"
    return done


def _wait(process: subprocess.Popen, value: str, timeout: float) -> str:
    """What is wrong, if something is."""
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return f"not done after {timeout:g} s\n{stacks(family(MARK, value))}"
    left = those_left(MARK, value, _GRACE)
    return f"ended, but has left processes behind\n{stacks(left)}" if left else ""


def family(name: str, value: str) -> list[psutil.Process]:
    """The living processes that have a variable of the environment, but for this one and those it came from."""
    mine, found = {os.getpid(), *(p.pid for p in psutil.Process().parents())}, []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            known = process.pid not in mine and process.environ().get(name) == value
            if known and process.status() != psutil.STATUS_ZOMBIE:  # which nobody may fetch any more
                found.append(process)
    return found


def those_left(name: str, value: str, grace: float) -> list[psutil.Process]:
    """Those that are still there after some seconds."""
    end = time.monotonic() + grace
    while (found := family(name, value)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def stacks(processes: list[psutil.Process]) -> str:
    """Where each process stands: by py-spy where that is there, else each tells it by itself on standard error."""
    told = []
    for process in processes:
        with suppress(psutil.Error):
            told.append(f"---- {_describe(process)}")
            told.append(_spy(process.pid) or _ask(process.pid))
    time.sleep(1.0)  # for those that tell by themselves
    return "\n".join(told)


def _describe(process: psutil.Process) -> str:
    rank = process.environ().get("RANK", "-")
    line = " ".join(process.cmdline())
    return f"process {process.pid}, child of {process.ppid()}, rank {rank}, {process.status()}: {line[:300]}"


def _spy(pid: int) -> str:
    beside = Path(sys.executable).with_name("py-spy")
    spy = str(beside) if beside.exists() else shutil.which("py-spy")
    if spy is None:
        return ""
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run([spy, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=20).stdout
    return ""


def _ask(pid: int) -> str:
    """Let a process tell its stack, if it has registered to do so; the signal would end any other."""
    with suppress(OSError):
        caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        if caught and int(caught[1], 16) >> (TOLD_BY - 1) & 1:
            os.kill(pid, TOLD_BY)
            return "tells its stack below"
    return "does not tell its stack"


def main(mark: str, grace: str = "10") -> int:
    left = those_left(*mark.split("=", 1), float(grace))
    for process in left:
        with suppress(psutil.Error):
            print(f"still alive: {_describe(process)}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
