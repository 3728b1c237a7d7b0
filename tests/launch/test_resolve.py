"""Fitting a configuration to machines that are not all here."""

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from zae_engine.launch import resolve_config, write_config
from zae_engine.launch.cluster import read_cluster, refuse_nested
from zae_engine.launch.findings import ConfigError
from zae_engine.launch.machine import Machine, list_precisions, name_visible, this_machine
from zae_engine.launch.resolve import machine_config, override
from zae_engine.launch.yaml_file import Document

BARE = Machine(cores=4)
EIGHT = Machine("cuda", tuple("01234567"), 64, ("no", "fp16", "bf16"))
LENT = Machine("cuda", ("4", "6"), 16, ("no", "fp16", "bf16"))
OLD = Machine("cuda", ("0", "1"), 16, ("no", "fp16"))
FOUR = {"distributed_type": "MULTI_GPU", "num_processes": 4, "main_process_port": 0, "mixed_precision": "no"}
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "gpu[003-005],cpu1",
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0",
    "SLURM_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip


@pytest.fixture
def fit(tmp_path):
    def resolve(config, machine, environ=()):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        resolved = resolve_config(path, machine, dict(environ))
        write_config(resolved.config, tmp_path / "out.yaml")
        load_config_from_file(str(tmp_path / "out.yaml"))  # stock Accelerate takes it
        again = resolve_config(tmp_path / "out.yaml", machine, dict(environ))
        assert again.config == resolved.config
        assert again.changes == []  # what fits is left alone
        return resolved.config, resolved.changes

    return resolve


def test_what_fits_is_left_alone(fit):
    assert fit(FOUR, EIGHT) == (FOUR, [])


def test_no_accelerator_means_as_many_cpu_processes(fit):
    config, changes = fit(FOUR | {"num_processes": 2, "gpu_ids": "0,1"}, BARE)
    assert config == FOUR | {"num_processes": 2, "use_cpu": True}
    assert [c.split(":")[0] for c in changes] == ["use_cpu", "gpu_ids"]


def test_no_more_cpu_processes_than_cores(fit):
    assert fit(FOUR | {"num_processes": 64}, BARE)[0]["num_processes"] == 4
    assert fit(FOUR | {"num_processes": 64, "use_cpu": True}, BARE)[0]["num_processes"] == 64  # asked for


def test_one_process_needs_no_launcher(fit):
    config, _ = fit(FOUR, Machine("cuda", ("3",), 8, EIGHT.precisions))
    assert (config["distributed_type"], config["num_processes"]) == ("NO", 1)


@pytest.mark.parametrize(
    ("ids", "mapped", "processes"), [("4,6", "4,6", 2), ("0,1", "4,6", 2), ("1,0", "6,4", 2), ("0,1,2,3", "4,6", 2)]
)
def test_gpu_ids_stay_within_the_visible_ones(fit, ids, mapped, processes):
    config, changes = fit(FOUR | {"num_processes": len(ids.split(",")), "gpu_ids": ids}, LENT)
    assert (config["gpu_ids"], config["num_processes"]) == (mapped, processes)
    assert bool(changes) == (ids != mapped)


def test_processes_are_no_more_than_devices(fit):
    config, changes = fit(FOUR, LENT)
    assert config["num_processes"] == 2
    assert "4 -> 2 (2 visible here; the result is the same)" in changes[0]


@pytest.mark.parametrize(
    ("asked", "machine", "given"),
    [
        ("bf16", EIGHT, "bf16"), ("bf16", OLD, "fp16"), ("fp16", BARE, "no"), ("bf16", BARE, "bf16"),
        ("fp8", EIGHT, "bf16"), ("fp8", OLD, "fp16"), ("fp8", BARE, "bf16"), ("no", OLD, "no"),
    ],
)  # fmt: skip
def test_a_change_of_precision_is_told_as_such(fit, asked, machine, given):
    config, changes = fit(FOUR | {"mixed_precision": asked}, machine)
    assert config["mixed_precision"] == given
    told = [c for c in changes if c.startswith("PRECISION")]
    assert bool(told) == (asked != given)
    assert all("changes the numbers" in c for c in told)


def test_fp16_of_older_files_is_a_precision(fit):
    old = {"distributed_type": "MULTI_GPU", "num_processes": 2, "fp16": True}
    assert fit(old, EIGHT)[0]["mixed_precision"] == "fp16"
    assert fit(old, BARE)[0]["mixed_precision"] == "no"


def test_sharding_is_left_out_without_accelerators(fit):
    config, changes = fit(FOUR | {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}, BARE)
    assert config == FOUR | {"use_cpu": True}
    assert "the result is the same" in changes[0]
    zero = FOUR | {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3}}
    assert fit(zero, BARE)[0] == FOUR | {"use_cpu": True}


def test_what_would_train_something_else_is_refused(fit):
    zero = FOUR | {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3, "gradient_clipping": 1.0}}
    with pytest.raises(ConfigError, match="without one no DEEPSPEED and its gradient_clipping"):
        fit(zero, BARE)
    with pytest.raises(ConfigError, match="without one no MEGATRON_LM"):
        fit(FOUR | {"distributed_type": "MEGATRON_LM"}, BARE)
    assert fit(zero, EIGHT)[1] == []


def test_errors_end_it(fit):
    with pytest.raises(ConfigError, match="has errors") as caught:
        fit(FOUR | {"gpu_ids": 0}, EIGHT)
    assert caught.value.findings[0].key == "gpu_ids"


def test_slurm_says_which_machine_this_is(fit):
    config, changes = fit({"distributed_type": "MULTI_GPU", "num_processes": 8}, EIGHT, SLURM)
    assert config == {
        "distributed_type": "MULTI_GPU", "num_processes": 16, "num_machines": 2, "machine_rank": 1,
        "main_process_ip": "gpu003", "main_process_port": config["main_process_port"],
    }  # fmt: skip
    assert 20000 <= config["main_process_port"] < 30000
    assert all("SLURM" in c or "machine" in c for c in changes)


def test_slurm_with_one_process_a_machine(fit):
    config, _ = fit({"distributed_type": "NO", "use_cpu": True}, BARE, SLURM)
    assert (config["distributed_type"], config["num_processes"], config["machine_rank"]) == ("MULTI_GPU", 2, 1)


@pytest.mark.usefixtures("starts_processes")
def test_scontrol_expands_what_it_knows_better(fit, tmp_path, monkeypatch):
    tool = tmp_path / "scontrol"
    tool.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[003-005],cpu1" ] && echo first.cluster && echo second\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert fit(FOUR, EIGHT, SLURM)[0]["main_process_ip"] == "first.cluster"


def test_a_batch_script_alone_would_wait_for_ever(fit):
    batch = {k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"}
    with pytest.raises(ConfigError, match="srun --ntasks-per-node=1 zae launch"):
        fit(FOUR, EIGHT, batch)
    config, _ = fit(FOUR, EIGHT, batch | {"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"})
    assert config["num_machines"] == 1


@pytest.mark.parametrize(
    "environ",
    [
        {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "head", "PET_MASTER_PORT": "1234"},
        {"GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "1234"},
    ],
)
def test_torchs_launcher_says_which_machine_this_is(fit, environ):
    config, _ = fit(FOUR, EIGHT, environ)
    wanted = {"num_processes": 8, "num_machines": 2, "machine_rank": 1}
    assert wanted | {"main_process_ip": "head", "main_process_port": 1234} == {
        k: config[k] for k in (*wanted, "main_process_ip", "main_process_port")
    }


def test_machines_have_to_find_the_first(fit):
    environ = {"PET_NNODES": "2", "PET_NODE_RANK": "1"}
    with pytest.raises(ConfigError, match="not where the first one is"):
        fit(FOUR, EIGHT, environ)
    config, _ = fit(FOUR | {"main_process_ip": "head"}, EIGHT, environ)
    assert (config["main_process_ip"], config["main_process_port"]) == ("head", 29500)


def test_what_slurm_knows_need_not_be_written(fit):
    machines = FOUR | {"num_machines": 4, "num_processes": 16, "main_process_port": None}
    config, _ = fit(machines, EIGHT, SLURM)
    assert (config["num_machines"], config["num_processes"], config["main_process_ip"]) == (2, 8, "gpu003")


def test_an_elastic_number_of_machines_says_nothing():
    assert read_cluster({"PET_NNODES": "1:4", "PET_NODE_RANK": "0"}) is None
    assert read_cluster({}) is None


def test_a_launch_within_a_launch_is_refused():
    with pytest.raises(ConfigError, match="started by a launcher already"):
        refuse_nested({"RANK": "0", "LOCAL_RANK": "0"})
    with pytest.raises(ConfigError, match="srun started 4"):
        refuse_nested(SLURM | {"SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "4(x2)"})
    refuse_nested(SLURM)


def test_other_accelerators_keep_what_they_need(fit):
    config, _ = fit(FOUR, Machine("mps", ("0",), 8, ("no", "fp16", "bf16")))
    assert (config["distributed_type"], config["num_processes"]) == ("NO", 1)
    tpu = {"distributed_type": "XLA", "num_processes": 8, "mixed_precision": "bf16"}
    assert fit(tpu, BARE) == (tpu, [])
    mpi = {"distributed_type": "MULTI_CPU", "num_processes": 8, "mpirun_config": {"mpirun_hostfile": "hosts"}}
    assert fit(mpi, BARE) == (mpi, [])


def test_a_machine_has_a_configuration_by_itself():
    assert machine_config(BARE)["use_cpu"] is True
    assert machine_config(BARE)["distributed_type"] == "NO"
    assert machine_config(EIGHT)["num_processes"] == 8
    assert machine_config(Machine("xpu", ("0", "1"), 8))["distributed_type"] == "MULTI_XPU"


def test_the_command_line_goes_before_the_file():
    document = Document({"distributed_type": "NO", "num_processes": 1, "mixed_precision": "fp16"})
    override(document, {"num_processes": 3, "mixed_precision": None, "gpu_ids": "0,1,2"})
    assert document.values == {
        "distributed_type": "MULTI_GPU", "num_processes": 3, "mixed_precision": "fp16", "gpu_ids": "0,1,2"
    }  # fmt: skip


def test_several_cpu_processes_stay_on_the_cpu():
    document = Document({"distributed_type": "MULTI_CPU", "num_processes": 1})
    override(document, {"num_processes": 2})
    assert document.values == {"distributed_type": "MULTI_GPU", "num_processes": 2, "use_cpu": True}


def test_devices_are_named_as_the_variable_does():
    assert name_visible(2, "5, 7") == ("5", "7")
    assert name_visible(2, None) == ("0", "1")
    assert name_visible(1, "GPU-1a2b") == ("GPU-1a2b",)


def test_precisions_are_those_of_the_weakest():
    assert list_precisions([(False, 7, 5)]) == ("no", "fp16")
    assert list_precisions([(False, 9, 0), (False, 8, 0)]) == ("no", "fp16", "bf16")
    assert list_precisions([(False, 8, 9)]) == ("no", "fp16", "bf16", "fp8")
    assert list_precisions([(True, 9, 4)]) == ("no", "fp16", "bf16")


def test_this_machine_computes_in_fp32():
    assert "no" in this_machine().precisions
    assert this_machine().cores >= 1


def test_a_count_without_a_number_is_as_if_it_was_not_there(fit):
    for machine in (EIGHT, BARE):
        assert fit(FOUR | {"num_machines": None}, machine) == fit(FOUR, machine)
        assert fit({"distributed_type": "NO", "num_processes": None, "num_machines": None}, machine)
