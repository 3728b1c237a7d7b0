"""What the check finds in faulty files, and that it is silent on sound ones."""

import os

import pytest
import yaml

from zae_engine.launch.accepted_keys import read_schema
from zae_engine.launch.check import check_config
from zae_engine.launch.findings import ConfigError
from zae_engine.launch.machine import Machine
from zae_engine.launch.yaml_file import read_document

GPUS = Machine("cuda", tuple("01234567"), 64, ("no", "fp16", "bf16", "fp8"))
BARE = Machine(cores=2)
BASE = "distributed_type: MULTI_GPU\nnum_processes: 4\n"
FSDP = "distributed_type: FSDP\nnum_processes: 4\nfsdp_config:\n  fsdp_version: 2\n"
ZERO = "distributed_type: DEEPSPEED\nnum_processes: 4\ndeepspeed_config:\n"
FSDP1 = FSDP.replace("version: 2", "version: 1")
FP8 = BASE + "mixed_precision: fp8\nfp8_config:\n"
MANY = BASE + "num_machines: 2\nmain_process_ip: 10.0.0.1\nmain_process_port: 29500\n"
PASSED_OVER = {"rdzv_backend", "same_network", "enable_cpu_affinity", "downcast_bf16", "tpu_use_sudo"}

# What shall be found stands in a comment on its line: a word of the problem -> one of the remedy.
ERRORS = [
    BASE + "num_processes: 2  # second time -> keep one\n",
    BASE + "num_procs: 4  # knows no such key -> did you mean 'num_processes'\n",
    BASE + "banana: 4  # knows no such key -> take it out\n",
    BASE + "zero_stage: 2  # no such key -> under deepspeed_config\n",
    FSDP + "  num_machines: 1  # passes over -> the top level\n",
    FSDP + "  fsdp_offload_param: true  # passes over -> 'fsdp_offload_params'\n",
    FSDP + "  offload_parms: true  # passes over -> 'offload_params'\n",
    ZERO + "  zero_stag: 2  # passes over -> 'zero_stage'\n",
    BASE + "dynamo_config:\n  bakend: INDUCTOR  # passes over -> 'backend'\n",
    FSDP + "  zero_stage: 2  # passes over -> under deepspeed_config\n",
    BASE + "fsdp_config: yes please  # not a section -> indented\n",
    "num_processes: 1\ndistributed_type: NO  # boolean -> 'NO'\n",
    BASE + "mixed_precision: no  # boolean -> 'no'\n",
    BASE + "dynamo_config:\n  dynamo_backend: NO  # boolean -> 'no'\n",
    "distributed_type: multi_gpu  # not one of -> 'MULTI_GPU'\nnum_processes: 2\n",
    "distributed_type: DDP  # not one of -> 'MULTI_GPU'\nnum_processes: 2\n",
    BASE + "mixed_precision: bf61  # not one of -> 'bf16'\n",
    FSDP + "  auto_wrap_policy: SIZE_BASED  # not one of -> 'SIZE_BASED_WRAP'\n",
    BASE + "compute_environment: MY_MACHINE  # not one of -> 'LOCAL_MACHINE'\n",
    ZERO + "  zero_stage: two  # not a number -> digits\n",
    BASE + "gpu_ids: 0  # int -> '0'\n",
    BASE + "gpu_ids: [0, 1, 2, 3]  # list -> '0,1,2,3'\n",
    BASE + "main_process_port: '29500'  # a text -> 29500, without quotes\n",
    BASE + "main_process_port: 295000  # not a port -> 65535\n",
    BASE + "use_cpu: 'yes'  # not true or false -> without quotes\n",
    BASE + "main_process_ip: 10  # not a text -> '10', in quotes\n",
    "distributed_type: MULTI_GPU\nnum_processes: 0  # train nothing -> 1 or more\n",
    "distributed_type: MULTI_GPU\nnum_processes: two  # not a whole number -> such as 2\n",
    "distributed_type: MULTI_GPU\nnum_processes: '2'  # a text -> without quotes\n",
    "distributed_type: MULTI_GPU\nnum_processes: 4  # share 2 GPUs -> num_processes: 2\ngpu_ids: '0,1'\n",
    BASE + "gpu_ids: 0,1,1,2  # twice -> once\n",
    BASE + "gpu_ids: '0'  # one GPU -> 'NO'\n",
    MANY.replace("4", "5  # do not divide -> multiple of 2"),
    MANY + "machine_rank: 2  # no machine 2 of 2 -> 0 to 1\n",
    BASE + "num_machines: 0  # not 0 machines -> 1 or more\n",
    "distributed_type: MULTI_CPU\nnum_processes: 2  # starts one process, not 2 -> mpirun_hostfile\n",
    "distributed_type: 'NO'\nnum_processes: 2  # starts one process, not 2 -> MULTI_GPU\n",
    FSDP + "use_cpu: true  # no FSDP on the CPU -> take use_cpu out\n",
    "distributed_type: 'NO'\nuse_cpu: true\nmixed_precision: fp16  # no fp16 -> bf16\n",
    ZERO + "  deepspeed_config_file: a.json\n  zero_stage: 2  # refuses -> in that file\n",
    ZERO + "  deepspeed_config_file: a.json\nmixed_precision: bf16  # refuses -> in that file\n",
    FP8 + "  backend: TE\n  amax_history_length: 32  # passes over -> 'amax_history_len'\n",
    FP8 + "  amax_compute_algorithm: max  # passes over -> 'amax_compute_algo'\n",
    FP8 + "  optimization_level: O1  # passes over -> 'opt_level'\n",
]
WARNINGS = [
    BASE + "rdzv_backend: c10d  # never reads -> --rdzv_backend c10d\n",
    MANY + "same_network: true  # never reads -> --same_network\n",
    BASE + "enable_cpu_affinity: true  # never reads -> --enable_cpu\n",
    BASE + "downcast_bf16: 'yes'  # never reads -> --downcast_bf16\n",
    BASE + "tpu_use_sudo: true  # never reads -> --tpu_use_sudo\n",
    BASE + "use_cpu: true  # does not tell -> zae launch\n",
    FSDP + "  fsdp_sharding_strategy: FULL_SHARD  # fsdp_version 2 -> reshard\n",
    FSDP + "  backward_prefetch: NO_PREFETCH  # fsdp_version 2 -> take it out\n",
    FSDP1 + "  fsdp_reshard_after_forward: true  # version 1 -> fsdp_version: 2\n",
    BASE + "fsdp_config:  # FSDP only -> distributed_type: FSDP\n  fsdp_version: 2\n",
    BASE + "fp8_config:  # fp8 only -> mixed_precision: fp8\n  backend: TE\n",
    "compute_environment: AMAZON_SAGEMAKER  # not checked -> Accelerate\nbanana: 1\n",
    "distributed_type: MULTI_GPU\nnum_processes: 9  # 8 cuda devices -> zae launch\n",
]
# Where no line can carry a comment: the text, then line, key, problem, remedy.
ELSEWHERE = [
    ("", 1, "", "empty", "distributed_type"),
    ("# nothing\n", 1, "", "empty", "distributed_type"),
    ("- distributed_type: MULTI_GPU\n", 1, "", "list", "key: value"),
    ("MULTI_GPU\n", 1, "", "single value", "key: value"),
    (BASE + "debug: [1\n", 4, "", "no YAML", "key: value"),
    (BASE + "fsdp_config:\n\tfsdp_version: 2\n", 4, "", "no YAML", "spaces"),
    (BASE + "debug: 2026-13-45\n", 1, "", "no YAML", "key: value"),
    ("num_processes: 4\n", 1, "distributed_type", "missing", "'NO'"),
    ("distributed_type: MULTI_GPU\n", 1, "num_processes", "missing", "all machines"),
    (BASE + "num_machines: 2\nmain_process_port: 1\n", 1, "main_process_ip", "where the first one is", "address"),
    (BASE + "num_machines: 2\nmain_process_ip: a\n", 1, "main_process_port", "one port", "29500"),
]

VALID = {
    "one process": "distributed_type: 'NO'\n",
    "as accelerate config writes it": (
        "compute_environment: LOCAL_MACHINE\ndebug: false\ndistributed_type: MULTI_GPU\ndowncast_bf16: 'no'\n"
        "enable_cpu_affinity: false\ngpu_ids: all\nmachine_rank: 0\nmain_training_function: main\n"
        "mixed_precision: fp16\nnum_machines: 1\nnum_processes: 8\nrdzv_backend: static\nsame_network: true\n"
        "tpu_env: []\ntpu_use_cluster: false\ntpu_use_sudo: false\nuse_cpu: false\n"
    ),
    "chosen GPUs": BASE + "gpu_ids: 0,2,4,6\nmain_process_port: 0\n",
    "two machines": MANY + "machine_rank: 1\nrdzv_backend: static\n",
    "FSDP 2": FSDP + "  reshard_after_forward: true\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n",
    "FSDP 1": FSDP1
    + (
        "  fsdp_sharding_strategy: FULL_SHARD\n  fsdp_backward_prefetch: BACKWARD_PRE\n  fsdp_use_orig_params: true\n"
        "  fsdp_ignored_modules: lm_head\n"
    ),
    "a strategy by number": FSDP1 + "  fsdp_sharding_strategy: 1\n",
    "tensor parallel": FSDP + "parallelism_config:\n  parallelism_config_tp_size: 2\n",
    "ZeRO-2": ZERO + "  zero_stage: 2\n  gradient_accumulation_steps: auto\n  gradient_clipping: 1.0\n",
    "DeepSpeed's file": ZERO + "  deepspeed_config_file: zero3.json\n  zero3_init_flag: true\n",
    "dynamo": BASE + "dynamo_config:\n  dynamo_backend: INDUCTOR\n  mode: default\n",
    "fp8": BASE + "mixed_precision: fp8\nfp8_config:\n  backend: TE\n  fp8_format: HYBRID\n  amax_history_len: 32\n",
    "mpirun": "distributed_type: MULTI_CPU\nnum_processes: 4\nmpirun_config:\n  mpirun_hostfile: hosts\n",
    "TPU": "distributed_type: XLA\nnum_processes: 8\nmain_training_function: main\nmixed_precision: bf16\n",
    "Megatron": "distributed_type: MEGATRON_LM\nnum_processes: 4\nmegatron_lm_config:\n  megatron_lm_tp_degree: 2\n",
    "older": "distributed_type: MULTI_GPU\nnum_processes: 2\nfp16: true\ndynamo_backend: 'NO'\n",
    "nulls": BASE + "gpu_ids: null\nmain_process_ip: null\nfsdp_config: {}\n",
}


def check(tmp_path, text, machine=GPUS):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return check_config(path, machine)


def marked(text):
    """Where the comment of a case stands, its key, and its two words."""
    lines = text.splitlines()
    line = next(i for i, content in enumerate(lines) if " -> " in content)
    content, _, words = lines[line].partition("  # ")
    key = content.split(":")[0]
    section = next(above.split(":")[0] for above in reversed(lines[: line + 1]) if above[0] != " ")
    return line + 1, f"{section}.{key.strip()}" if key[0] == " " else key, *words.split(" -> ")


def assert_found(found, level, line, key, problem, remedy):
    same = [f for f in found if (f.level, f.line, f.key) == (level, line, key)]
    assert len(same) == 1, found
    assert problem in same[0].problem
    assert remedy in same[0].remedy
    assert f"line {line}: {level}: " in str(same[0])


@pytest.mark.parametrize("text", ERRORS, ids=lambda text: marked(text)[1])
def test_errors_are_found(tmp_path, text):
    assert_found(check(tmp_path, text), "error", *marked(text))


@pytest.mark.parametrize(("text", "line", "key", "problem", "remedy"), ELSEWHERE)
def test_what_is_missing_or_no_yaml_is_found(tmp_path, text, line, key, problem, remedy):
    assert_found(check(tmp_path, text), "error", line, key, problem, remedy)


@pytest.mark.parametrize("text", WARNINGS, ids=lambda text: marked(text)[1])
def test_warnings_are_found(tmp_path, text):
    found = check(tmp_path, text)
    assert_found(found, "warning", *marked(text))
    assert {f.level for f in found} == {"warning"}


@pytest.mark.parametrize("name", VALID)
def test_sound_files_have_no_findings(tmp_path, name):
    assert check(tmp_path, VALID[name]) == []


def test_findings_are_sorted_by_line(tmp_path):
    found = check(tmp_path, "num_procs: 2\ndistributed_type: DDP\nbanana: 1\ngpu_ids: 0\n")
    assert [f.line for f in found] == sorted(f.line for f in found)
    assert len(found) >= 4


def test_what_only_this_machine_cannot_do_is_a_warning(tmp_path):
    found = check(tmp_path, BASE + "mixed_precision: fp16\n", BARE)
    assert [(f.key, f.level) for f in found] == [("num_processes", "warning"), ("mixed_precision", "warning")]
    assert "no accelerator" in found[0].problem


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "multi_gpu.yaml").touch()
    with pytest.raises(ConfigError, match=r"did you mean '.*multi_gpu\.yaml'"):
        check_config(tmp_path / "multigpu.yaml")
    with pytest.raises(ConfigError, match="give the path"):
        check_config(tmp_path / "elsewhere" / "multi_gpu.yaml")


def test_keys_are_asked_of_the_installed_accelerate():
    schema = read_schema()
    assert set(schema.passed_over) == PASSED_OVER
    assert "fsdp_version" in schema.sections["fsdp_config"]


@pytest.mark.parametrize(
    "key", ["rdzv_backend", "same_network", "enable_cpu_affinity", "downcast_bf16", "tpu_use_sudo"]
)
def test_accelerate_really_passes_them_over(tmp_path, key):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    value = "c10d" if key == "rdzv_backend" else True
    path = tmp_path / "config.yaml"
    path.write_text(BASE + yaml.safe_dump({key: value}), encoding="utf-8")
    args = launch_command_parser().parse_args(["--config_file", str(path), "--num_cpu_threads_per_process=1", "x.py"])
    assert getattr(_validate_launch_command(args)[0], key) != value


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
ENDLESS = {
    "a list in itself": ("debug: &a [*a]\n", "holds itself"),
    "a section in itself": ("fsdp_config: &a\n  fsdp_version: *a\n", "holds itself"),
    "the whole in itself": ("&a\nfsdp_config:\n  inner: *a\n", "holds itself"),
    "two in each other": ("a: &a [&b [*a], *b]\n", "holds itself"),
    "a bomb": (BOMB, "holds more than 10,000 values"),
    "merged with itself": ("fsdp_config: &a\n  <<: *a\n", "holds itself"),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "fairly deep": ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
    "large": ("# " + "x" * (1 << 18), "cannot be read"),
    "no time": ("a: !!timestamp tomorrow\n", "no YAML"),
    "no number": ("a: !!float ''\n", "no YAML"),
    "no truth": ("a: !!bool perhaps\n", "no YAML"),
    "a long number": ("num_processes: " + "9" * 5000, "no YAML"),
}


@pytest.mark.parametrize(("text", "said"), ENDLESS.values(), ids=ENDLESS)
def test_what_has_no_end_or_no_sense_is_refused_in_a_sentence(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_document(tmp_path / "c.yaml")


def test_anchors_may_be_used(tmp_path):
    (tmp_path / "c.yaml").write_text(FSDP + "  backward_prefetch: &a NO_PREFETCH\nx: *a\ny: {<<: {z: 1}}\n")
    document = read_document(tmp_path / "c.yaml")
    assert (document.values["x"], document.values["y"]) == ("NO_PREFETCH", {"z": 1})


def test_a_pipe_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="no configuration"):
        read_document(tmp_path / "c.yaml")
