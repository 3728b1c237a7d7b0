"""Lists of devices: what they name, what is refused, and the configuration that they mean."""

import re

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig

from zae_engine.launch.devices import (
    Devices,
    check_count,
    check_there,
    configuration,
    numbered,
    read_devices,
    variables,
)
from zae_engine.launch.environment import LaunchError, World
from zae_engine.launch.machine import Machine, look

CPU = Machine(cores=8)
FOUR = Machine("cuda", ("4", "5", "GPU-6f", "7"), 8)


@pytest.mark.parametrize(
    ("entries", "read"),
    [
        (["cuda:0", "cuda:1"], Devices("cuda", (0, 1))),
        ([3, 1], Devices("cuda", (3, 1))),
        ((torch.device("cuda:2"), 0), Devices("cuda", (2, 0))),
        (["cpu", torch.device("cpu")], Devices("cpu", (0, 0))),
        (["cuda"], Devices("cuda", (0,))),
        (["mps"], Devices("mps", (0,))),
    ],
    ids=str,
)
def test_a_list_is_read(entries, read):
    assert read_devices(entries, FOUR) == read


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "device=[] names no device"),
        (["cuda:0", "cpu"], "device=['cuda:0', 'cpu'] mixes cuda and cpu"),
        ([0, "xpu:1"], "device=[0, 'xpu:1'] mixes cuda and xpu"),
        (["cuda:1", 1], "names 'cuda:1' 2 times; two processes cannot share"),
        (["cuda", "cuda"], "does not say which ones; number them, as ['cuda:0', 'cuda:1']"),
        (["mps", "mps"], "names 'mps' 2 times, but it is only one; write 'mps'"),
        (["cdua:0", "cuda:1"], "device='cdua:0' is not a device; write 'cuda:0', 0 or 'cpu'; did you mean 'cuda:0'?"),
        ([-1, 0], "names 'cuda:-1'"),
        ([True, 0], "device=True is not a device"),
        ([["cuda:0"], 1], "device=['cuda:0'] is not a device"),
        (["cuda:4", "cuda:0"], "names 'cuda:4', but here is 4 cuda devices (4, 5, GPU-6f, 7);"),
        (["cuda:0", 9], "(CUDA_VISIBLE_DEVICES): write cuda:0 to cuda:3"),
        (["xpu:0", "xpu:1"], "names 'xpu:0', but here is 4 cuda devices"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(entries, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_there(read_devices(entries, FOUR), FOUR)


def test_a_machine_without_accelerators_has_the_cpu():
    with pytest.raises(ValueError, match="device=0 is an accelerator's index, but this machine has none; write 'cpu'"):
        read_devices([0, 1], CPU)
    with pytest.raises(ValueError, match=re.escape("here is no accelerator, 8 CPU cores")):
        check_there(read_devices(["cuda:0", "cuda:1"], CPU), CPU)
    check_there(read_devices(["cpu"] * 3, CPU), CPU)
    assert look().cores >= 1


def test_the_list_is_as_long_as_there_are_processes_here():
    two = Devices("cuda", (0, 1))
    check_count(two, World(4, 3, 2, 1, True))  # on two machines
    with pytest.raises(LaunchError, match=r"names 2, but a launcher started 3 processes on this machine; start 2, or"):
        check_count(two, World(3, 0, 3, 0, True))


def test_the_configuration_stays_among_the_visible_devices():
    config = configuration(Devices("cuda", (3, 2)), FOUR, "bf16")
    assert config["gpu_ids"] == "7,GPU-6f"
    read = ClusterConfig(**config)
    assert (read.distributed_type, read.num_processes, read.mixed_precision) == ("MULTI_GPU", 2, "bf16")
    assert configuration(Devices("cuda", (1,)), FOUR)["distributed_type"] == "NO"
    assert numbered(Devices("cuda", (3, 2))) == Devices("cuda", (0, 1))  # as the processes see them
    assert variables(Devices("cuda", (3, 2)), FOUR) == {}


def test_processes_on_the_cpu_share_its_cores():
    config = configuration(Devices("cpu", (0, 0, 0)), CPU)
    assert (config["distributed_type"], config["num_processes"], config["use_cpu"]) == ("MULTI_GPU", 3, True)
    assert "gpu_ids" not in config
    assert variables(Devices("cpu", (0, 0, 0)), CPU) == {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "2"}
