"""From ``device=``, the precision and the launch environment to the one Accelerator."""

import re

import pytest
import torch
from accelerate.utils import DistributedDataParallelKwargs

from tests.launch.processes import clean, free_port
from zae_engine.launch.environment import LaunchError
from zae_engine.trainer.processes.device import (
    available_devices,
    default_device,
    find_device,
    make_accelerator,
    resolve_accumulation,
    resolve_precision,
)

CPU = torch.device("cpu")

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in (
        "ACCELERATE_MIXED_PRECISION",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        "ACCELERATE_USE_CPU",
        "WORLD_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)


# ---------------------------------------------------------------------- find_device


@pytest.mark.parametrize("device", ["cpu", CPU, ["cpu"], (CPU,)], ids=str)
def test_one_device_may_be_written_in_several_ways(device):
    assert find_device(device) == CPU


@without_cuda
@pytest.mark.parametrize(("device", "named"), [("cuda", "cuda"), ("cuda:0", "cuda:0"), (["cuda:1"], "cuda:1")])
def test_a_device_that_is_not_there_is_refused(device, named):
    with pytest.raises(ValueError, match=f"device '{named}' is not there; this machine has 'cpu'"):
        find_device(device)


@pytest.mark.parametrize("device", ["cuda:99", "cpu:7", "meta"])
def test_an_index_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match=f"device '{device}' is not there; this machine has 'cpu'"):
        find_device(device)


@pytest.mark.parametrize("device", ["gpu", "", 3.5, {"cpu"}, None], ids=repr)
def test_what_is_no_device_is_refused(device):
    with pytest.raises(ValueError, match=re.escape(f"device={device!r} is not a device; this machine has 'cpu'")):
        find_device(device)


def test_several_devices_are_refused_by_naming_the_add_on():
    message = (
        r"device=\['cuda:0', 'cuda:1'\] names 2 devices; .*: write add_on\(MultiGPUAddon\)\. .*such as device='cuda:0'"
    )
    with pytest.raises(ValueError, match=message):
        find_device(["cuda:0", torch.device("cuda:1")])


def test_an_empty_list_of_devices_is_refused():
    with pytest.raises(ValueError, match=r"device=\[\] names no device"):
        find_device([])


def test_the_devices_that_are_told_are_all_accepted():
    for name in available_devices():
        assert str(find_device(name)) == name
    assert available_devices()[0] == "cpu"


def test_the_launch_configuration_may_ask_for_the_cpu(monkeypatch):
    assert str(default_device()) == available_devices()[-1 if len(available_devices()) == 1 else 1]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert default_device() == CPU


# ---------------------------------------------------------------------- resolve_precision


@pytest.mark.parametrize(
    ("argument", "configured", "agreed"),
    [
        (None, None, "no"),
        ("bf16", None, "bf16"),
        (None, "bf16", "bf16"),
        (None, "BF16", "bf16"),
        ("bf16", "bf16", "bf16"),
        ("bf16", "no", "bf16"),
        ("no", None, "no"),
    ],
)
def test_argument_and_launch_configuration_agree_on_a_precision(monkeypatch, argument, configured, agreed):
    if configured is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", configured)
    assert resolve_precision(argument, CPU) == agreed


def test_precisions_that_contradict_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for argument in ("no", "fp16"):
        message = f"mixed_precision='{argument}' contradicts the launch configuration, which says 'bf16'"
        with pytest.raises(ValueError, match=message):
            resolve_precision(argument, CPU)


def test_fp16_on_the_cpu_is_refused_from_both_sources(monkeypatch):
    with pytest.raises(ValueError, match=r"'fp16' is not possible on the CPU .* write 'bf16'"):
        resolve_precision("fp16", CPU)
    assert resolve_precision("fp16", torch.device("cuda")) == "fp16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="'fp16' is not possible on the CPU"):
        resolve_precision(None, CPU)


def test_a_misspelt_precision_is_refused_from_both_sources(monkeypatch):
    with pytest.raises(
        ValueError, match="mixed_precision='half' is not a precision; write one of 'no', 'bf16', 'fp16'"
    ):
        resolve_precision("half", CPU)
    with pytest.raises(ValueError, match="mixed_precision='' is not a precision"):
        resolve_precision("", CPU)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf61")
    with pytest.raises(ValueError, match="the launch configuration's mixed_precision 'bf61' is not a precision"):
        resolve_precision(None, CPU)


# ---------------------------------------------------------------------- resolve_accumulation


@pytest.mark.parametrize(
    ("argument", "configured", "agreed"),
    [
        (None, None, 1),
        (4, None, 4),
        (None, "4", 4),
        (4, "4", 4),
        (4, "1", 4),
        (4, "auto", 4),
        (None, "auto", 1),
        (4, "", 4),
    ],
)
def test_argument_and_launch_configuration_agree_on_micro_batches(monkeypatch, argument, configured, agreed):
    if configured is not None:
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", configured)
    assert resolve_accumulation(argument) == agreed


def test_numbers_of_micro_batches_that_contradict_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    with pytest.raises(
        ValueError, match=r"gradient_accumulation_steps=4 contradicts the launch configuration, .* says 8"
    ):
        resolve_accumulation(4)


@pytest.mark.parametrize("argument", [0, -1, 1.5, "4", True], ids=repr)
def test_what_is_no_number_of_micro_batches_is_refused(argument):
    with pytest.raises(ValueError, match=re.escape(f"gradient_accumulation_steps={argument!r} is not accepted")):
        resolve_accumulation(argument)


# ---------------------------------------------------------------------- make_accelerator


def test_the_accelerator_has_the_device_and_the_precision():
    accelerator = make_accelerator("cpu", "bf16")
    assert (accelerator.device, accelerator.mixed_precision) == (CPU, "bf16")
    assert accelerator.gradient_accumulation_steps == 1
    assert not accelerator.step_scheduler_with_optimizer


def test_the_precision_may_come_from_the_launch_configuration(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = make_accelerator("cpu")
    assert accelerator.mixed_precision == "bf16"
    assert accelerator.gradient_accumulation_steps == 1  # the trainer weighs micro-batches by itself


def test_a_second_trainer_with_the_same_settings_is_accepted():
    first, second = make_accelerator("cpu", "bf16"), make_accelerator("cpu", "bf16")
    assert first is not second
    assert first.mixed_precision == second.mixed_precision == "bf16"


def test_a_second_precision_is_refused_while_the_first_lives():
    first = make_accelerator("cpu", "no")
    message = r"mixed_precision='bf16' \(in use: 'no'\) contradicts another trainer .*\(del trainer\)"
    with pytest.raises(ValueError, match=message):
        make_accelerator("cpu", "bf16")
    assert first.mixed_precision == "no"
    del first
    assert make_accelerator("cpu", "bf16").mixed_precision == "bf16"


def test_a_trainer_in_a_cycle_that_waits_to_be_collected_contradicts_nobody():
    first = make_accelerator("cpu", "bf16")
    first.itself = first
    del first
    assert make_accelerator("cpu", "no").mixed_precision == "no"


def test_a_second_trainer_that_names_no_precision_does_not_silently_take_the_firsts():
    first = make_accelerator("cpu", "bf16")
    with pytest.raises(ValueError, match=r"mixed_precision='no' .*in use: 'bf16'"):
        make_accelerator("cpu")
    assert first.mixed_precision == "bf16"


@without_cuda
def test_a_device_that_the_environment_names_and_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:0")
    said = r"ACCELERATE_TORCH_DEVICE=cuda:0 is set, but device 'cuda:0' is not there; this machine has 'cpu'; unset it"
    with pytest.raises(LaunchError, match=said):
        make_accelerator(None, None)
    assert make_accelerator("cpu", None).device == CPU


def test_half_a_launch_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match=r"a launcher started 2 processes \(WORLD_SIZE=2\), but without RANK"):
        make_accelerator("cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert make_accelerator("cpu").num_processes == 1


def test_kwargs_handlers_are_handed_on():
    accelerator = make_accelerator("cpu", kwargs_handlers=[DistributedDataParallelKwargs(static_graph=True)])
    assert accelerator.ddp_handler.static_graph


TOGETHER = """
import warnings
from accelerate import Accelerator
from zae_engine.trainer.processes.device import make_accelerator
first = make_accelerator("cpu")
del first
second = make_accelerator("cpu", "bf16")  # another precision, in the same process group
print(second.mixed_precision, second.num_processes)
"""


def test_a_process_group_outlives_a_precision(nursery):
    one = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    done = nursery.run("-c", TOGETHER, env=clean(**one))
    assert (done.returncode, done.stdout.split()) == (0, ["bf16", "1"]), done.stderr


EARLIER = """
from accelerate import Accelerator
from zae_engine.trainer.processes.device import make_accelerator
own = Accelerator()  # finds no accelerator, and is alone without a word
print(own.num_processes)
make_accelerator("cpu")
"""


def test_an_accelerator_that_is_alone_among_several_is_refused(nursery):
    two = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "CUDA_VISIBLE_DEVICES": ""}
    both = [nursery.begin("-c", EARLIER, env=clean(**two, RANK=rank, LOCAL_RANK=rank)) for rank in range(2)]
    for done in [process.wait() for process in both]:
        assert (done.returncode, done.stdout.split()) == (1, ["1"])
        assert "2 processes were started, but Accelerate was set up for 1 earlier" in done.stderr


FOREIGN = """
from accelerate import Accelerator
from zae_engine.trainer.processes.device import make_accelerator
own = Accelerator(cpu=True, mixed_precision="bf16")
make_accelerator("cpu", "bf16")  # shares it, and goes at once
try:
    make_accelerator("cpu", "no")
except ValueError as error:
    print(error)
print(own.mixed_precision)
del own
print(make_accelerator("cpu", "no").mixed_precision)
"""


def test_settings_of_the_users_own_accelerator_are_not_reset_while_it_lives(nursery):
    done = nursery.run("-c", FOREIGN)
    assert done.returncode == 0, done.stderr
    refused, own, last = done.stdout.splitlines()
    assert refused.startswith("mixed_precision='no' (in use: 'bf16') contradicts another trainer (or Accelerator)")
    assert (own, last) == ("bf16", "no")
