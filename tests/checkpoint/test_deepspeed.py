"""DeepSpeed's own checkpoints, in one process on the CPU: it goes on exactly, and no file of it runs anything."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed", exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("starts_processes")]
ROOT = Path(__file__).parents[2]


def start(folder: Path, case: str, stage: int, precision: str) -> dict:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    chosen = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "DS_ACCELERATOR": "cpu",
    }
    chosen |= {"ACCELERATE_DEEPSPEED_ZERO3_INIT": "false", "ACCELERATE_MIXED_PRECISION": precision}
    command = [sys.executable, "-m", "tests.checkpoint.deepspeed_worker", str(folder), case]
    settings = {"cwd": ROOT, "env": os.environ | place | chosen, "capture_output": True, "text": True, "timeout": 200}
    done = subprocess.run(command, **settings)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return torch.load(folder / f"{case}.found", weights_only=False)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path, stage, precision):
    saved = start(tmp_path, "save", stage, precision)
    found = start(tmp_path, "load", stage, precision)
    assert same(found["loaded"], saved["saved"])
    assert same(found["resumed"], saved["straight"])
    assert not same(saved["straight"], saved["saved"])
    there = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "sharded").rglob("*") if path.is_file()}
    assert set(saved["names"]) == there


@pytest.mark.parametrize("stage", [2, 3])
def test_no_file_runs_anything(tmp_path, stage):
    start(tmp_path, "save", stage, "no")
    found = start(tmp_path, "refuse", stage, "no")
    assert not found["trace"]
    assert same(found["after"], found["before"])
    assert "saved by 2 processes" in found["said"].pop("processes")
    assert len(found["said"]) == 8
    for what, said in found["said"].items():
        wanted = {"trap": "asks for posix.mkdir", "in": "asks for posix.mkdir", "plain": "refused", "half": "damaged"}
        assert wanted[what.split()[0]] in said, what
