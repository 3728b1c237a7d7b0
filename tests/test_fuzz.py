"""Whatever is damaged in a run folder, everything that reads it says so in a sentence, or passes over it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import Fuzz, late

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
SEED = int(os.environ.get("ZAE_FUZZ_SEED", time.time_ns() % 10**6))


@pytest.mark.filterwarnings("ignore")  # the damage may well be warned of
def test_some_damaged_files(tmp_path):
    before = signal.signal(signal.SIGALRM, late)
    try:
        fuzz = Fuzz(tmp_path, SEED)
        wrong = [said for _ in range(100) if (said := fuzz.one())]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not wrong, f"ZAE_FUZZ_SEED={SEED}\n" + "\n".join(wrong)
    assert len(fuzz.tried) > 20  # kinds of damage


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a limit of memory needs Linux")
def test_ten_thousand_damaged_files():
    seeds = random.Random(SEED)
    for _ in range(4):
        command = [sys.executable, "-m", "tests.fuzz", str(seeds.randrange(10**9)), "2500"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
        assert "0 of 2500 wrong" in done.stdout
