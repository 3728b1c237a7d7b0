"""The all-reduce of the doctor, with real processes."""

import pytest

from zae_engine.launch.doctor import Reduction, describe_variables, describe_versions, try_reduce
from zae_engine.launch.machine import Machine


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("starts_processes")
def test_two_processes_reduce():
    reduction = try_reduce(Machine(cores=2))
    assert (reduction.processes, reduction.backend, reduction.problem) == (2, "gloo", "")
    assert 0 < reduction.seconds < 60
    assert str(reduction).startswith("all-reduce over 2 processes (gloo): works, ")


@pytest.mark.usefixtures("starts_processes")
def test_a_failure_says_what_to_do(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    reduction = try_reduce(Machine(cores=2), timeout=20)
    assert "nosuch0" in reduction.problem
    text = str(reduction)
    assert "FAILED" in text
    assert "GLOO_SOCKET_IFNAME is unset" in text


def test_nccl_has_advice_of_its_own():
    text = str(Reduction(2, "nccl", 1.0, "unhandled system error"))
    assert "NCCL_DEBUG=INFO" in text
    assert "NCCL_SOCKET_IFNAME" in text


def test_versions_and_variables():
    assert {"zae-engine", "python", "torch", "accelerate", "CUDA"} <= describe_versions().keys()
    found = describe_variables({"SLURM_JOB_ID": "7", "HOME": "/", "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"})
    assert found == {"ACCELERATE_USE_CPU": "true", "SLURM_JOB_ID": "7", "WORLD_SIZE": "2"}
