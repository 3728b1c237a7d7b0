"""Start a command's processes, look at them, kill them, and look at what they leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from tests.nurse import LONGEST, Nursery, environment
from zae_engine.checkpoint.folder import committed, problems_of
from zae_engine.logs.history_file import read_history

LAUNCHER_GRACE = 30.0  # seconds that torchrun gives the others between SIGTERM and SIGKILL


class Command:
    """One start of the same command, on one or more processes."""

    def __init__(self, nursery: Nursery | None, folder: Path, processes: int) -> None:
        self.nursery, self.folder, self.processes = nursery, folder, processes
        self.pids: list[int] = []
        self.started = time.monotonic()
        self.locked: float | None = None  # seconds after the start, when that was looked at
        self.training: float | None = None  # when process 0 had begun to train or to validate
        self.done: float | None = None  # when it had ended the run
        self._left = set(self._partials())

    def look(self) -> None:
        """Note when this very start got the folder's lock, and when it was seen to train."""
        if self.training is None and self.where()[0] in ("train", "test", "done"):
            self.training = time.monotonic()
        if self.done is None and self.where()[0] == "done":
            self.done = time.monotonic()
        if self.locked is None:
            try:
                owner = json.loads((self.folder / "run" / "owner.json").read_text())["pid"]
            except (OSError, ValueError):
                return
            if owner == self.pid(0):
                self.locked = time.monotonic() - self.started

    def pid(self, rank: int) -> int | None:
        return self.pids[rank]

    def is_up(self) -> bool:
        """Whether every process is there, and can be killed."""
        return all(self.pid(rank) for rank in range(self.processes))

    def where(self, rank: int = 0) -> tuple[str, int]:
        """What a process was doing last, and at which step."""
        return where_of(self.folder, rank)[:2]

    def is_saving(self) -> bool:
        return any(name not in self._left for name in self._partials())

    def _partials(self) -> list[str]:
        return [path.name for path in (self.folder / "run" / "checkpoints").glob(".*.partial")]

    def ended(self) -> list[int | None]:
        """The exit codes so far."""
        return [self.nursery.code(pid) for pid in self.pids]

    def until(self, condition: Callable[[], bool], timeout: float = LONGEST) -> bool:
        """Wait for something while the whole command runs; return whether it came."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and not any(code is not None for code in self.ended()):
            self.look()
            if condition():
                return True
            time.sleep(0.001)
        return False

    def send(self, number: int, ranks: list[int] | None = None, group: bool = False) -> None:
        """Send a signal to some processes, or to their workers, too."""
        for rank in range(self.processes) if ranks is None else ranks:
            pid = self.pid(rank)
            if pid is not None and self.nursery.code(pid) is None:
                try:
                    (os.killpg if group else os.kill)(pid, number)
                except ProcessLookupError:  # it is so young that it has no group yet, or is ending
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)

    def codes(self, timeout: float = LONGEST, launcher: bool = True) -> list[int]:
        """Wait for the end; as a launcher does, the first failure ends the others: SIGTERM, later SIGKILL."""
        end, failed = time.monotonic() + timeout, None
        while None in (found := self.ended()):
            self.look()
            self.nursery.code(self.pids[found.index(None)], 0.005)
            if launcher and failed is None and any(found):
                failed = time.monotonic()
                time.sleep(0.1)  # a launcher looks that often
                self.send(signal.SIGTERM)
            if failed is not None and time.monotonic() > failed + LAUNCHER_GRACE:
                self.send(signal.SIGKILL)
            if time.monotonic() > end:
                self.end()
                raise AssertionError(f"{found} after {timeout:g} s\n{self.log()}")
        return found

    def end(self) -> None:
        self.send(signal.SIGKILL, group=True)

    def log(self) -> str:
        """What the processes have written, of all starts."""
        logs = sorted(self.folder.glob("log-*"))
        return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-20_000:]}" for path in logs)


def where_of(folder: Path, rank: int) -> tuple[str, int, int]:
    try:
        word, step, pid = (folder / f"where-{rank}").read_text().split()
    except (OSError, ValueError):
        return "nowhere", 0, 0
    return word, int(step), int(pid)


def start(
    nursery: Nursery, folder: Path, setup: dict, processes: int = 1, mishaps: list[dict] | None = None
) -> Command:
    """Start the command."""
    command = Command(nursery, tidy(folder), processes)
    argv = ["-m", "tests.recovery.problem", folder, json.dumps(setup), json.dumps(mishaps or [])]
    world = {}
    if processes > 1:
        world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(_free_port())}  # fmt: skip
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world else {}
        command.pids.append(nursery.start(*argv, out=folder / f"log-{rank}", env=environment() | world | own))
    return command


def tidy(folder: Path) -> Path:
    """Make the folder, without what earlier starts have said about where they are."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("where-*"):
        old.unlink()
    return folder


def finish(nursery: Nursery, folder: Path, setup: dict, processes: int = 1, mishaps: list[dict] | None = None) -> dict:
    """The same command, to its end; what came out of it."""
    command = start(nursery, folder, setup, processes, mishaps)
    codes = command.codes()
    assert codes == [0] * processes, f"{codes}\n{command.log()}"
    return outcome(folder, processes)


def outcome(folder: Path, processes: int = 1) -> dict:
    """What process 0 has found, with the history's lines; the others have to have the same."""
    found = [torch.load(folder / f"outcome-{rank}.pt", weights_only=True) for rank in range(processes)]
    for other in found[1:]:
        assert_same(other, found[0])
    return {**found[0], "lines": lines(folder)}


def lines(folder: Path) -> list[dict]:
    """The steps and rows that hold, without what differs from run to run."""
    kept = [line for line in read_history(folder / "run") if line["kind"] in ("step", "row")]
    last = {line["number"]: line for line in kept if line["kind"] == "row"}
    rows = [{k: v for k, v in line.items() if k not in ("seconds", "saving")} for line in last.values()]
    return [line for line in kept if line["kind"] == "step"] + rows


def assert_same(got: dict, wanted: dict) -> None:
    """To the bit."""
    for key in wanted:
        one, other = got[key], wanted[key]
        if isinstance(other, dict):
            assert one.keys() == other.keys(), key
            for name in other:
                assert torch.equal(one[name], other[name]), f"{key}: {name} differs by {difference(one, other)}"
        else:
            assert one == other, f"{key}: {_first(one, other)}"


def assert_each_step_once(found: dict) -> None:
    steps = [line["step"] for line in found["lines"] if line["kind"] == "step"]
    assert steps == list(range(1, found["position"][1])), steps
    assert [line["loss"] for line in found["lines"] if line["kind"] == "step"] == found["losses"]


def difference(one: dict, other: dict) -> float:
    return max((one[key].double() - other[key].double()).abs().max().item() for key in other)


def _first(one: object, other: object) -> str:
    if isinstance(one, list) and isinstance(other, list):
        for place, (a, b) in enumerate(zip(one, other, strict=False)):
            if a != b:
                return f"entry {place} is {a}, not {b}"
        return f"{len(one)} entries, not {len(other)}"
    return f"{one}, not {other}"


def check_folder(folder: Path, had: int) -> int:
    """After a kill: what is committed is whole, and of what was, something is there. Returns how many there are."""
    checkpoints = folder / "run" / "checkpoints"
    there = committed(checkpoints) if checkpoints.is_dir() else []
    for checkpoint in there:
        assert problems_of(checkpoint.path) == [], checkpoint.path.name
    assert there or not had
    return len(there)


def serials(folder: Path) -> list[tuple[int, int]]:
    """Serial number and step of every committed checkpoint."""
    return [(c.serial, c.step) for c in committed(folder / "run" / "checkpoints")]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
