"""Hundreds of kills of real commands: python -m tests.recovery.chaos --kills 300 --seed 1 --processes 1,2."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from tests.recovery.campaign import Campaign, Kill, table
from tests.recovery.commands import typed

SETUPS = [
    {"patience": 4, "epochs": 8, "pause": 0.03},
    {"patience": 4, "epochs": 8, "pause": 0.03, "schedule": "plateau", "save_async": False, "save_format": "ckpt"},
    {"patience": 4, "epochs": 8, "pause": 0.03, "schedule": "plateau", "workers": 2},
    {"patience": 4, "epochs": 4, "pause": 0.03, "width": 4096, "save_every": "1st"},
]


def campaigns(processes: list[int]) -> list[tuple[str, int, dict]]:
    """Launcher, processes, setup: those of several processes by each launcher in turn."""
    launchers = cycle(("torchrun", "accelerate"))
    return [("python" if n == 1 else next(launchers), n, setup) for setup in SETUPS for n in processes]


def summary(kills: list[Kill], seconds: float) -> str:
    where = Counter("saving" if kill.saving else kill.where for kill in kills)
    parts = ", ".join(f"{count} while {name}" for name, count in sorted(where.items()))
    longest = max((kill.ending for kill in kills), default=0.0)
    return f"{len(kills)} kills ({parts}) in {seconds:.0f} s; longest end of the other processes {longest:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="in all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--processes", default="1,2", help="numbers of processes, with commas between them")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whatever was started ends with this
    print(f"--seed {asked.seed}", flush=True)
    several = campaigns([int(n) for n in asked.processes.split(",")])
    shares = Counter(islice(cycle(range(len(several))), asked.kills))
    kills, began = list[Kill](), time.monotonic()
    for number, (launcher, processes, setup) in enumerate(several):
        if not shares[number]:
            continue
        print(f"\n{launcher}, {processes} process(es), {setup}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            one = Campaign(partial(typed, launcher), Path(folder), setup, processes, asked.seed + number)
            try:
                one.storm(shares[number])
            finally:
                kills += one.kills
                print(table(one.kills))
                print(f"{one.runs} runs; longest start until the folder's lock {one.longest_start:.1f} s", flush=True)
    print(f"\nAll runs were equal to the undisturbed ones, to the bit.\n{summary(kills, time.monotonic() - began)}")


if __name__ == "__main__":
    main()
