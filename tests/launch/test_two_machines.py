"""Two launchers of stock Accelerate, as on two machines, meet over the loopback."""

import pytest
import torch

from tests.launch.processes import ACCELERATE, PROBE, clean, free_port, rows

FLAGS = "--multi_gpu --num_machines 2 --num_processes 4 --main_process_ip 127.0.0.1 --mixed_precision no"


@pytest.mark.slow
def test_two_machines_are_one_training(nursery):
    flags = [*FLAGS.split(), "--dynamo_backend", "no", "--main_process_port", free_port()]
    command = [*ACCELERATE, *flags, "--machine_rank"]
    both = [nursery.begin(*command, machine, PROBE, "cpu", env=clean()) for machine in (1, 0)]
    second, first = (process.wait(90) for process in both)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert [(row["rank"], row["local"], row["total"]) for row in rows(first.stdout)] == [(0, 0, 10.0), (1, 1, 10.0)]
    assert [(row["rank"], row["local"], row["total"]) for row in rows(second.stdout)] == [(2, 0, 10.0), (3, 1, 10.0)]


def test_two_machines_train_the_model_of_one(nursery, tmp_path):
    """One process each; every weight of every process is compared."""
    flags = [f if f != "4" else "2" for f in FLAGS.split()]
    flags += ["--dynamo_backend", "no", "--main_process_port", free_port()]
    names = ["mlp-f64-sgd-2", "shards-dropout-4"]
    module = ["-m", "tests.distributed.worker"]
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    machines = [
        nursery.begin(*ACCELERATE, *flags, "--machine_rank", machine, *module, tmp_path / "two", *names, env=clean())
        for machine in (1, 0)
    ]
    alone = nursery.begin(*module, tmp_path / "one", *names, env=clean())
    for done in [process.wait(90) for process in (*machines, alone)]:
        assert done.returncode == 0, done.stderr
    for name, largest in zip(names, (1e-14, 0.0), strict=True):
        wanted = torch.load(tmp_path / "one" / f"{name}.0.pt", weights_only=False)["weights"]
        for rank in (0, 1):
            found = torch.load(tmp_path / "two" / f"{name}.{rank}.pt", weights_only=False)["weights"]
            assert max((found[key] - wanted[key]).abs().max().item() for key in wanted) <= largest


def test_two_machines_without_multi_gpu_are_refused(nursery):
    flags = [f for f in FLAGS.split() if f != "--multi_gpu"]
    flags += ["--main_process_port", free_port(), "--machine_rank", 0]
    done = nursery.run(*ACCELERATE, *flags, PROBE, "cpu", env=clean())
    assert done.returncode != 0
    assert "this process was started alone" in rows(done.stdout)[0]["refused"]
