"""The configurations that the repository ships: checked, given to stock Accelerate, and run where a CPU can."""

from functools import partial
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from tests.nurse import environment
from zae_engine.launch import check_config, resolve_config
from zae_engine.launch.machine import Machine

FOLDER = Path(__file__).parents[2] / "accelerate_configs"
FILES = sorted(FOLDER.glob("*.yaml"))
GPUS = Machine("cuda", tuple("01234567"), 64, ("no", "fp16", "bf16"))

# A line is written in one piece, so that those of several processes do not mix.
REPORT = """
import os
words = [os.environ.get(name, "-") for name in ("RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU")]
os.write(1, (" ".join(words) + "\\n").encode())
"""
TRAINS = """
import os
from tests.helpers import loader, make
trainer = make()
trainer.run(1, loader())
os.write(1, f"{trainer.device.type} {os.environ['CUDA_VISIBLE_DEVICES']}\\n".encode())
"""
STATE = """
import os
from accelerate import Accelerator
a = Accelerator()
os.write(1, f"{a.process_index} {a.num_processes} {a.device.type} {a.mixed_precision}\\n".encode())
a.end_training()
"""


@pytest.fixture
def launch(nursery, tmp_path):
    return partial(launch_of, nursery, tmp_path)


def launch_of(nursery, folder, source, *options, **variables):
    """The lines that a script's processes have written."""
    script = folder / "script.py"
    script.write_text(source, encoding="utf-8")
    command = ["-m", "accelerate.commands.launch", *options, script]
    done = nursery.run(*command, timeout=120, env=environment() | variables, cwd=folder)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def test_all_are_here():
    assert {f.stem for f in FILES} == {
        "cpu", "cpu_2", "bf16_cpu", "one_gpu", "multi_gpu", "bf16_multi_gpu", "multi_node", "fsdp2",
        "deepspeed_zero2", "deepspeed_zero3",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_check_finds_nothing(path):
    assert check_config(path, GPUS) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_key_has_a_comment(path):
    assert all(" # " in line for line in path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_stock_accelerate_takes_it(path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = load_config_from_file(str(path))
    args = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    args, _, _ = _validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ""  # as launch_command() sets it
    if args.use_deepspeed:
        _, environ = prepare_deepspeed_cmd_env(args)
    elif args.multi_gpu or args.use_fsdp:
        environ = prepare_multi_gpu_env(args)
    else:
        _, environ = prepare_simple_launcher_cmd_env(args)
    assert environ["ACCELERATE_MIXED_PRECISION"] == config.mixed_precision
    assert args.num_processes == config.num_processes
    assert (environ.get("ACCELERATE_USE_FSDP"), environ.get("FSDP_VERSION", "2")) == (
        "true" if path.stem == "fsdp2" else None, "2"
    )  # fmt: skip
    assert environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "") == path.stem.partition("deepspeed_zero")[2]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_fits_a_machine_without_accelerators(path):
    config = resolve_config(path, Machine(cores=2), {}).config
    assert config["use_cpu"] is True
    assert config["distributed_type"] == ("NO" if config["num_processes"] == 1 else "MULTI_GPU")


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_stock_accelerate_starts_as_many_as_asked(launch, processes):
    lines = launch(REPORT, "--config_file", FOLDER / "cpu_2.yaml", "--num_processes", processes)
    assert lines == [f"{rank} {processes} -" for rank in range(processes)]


@pytest.mark.parametrize(("starter", "processes"), [("accelerate.commands.launch", 2), ("zae_engine.cli", 3)])
def test_several_cpu_processes_train_without_a_warning(nursery, tmp_path, starter, processes):
    (tmp_path / "script.py").write_text(TRAINS, encoding="utf-8")
    words = ["launch"] if starter == "zae_engine.cli" else ["--config_file"]
    command = ["-m", starter, *words, FOLDER / "cpu_2.yaml", "--num_processes", processes, "script.py"]
    environ = environment() | {"PYTHONWARNINGS": "default", "PYTHONPATH": str(FOLDER.parent)}
    environ.pop("CUDA_VISIBLE_DEVICES", None)
    done = nursery.run(*command, timeout=200, env=environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["cpu -1,-1"] * processes
    assert "Warning" not in done.stderr
    assert not done.stderr.startswith("zae launch:")


@pytest.mark.parametrize(("name", "precision"), [("cpu", "no"), ("bf16_cpu", "bf16")])
def test_stock_accelerate_starts_one(launch, name, precision):
    assert launch(STATE, "--config_file", FOLDER / f"{name}.yaml") == [f"0 1 cpu {precision}"]


def test_two_processes_are_one_accelerator_when_told_to_use_the_cpu(launch):
    lines = launch(STATE, "--config_file", FOLDER / "cpu_2.yaml", ACCELERATE_USE_CPU="true")
    assert lines == ["0 2 cpu no", "1 2 cpu no"]
