"""The same commands as a user types them: python, torchrun, accelerate launch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.nurse import ROOT, environment
from tests.recovery.harness import Command, tidy, where_of

PROBLEM = ["-m", "tests.recovery.problem"]
LAUNCHERS = {
    "python": lambda processes: [],
    "torchrun": lambda processes: ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"],
    "accelerate": lambda processes: [
        *("-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2.yaml"),
        *("--num_processes", str(processes), "--main_process_port", "0"),
    ],
}


class Typed(Command):
    """One start of a command by a launcher, which starts and ends the processes itself."""

    def __init__(self, launcher: str, folder: Path, processes: int, words: list[str], *more: str) -> None:
        super().__init__(None, tidy(folder), processes)
        command = [sys.executable, *LAUNCHERS[launcher](processes), *more, *PROBLEM, *words]
        with open(folder / "log-0", "ab") as log:
            self._launcher = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def pid(self, rank: int) -> int | None:
        """As the process itself has said; None until it has."""
        return where_of(self.folder, rank)[2] or None

    def ended(self) -> list[int | None]:
        """The launcher's exit code."""
        return [self._launcher.poll()]

    def send(self, number: int, ranks: list[int] | None = None, group: bool = False) -> None:
        for rank in range(self.processes) if ranks is None else ranks:
            pid = self.pid(rank)
            try:
                if group and os.getpgid(pid) == pid:
                    os.killpg(pid, number)
                else:
                    os.kill(pid, number)
            except ProcessLookupError:
                continue

    def codes(self, timeout: float = 120.0, launcher: bool = True) -> list[int]:
        end = time.monotonic() + timeout
        while None in (found := self.ended()):
            self.look()
            time.sleep(0.01)
            if time.monotonic() > end:
                self.end()
                raise AssertionError(f"no end after {timeout:g} s\n{self.log()}")
        return found

    def end(self) -> None:
        if self._launcher.poll() is None:
            if all(self.pid(rank) for rank in range(self.processes)):
                self.send(signal.SIGKILL, group=True)
            os.killpg(self._launcher.pid, signal.SIGKILL)
            self._launcher.wait()


def typed(launcher: str, folder: Path, setup: dict, processes: int = 1) -> Command:
    return Typed(launcher, folder, processes, [str(folder), json.dumps(setup)])
