"""What the tests know about processes: who is left, and where those that hang stand."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import family
from tests.family import run_in_time

pytestmark = pytest.mark.usefixtures("starts_processes")

ROOT = Path(__file__).parents[1]

# A session leader, as a rank is, which goes on when its parent has ended.
CHILD = """
import faulthandler, sys, time
from tests.family import TOLD_BY
faulthandler.register(TOLD_BY)
print("ready", flush=True)
def hangs_here(): time.sleep(300)
hangs_here()
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
if sys.argv[2] == "waits": child.wait()
"""


def hanging(how):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return run_in_time([sys.executable, "-c", PARENT, CHILD, how], 5, env=environment, cwd=ROOT)


@pytest.mark.parametrize("spy", [True, False])
def test_what_takes_too_long_fails_with_all_stacks_and_is_ended(monkeypatch, spy):
    if not spy or not Path(sys.executable).with_name("py-spy").exists():
        monkeypatch.setattr(family, "_spy", lambda pid: "")
    monkeypatch.setenv("ZAE_OF_THIS_TEST", str(os.getpid()))
    with pytest.raises(AssertionError, match=r"(?s)not done after 5 s.*child of.*hangs_here"):
        hanging("waits")
    assert family.those_left("ZAE_OF_THIS_TEST", str(os.getpid()), 10) == []


def test_what_is_left_behind_fails_and_is_ended(monkeypatch):
    monkeypatch.setattr(family, "_GRACE", 0.5)
    monkeypatch.setenv("ZAE_OF_THIS_TEST", str(os.getpid()))
    with pytest.raises(AssertionError, match=r"(?s)has left processes behind.*hangs_here"):
        hanging("ends")
    assert family.those_left("ZAE_OF_THIS_TEST", str(os.getpid()), 10) == []


@pytest.mark.parametrize(("seconds", "code", "words"), [(100, 1, "still alive: process {}"), (0, 0, "")])
def test_the_end_of_ci_names_what_is_alive(tmp_path, seconds, code, words):
    """The check of .ci/run as it stands there, after something that goes on in the background."""
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("export ZAE_CI_RUN"))
    last = next(i for i, line in enumerate(lines) if line.startswith("trap "))
    check = "\n".join(lines[first : last + 1]).replace(".venv/bin/python", shlex.quote(sys.executable))
    check = check.replace('ZAE_CI_RUN"; then', 'ZAE_CI_RUN" 2; then')  # seconds, since 10 are long for a test
    ending = f"sleep {seconds} & echo $! > pid"
    with open(tmp_path / "err", "w+") as err:
        command = ["bash", "-euo", "pipefail", "-c", f"cd '{tmp_path}'\n{check}\n{ending}"]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=err, timeout=60)
        err.seek(0)
        pid, said = int((tmp_path / "pid").read_text()), err.read()
    if psutil.pid_exists(pid):
        psutil.Process(pid).kill()
    assert done.returncode == code
    assert words.format(pid) in said
