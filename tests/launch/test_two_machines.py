"""Two launchers of stock Accelerate, as on two machines, meet over the loopback."""

import sys

import pytest
import torch

from tests.launch.processes import ACCELERATE, PROBE, ROOT, clean, finish, free_port, rows, start

pytestmark = pytest.mark.usefixtures("starts_processes")

FLAGS = "--multi_gpu --num_machines 2 --num_processes 4 --main_process_ip 127.0.0.1 --mixed_precision no"


@pytest.mark.slow
def test_two_machines_are_one_training():
    flags = [*FLAGS.split(), "--dynamo_backend", "no", "--main_process_port", free_port()]
    both = [start([*ACCELERATE, *flags, "--machine_rank", machine, PROBE, "cpu"]) for machine in (1, 0)]
    (code1, second, err1), (code0, first, err0) = finish(*both)
    assert (code0, code1) == (0, 0), err0 + err1
    assert [(row["rank"], row["local"], row["total"]) for row in rows(first)] == [(0, 0, 10.0), (1, 1, 10.0)]
    assert [(row["rank"], row["local"], row["total"]) for row in rows(second)] == [(2, 0, 10.0), (3, 1, 10.0)]


def test_two_machines_train_the_model_of_one(tmp_path):
    """One process each; every weight of every process is compared."""
    flags = [f if f != "4" else "2" for f in FLAGS.split()]
    flags += ["--dynamo_backend", "no", "--main_process_port", free_port()]
    names = ["mlp-f64-sgd-2", "shards-dropout-4"]
    module = ["-m", "tests.distributed.worker"]
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    machines = [
        start([*ACCELERATE, *flags, "--machine_rank", machine, *module, tmp_path / "two", *names], clean(), ROOT)
        for machine in (1, 0)
    ]
    alone = start([sys.executable, *module, tmp_path / "one", *names], clean(), ROOT)
    for code, _, err in finish(*machines, alone):
        assert code == 0, err
    for name, largest in zip(names, (1e-14, 0.0), strict=True):
        wanted = torch.load(tmp_path / "one" / f"{name}.0.pt", weights_only=False)["weights"]
        for rank in (0, 1):
            found = torch.load(tmp_path / "two" / f"{name}.{rank}.pt", weights_only=False)["weights"]
            assert max((found[key] - wanted[key]).abs().max().item() for key in wanted) <= largest


def test_two_machines_without_multi_gpu_are_refused():
    flags = [f for f in FLAGS.split() if f != "--multi_gpu"]
    code, out, _ = finish(
        start([*ACCELERATE, *flags, "--main_process_port", free_port(), "--machine_rank", 0, PROBE, "cpu"])
    )[0]
    assert code != 0
    assert "this process was started alone" in rows(out)[0]["refused"]
