"""What a type checker sees of a user's code."""

import subprocess
import sys

import pytest

USER = """
from typing import Any
from torch import nn
from torch.optim import SGD
from zae_engine import AddOnBase, Trainer
from zae_engine.trainer import History
from zae_engine.trainer.addons import EarlyStoppingAddon


class MyTrainer(Trainer):
    def train_step(self, batch: Any) -> dict[str, Any]:
        return {"loss": self.model(batch).mean()}

    test_step = train_step

    def mine(self) -> int:
        return 1


class Stopping(EarlyStoppingAddon, MyTrainer):
    pass


model = nn.Linear(1, 1)
optimizer = SGD(model.parameters(), lr=0.1)
history: History = MyTrainer(model, optimizer=optimizer, seed=0).run(1, [])
number: int = MyTrainer.add_on(EarlyStoppingAddon)(model, optimizer=optimizer).mine()
both: MyTrainer = Stopping(model, optimizer=optimizer, patience=2)
"""


def check(code, folder):
    (folder / "user.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"), "user.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.usefixtures("starts_processes")
def test_a_users_code_passes_the_strict_checker(tmp_path):
    done = check(USER, tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_a_misspelt_option_and_a_wrong_type_do_not(tmp_path):
    done = check(USER + "\nMyTrainer(model, sede=1)\nMyTrainer(model, seed='a')\n", tmp_path)
    lines = [line for line in done.stdout.splitlines() if "error" in line]
    assert len(lines) >= 2, done.stdout
    assert any('"seed"' in line or "sede" in line or "Never" in line for line in lines), done.stdout
