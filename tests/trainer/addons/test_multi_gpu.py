"""A list of devices: the script starts itself again, faithfully, and not under a launcher."""

import sys

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from tests.helpers import PlainTrainer, make
from tests.launch.processes import TORCHRUN, finish, rows, run, start
from zae_engine.launch.environment import LaunchError
from zae_engine.trainer.addons import MultiGPUAddon

Multi = PlainTrainer.add_on(MultiGPUAddon)

SCRIPT = """
import json, os, sys, torch
from tests.helpers import PlainTrainer, make
from zae_engine.trainer.addons import MultiGPUAddon

print("before", flush=True)
os.chdir("/")
trainer = make(PlainTrainer.add_on(MultiGPUAddon), device=["cpu", "cpu"])
total = trainer.accelerator.reduce(torch.tensor(1.0), "sum").item()
seen = {"rank": trainer.accelerator.process_index, "total": total, "arguments": sys.argv[1:]}
seen |= {"warnings": sys.warnoptions, "name": __name__, "config": trainer.launch_config()["num_processes"]}
sys.stdout.write(json.dumps(seen) + "\\n")
sys.stdout.flush()
trainer.accelerator.wait_for_everyone()
sys.exit(5 * trainer.accelerator.process_index)
"""


def write(folder, source=SCRIPT):
    folder.mkdir()
    script = folder / "train it.py"
    script.write_text(source)
    return script


def test_a_script_is_started_again_as_it_was(tmp_path):
    write(tmp_path / "a b")
    command = [sys.executable, "-W", "error::UserWarning", "a b/train it.py", "x y", "--n=2"]
    code, out, err = run(*command, cwd=tmp_path)
    seen = rows(out)
    assert [(row["rank"], row["total"]) for row in seen] == [(0, 2.0), (1, 2.0)], err
    for row in seen:
        assert (row["arguments"], row["warnings"]) == (["x y", "--n=2"], ["error::UserWarning"])
        assert (row["name"], row["config"]) == ("__main__", 2)
    assert out.count("before") == 3
    assert (code, err) == (5, "zae-engine: process 1 ended with exit code 5, and the others with it\n")


def test_a_module_is_started_again_as_a_module(tmp_path):
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(SCRIPT.replace('os.chdir("/")', "from . import __name__ as parent"))
    _, out, err = run(sys.executable, "-m", "pkg.train", "x", cwd=tmp_path)
    assert [(row["rank"], row["total"], row["arguments"]) for row in rows(out)] == [(0, 2.0, ["x"]), (1, 2.0, ["x"])], (
        err
    )


def test_what_comes_from_standard_input_is_refused(tmp_path):
    with (tmp_path / "script").open("w+") as source:
        source.write(SCRIPT)
        source.seek(0)
        ((code, _, err),) = finish(start([sys.executable, "-"], cwd=tmp_path, stdin=source))
    assert code == 1
    assert "LaunchError: several devices need a script" in err


UNDER = """
import json, sys, torch
from tests.helpers import PlainTrainer, make
from zae_engine.launch.environment import LaunchError
from zae_engine.trainer.addons import MultiGPUAddon

Multi = PlainTrainer.add_on(MultiGPUAddon)
try:
    make(Multi, device=["cpu"] * 3)
except LaunchError as error:
    refused = str(error)
trainer = make(Multi, device=["cpu"] * 2)
total = trainer.accelerator.reduce(torch.tensor(1.0), "sum").item()
sys.stdout.write(json.dumps({"rank": trainer.accelerator.process_index, "total": total, "refused": refused}) + "\\n")
"""


def test_under_a_launcher_nothing_is_started_and_the_numbers_have_to_agree(tmp_path):
    code, out, err = run(*TORCHRUN, "--nproc-per-node", 2, write(tmp_path / "x", UNDER))
    assert code == 0, err
    assert [(row["rank"], row["total"]) for row in rows(out)] == [(0, 2.0), (1, 2.0)]
    for row in rows(out):
        assert "names 3, but a launcher started 2 processes" in row["refused"]


def test_one_process_of_accelerates_launcher_starts_no_others(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(LaunchError, match="names 2, but a launcher started 1 processes"):
        make(Multi, device=["cpu", "cpu"])


def test_within_a_test_nothing_can_be_started():
    with pytest.raises(LaunchError, match="start the main script once more"):
        make(Multi, device=["cpu", "cpu"])


@pytest.mark.parametrize("device", ["cpu", ["cpu"], ("cpu",), None], ids=str)
def test_one_device_starts_nothing(device):
    trainer = make(Multi, device=device)
    assert trainer.accelerator.num_processes == 1


@pytest.mark.parametrize(("device", "message"), [([], "names no device"), (["cpu", "cuda:0"], "mixes cpu and cuda")])
def test_lists_are_checked_first(device, message):
    with pytest.raises(ValueError, match=message):
        make(Multi, device=device)


def test_the_configuration_can_be_written_for_accelerate_launch(tmp_path):
    file = tmp_path / "launch.yaml"
    config = make(Multi, device="cpu", mixed_precision="bf16").launch_config(file)
    assert yaml.safe_load(file.read_text()) == config
    read = load_config_from_file(str(file))
    assert (read.distributed_type, read.num_processes, read.mixed_precision) == ("NO", 1, "bf16")
    assert read.use_cpu
