"""Kill a command again and again, start it again each time, and hold what comes out to the undisturbed run's."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.recovery.harness import (
    Command,
    assert_each_step_once,
    assert_same,
    check_folder,
    outcome,
)

Start = Callable[[Path, dict, int], Command]


class Kill(NamedTuple):
    """One that has happened."""

    aim: str  # any, saving, testing
    victims: str
    where: str  # what process 0 was doing
    step: int
    saving: bool  # whether a checkpoint was being written
    committed: int
    locked: float  # seconds from the start of the command to its lock; -1 when it was killed before
    ending: float  # seconds from the kill to the end of the last process
    codes: list[int]  # of the processes


class Campaign:
    """Runs of one setup on one number of processes.

    Parameters
    ----------
    start : callable
        Starts the command: (folder, setup, processes).
    folder : Path
        Where the runs go.
    setup : dict
    processes : int
    seed : int
        Of the moments.
    """

    def __init__(self, start: Start, folder: Path, setup: dict, processes: int, seed: int) -> None:
        self.start, self.folder, self.setup, self.processes = start, folder, setup, processes
        self.random = random.Random(seed)
        self.kills: list[Kill] = []
        self.runs, self.longest_start = 0, 0.0

    def undisturbed(self) -> None:
        """Find what has to come out, and how long it takes."""
        command = self._complete(self.folder / "undisturbed")
        self.usual = (command.done or time.monotonic()) - (command.training or command.started)
        self.wanted = outcome(self.folder / "undisturbed", self.processes)
        assert_each_step_once(self.wanted)

    def storm(self, kills: int) -> None:
        """Kill so often, in as many runs as that takes; each of them is brought to its end and compared."""
        self.undisturbed()
        while len(self.kills) < kills:
            folder = self.folder / f"run-{self.runs}"
            self.runs += 1
            had = 0
            while len(self.kills) < kills:
                had, done = self._strike(folder, had)
                if done:
                    break
            self._complete(folder)  # also when it is done: the same command says so
            found = outcome(folder, self.processes)
            assert_same(found, self.wanted)
            assert_each_step_once(found)
            shutil.rmtree(folder)

    def _complete(self, folder: Path) -> Command:
        command = self.start(folder, self.setup, self.processes)
        codes = command.codes()
        assert not any(codes), f"{codes}\n{command.log()}"
        self._note_start(command)
        return command

    def _strike(self, folder: Path, had: int) -> tuple[int, bool]:
        """Start it, kill it; return how many checkpoints there are, and whether it was done before that."""
        command, aim = self.start(folder, self.setup, self.processes), self._aim()
        try:
            came = command.until(self._moment(command, aim))
            if not came:
                codes = command.codes()
                assert not any(codes), f"{codes}\n{command.log()}"
                return check_folder(folder, had), True
            self._kill(command, folder, aim, had)
            self._note_start(command)
            return self.kills[-1].committed, False
        finally:
            command.end()

    def _note_start(self, command: Command) -> None:
        self.longest_start = max(self.longest_start, command.locked or 0.0)

    def _aim(self) -> str:
        return self.random.choice(("any", "any", "saving", "testing"))

    def _moment(self, command: Command, aim: str) -> Callable[[], bool]:
        """What to wait for."""
        early = aim == "any" and self.random.random() < 0.2  # while it starts and loads
        after = self.random.uniform(0.0, self.usual * (1.0 if aim == "any" else 0.6))
        seen = {"any": lambda: True, "saving": command.is_saving, "testing": lambda: command.where()[0] == "test"}[aim]

        def come() -> bool:
            began = command.started if early else command.training
            return began is not None and time.monotonic() - began >= after and command.is_up() and seen()

        return come

    def _kill(self, command: Command, folder: Path, aim: str, had: int) -> None:
        time.sleep(self.random.choice((0.0, self.random.uniform(0.0, 0.02))))
        victims = self.random.choice([*([rank] for rank in range(self.processes)), list(range(self.processes))])
        whole = self.random.random() < 0.5  # with its loader's workers, as when a container ends
        (where, step), saving = command.where(), command.is_saving()
        command.send(signal.SIGKILL, victims, group=whole)
        began = time.monotonic()
        codes = command.codes()
        ending = time.monotonic() - began
        words = "+".join(map(str, victims)) + (" and workers" if whole else "")
        locked = -1.0 if command.locked is None else command.locked
        there = check_folder(folder, had)
        self.kills.append(Kill(aim, words, where, step, saving, there, locked, ending, codes))


def table(kills: list[Kill]) -> str:
    """The kills, one a line."""
    names = ("aim", "victims", "where", "step", "saving", "committed", "lock s", "ending s", "codes")
    rows = [names, *((*kill[:6], f"{kill.locked:.2f}", f"{kill.ending:.2f}", kill.codes) for kill in kills)]
    widths = (8, 18, 8, 5, 7, 10, 7, 9, 0)
    return "\n".join("  ".join(str(cell).rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
