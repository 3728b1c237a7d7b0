"""Who ends when the process that started it is killed."""

import signal
import subprocess
import sys
import time
import uuid

import pytest

from tests.family import family, stacks, those_left
from tests.launch.processes import ACCELERATE, TORCHRUN, clean
from zae_engine.checkpoint.folder import committed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do this"),
    pytest.mark.usefixtures("starts_processes"),
]

MARK = "ZAE_OF_THIS_TEST"

# Trains until the second sample is asked for, which never comes: its worker would stay for ever.
SCRIPT = """
import os, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, get_worker_info
from zae_engine import Trainer

class Hangs:
    def __len__(self): return 4
    def __getitem__(self, i):
        if get_worker_info() is None: return torch.ones(2)
        os.write(1, f"loads {os.getpid()}\\n".encode())
        time.sleep(600)

class Wraps:
    def __init__(self, loader): self.loader = loader
    def __iter__(self): yield from self.loader

class T(Trainer):
    def train_step(self, batch): return {"loss": self.model(batch).mean()}
    test_step = train_step

torch.set_num_threads(1)
model = nn.Linear(2, 1)
trainer = T(model, "cpu", optimizer=torch.optim.SGD(model.parameters(), lr=0.1), log_bar=False)
loader = DataLoader(Hangs(), batch_size=4, num_workers=1)
trainer.run(1, Wraps(loader) if "wrapped" in sys.argv else loader)
"""

SAVES = """
import os
import torch
from torch import nn
from zae_engine import Trainer
from zae_engine.trainer.addons import StateManagerAddon

class T(Trainer):
    def train_step(self, batch):
        if self.progress_checker.get_step() == 5: os.write(1, b"loads")
        return {"loss": self.model(batch).mean()}
    test_step = train_step

torch.set_num_threads(1)
model = nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
trainer = T.add_on(StateManagerAddon)(model, "cpu", optimizer=optimizer, log_bar=False, save_path="run")
trainer.run(10**6, [torch.ones(4, 2)] * 100)
"""

ZAE = [sys.executable, "-m", "zae_engine.cli", "launch", "--cpu"]


@pytest.fixture
def started(tmp_path):
    """Start a command, wait until so many workers load, and return it, and the mark of its family."""
    (tmp_path / "hangs.py").write_text(SCRIPT)
    value = uuid.uuid4().hex
    running = []

    def start(command, workers):
        with open(tmp_path / "out", "w") as out:
            running.append(subprocess.Popen(command, env=clean(**{MARK: value}), cwd=tmp_path, stdout=out, stderr=out))
        end = time.monotonic() + 90
        while (said := (tmp_path / "out").read_text()).count("loads") < workers:
            assert time.monotonic() < end, said + stacks(family(MARK, value))
            assert running[0].poll() is None, said
            time.sleep(0.1)
        return running[0], value

    yield start
    for one in family(MARK, value):
        one.kill()
    running[0].wait()


def assert_all_end(process, value, number=signal.SIGKILL):
    """Once the first of them gets a signal."""
    process.send_signal(number)
    process.wait(20)
    left = those_left(MARK, value, 20.0)
    assert not left, stacks(left)


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        ([*TORCHRUN, "--standalone", "--nproc-per-node", "2"], 2),
        pytest.param([*ACCELERATE, "--cpu", "--num_processes", "1"], 1, marks=pytest.mark.slow),  # as zae's
        (ZAE, 1),
    ],
    ids=["torchrun", "accelerate", "zae"],
)
def test_a_killed_launcher_leaves_nobody(started, launcher, ranks):
    process, value = started([*launcher, "hangs.py"], ranks)
    assert len(family(MARK, value)) >= 1 + 2 * ranks
    assert_all_end(process, value)


def test_without_their_launcher_the_processes_save_and_end(started, tmp_path):
    (tmp_path / "saves.py").write_text(SAVES)
    process, value = started([*TORCHRUN, "--standalone", "--nproc-per-node", "2", "saves.py"], 2)
    assert_all_end(process, value, signal.SIGUSR1)  # which torchrun does not know
    (saved,) = committed(tmp_path / "run" / "checkpoints")
    assert saved.step >= 5


@pytest.mark.parametrize("loader", ["the loader", "wrapped"])
def test_a_killed_process_leaves_no_worker_even_if_that_hangs(started, loader):
    process, value = started([sys.executable, "hangs.py", loader], 1)
    assert len(family(MARK, value)) == 2
    assert_all_end(process, value)


def test_the_workers_of_a_session_end_with_it(started, tmp_path):
    (tmp_path / "session.py").write_text(
        "import runpy\nfrom zae_engine.launch.forked_workers import run_workers\n"
        "run_workers(lambda: runpy.run_path('hangs.py'), 2, 'cpu', {})\n"
    )
    process, value = started([sys.executable, "session.py"], 2)
    assert len(family(MARK, value)) == 5
    assert_all_end(process, value)


def test_one_whose_parent_is_gone_already_ends_at_once():
    code = (
        "import os, time\nfrom zae_engine.launch.child_processes import end_with_parent\n"
        "reader, writer = os.pipe()\n"
        "middle = os.fork()\n"
        "if not middle:\n"
        "    parent = os.getpid()\n"
        "    if os.fork(): os._exit(0)\n"
        "    while os.getppid() == parent: time.sleep(0.01)\n"
        "    end_with_parent(parent)\n"
        "    os.write(writer, b'alive')\n"
        "    os._exit(0)\n"
        "os.waitpid(middle, 0)\n"
        "os.close(writer)\n"
        "print(os.read(reader, 9))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=clean())
    assert done.stdout == "b''\n", done.stderr


def test_a_fork_of_the_user_s_own_lives_on():
    code = (
        "import os, time\nfrom zae_engine.launch.child_processes import walk\n"
        "list(walk([1]))\n"
        "if child := os.fork():\n"
        "    print(child, flush=True)\n"
        "    os._exit(0)\n"
        "time.sleep(1)\n"
        "print('done', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=clean())
    assert done.stdout.split()[1:] == ["done"], done.stderr
