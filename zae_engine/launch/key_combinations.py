"""Combinations of keys that Accelerate crashes on, or launches otherwise than they say."""

from __future__ import annotations

from collections.abc import Iterator

from .findings import Finding
from .machine import Machine
from .yaml_file import Document

# What Accelerate starts through torch's elastic launcher, and with it without ACCELERATE_USE_CPU.
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
_OWNER = {
    "fsdp_config": "FSDP",
    "deepspeed_config": "DEEPSPEED",
    "megatron_lm_config": "MEGATRON_LM",
    "mpirun_config": "MULTI_CPU",
}
# FullyShardedDataParallelPlugin.__post_init__ of Accelerate: what it drops, or refuses, under version 2.
_ONLY_V1 = {
    "fsdp_sharding_strategy": "write fsdp_reshard_after_forward: true (for FULL_SHARD) or false (for SHARD_GRAD_OP)",
    "fsdp_backward_prefetch": "take it out",
    "fsdp_forward_prefetch": "take it out",
    "fsdp_use_orig_params": "take it out",
    "fsdp_sync_module_states": "take it out",
}
# DeepSpeedPlugin._deepspeed_config_checks of Accelerate.
_IN_THE_FILE = (
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_stage",
    "offload_optimizer_device",
    "offload_param_device",
    "offload_param_nvme_path",
    "offload_optimizer_nvme_path",
    "zero3_save_16bit_model",
)


def whole(document: Document, key: str, default: int) -> int:
    """Return a number of the file; the default where it is missing or no number."""
    value = document.values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def kind_of(document: Document) -> str:
    """Return the distributed_type as a text, also where it was written without quotes."""
    value = document.values.get("distributed_type")
    return "NO" if value is False else str(value or "")


def starts_many(kind: str) -> bool:
    """Whether Accelerate starts several processes of this distributed_type by itself."""
    return kind in SHARDED or kind == "XLA" or (kind.startswith("MULTI_") and kind != "MULTI_CPU")


def hides_gpus(document: Document) -> bool:
    """Whether ``gpu_ids`` names no GPU: Accelerate hands it on as CUDA_VISIBLE_DEVICES, where -1 is none."""
    ids = document.values.get("gpu_ids")
    return isinstance(ids, str) and {name.strip() for name in ids.split(",")} == {"-1"}


def check_required(document: Document) -> Iterator[Finding]:
    """Find what is missing: Accelerate has no default for it."""
    if document.values.get("distributed_type") is None:
        yield document.error(
            "distributed_type",
            "the key is missing",
            "write distributed_type: 'NO' for one process, MULTI_GPU for several",
        )
    elif kind_of(document) != "NO" and document.values.get("num_processes") is None:
        yield document.error(
            "num_processes", "the key is missing", "write how many processes there are on all machines together"
        )


def check_counts(document: Document) -> Iterator[Finding]:
    """Find numbers of processes and machines that do not go together."""
    processes, machines = whole(document, "num_processes", 1), whole(document, "num_machines", 1)
    rank = whole(document, "machine_rank", 0)
    if processes < 1:
        yield document.error("num_processes", f"{processes} processes train nothing", "write 1 or more")
    if machines < 1:
        yield document.error("num_machines", f"there are not {machines} machines", "write 1 or more")
    elif processes >= 1 and processes % machines:
        yield document.error(
            "num_processes",
            f"{processes} processes do not divide among {machines} machines",
            f"write a multiple of {machines}: it counts the processes of all machines",
        )
    if machines >= 1 and not 0 <= rank < machines:
        yield document.error(
            "machine_rank", f"there is no machine {rank} of {machines}", f"count from 0 to {machines - 1}"
        )


def check_address(document: Document) -> Iterator[Finding]:
    """Find several machines that would not meet, and ports that are none."""
    port = whole(document, "main_process_port", 0)
    if not 0 <= port < 65536:
        yield document.error("main_process_port", f"{port} is not a port", "write one from 1 to 65535, or 0 for any")
    if whole(document, "num_machines", 1) <= 1:
        return
    if not document.values.get("main_process_ip"):
        yield document.error(
            "main_process_ip", "several machines need to know where the first one is", "write the first one's address"
        )
    if not port:
        yield document.error(
            "main_process_port", "several machines need one port to meet at", "write a free one, such as 29500"
        )


def check_single(document: Document) -> Iterator[Finding]:
    """Find several processes of which Accelerate starts one, without a word."""
    kind, processes = kind_of(document), whole(document, "num_processes", 1)
    hostfile = document.section("mpirun_config").get("mpirun_hostfile")
    if processes > 1 and (kind == "NO" or (kind == "MULTI_CPU" and not hostfile)):
        also = "" if kind == "NO" else ", or give mpirun_config: mpirun_hostfile"
        yield document.error(
            "num_processes",
            f"with distributed_type {kind} Accelerate starts one process, not {processes}",
            f"write distributed_type: MULTI_GPU (with use_cpu: true for CPU processes){also}",
        )


def check_cpu(document: Document) -> Iterator[Finding]:
    """Find what is not possible on the CPU, or does not arrive there."""
    kind, precision = kind_of(document), document.values.get("mixed_precision")
    on_cpu = document.values.get("use_cpu") is True or kind == "MULTI_CPU"
    if on_cpu and precision in ("fp16", "fp8"):
        yield document.error(
            "mixed_precision",
            f"there is no {precision} on the CPU: Accelerate trains in fp32 or stops",
            "write bf16, or 'no' for fp32",
        )
    if not on_cpu:
        return
    if kind in SHARDED:
        yield document.error(
            "use_cpu",
            f"there is no {kind} on the CPU: Accelerate passes over one of the two",
            "take use_cpu out; or write distributed_type: MULTI_GPU, where each CPU process has the whole model",
        )
    elif starts_many(kind) and not hides_gpus(document):
        yield document.warning(
            "use_cpu",
            f"`accelerate launch` does not tell {kind} processes to use the CPU",
            "start it by `zae launch`, which does; or add gpu_ids: '-1,-1', which hides GPUs; or export"
            " ACCELERATE_USE_CPU=true; a Trainer also uses the CPU where there is no accelerator",
        )


def check_gpu_ids(document: Document) -> Iterator[Finding]:
    """Find lists of GPUs that do not fit the number of processes."""
    ids = document.values.get("gpu_ids")
    if not isinstance(ids, str) or ids == "all" or (hides_gpus(document) and document.values.get("use_cpu") is True):
        return
    names = [name.strip() for name in ids.split(",")]
    machines = max(whole(document, "num_machines", 1), 1)
    local = whole(document, "num_processes", 1) // machines
    kind = kind_of(document)
    if not all(names) or len(set(names)) < len(names):
        yield document.error("gpu_ids", f"{ids!r} names a GPU twice, or none", "name each one once, as '0,1'")
    elif len(names) == 1 and machines == 1 and kind.startswith("MULTI_") and starts_many(kind):
        yield document.error(
            "gpu_ids",
            "Accelerate refuses one GPU for several processes",
            "name more, or write distributed_type: 'NO' and num_processes: 1",
        )
    elif local > len(names):
        yield document.error(
            "num_processes",
            f"{local} processes a machine share {len(names)} GPUs, and Accelerate does not notice",
            f"write num_processes: {len(names) * machines}, or name {local} GPUs in gpu_ids",
        )


def check_fsdp(document: Document) -> Iterator[Finding]:
    """Find keys of FSDP's version 1 under version 2, and the other way round."""
    values = document.section("fsdp_config")
    full = {key if str(key).startswith("fsdp_") else f"fsdp_{key}": key for key in values}
    version = str(values.get(full.get("fsdp_version", ""), 1))
    for name, key in full.items():
        if version == "2" and name in _ONLY_V1 and values[key] is not None:
            problem = "fsdp_version 2 has no such option and passes over it"
            yield document.warning(("fsdp_config", str(key)), problem, _ONLY_V1[name])
        if version == "1" and name == "fsdp_reshard_after_forward" and isinstance(values[key], bool):
            problem = "true and false are for fsdp_version 2; version 1 goes by fsdp_sharding_strategy"
            yield document.warning(("fsdp_config", str(key)), problem, "write fsdp_version: 2, or take it out")


def check_deepspeed(document: Document) -> Iterator[Finding]:
    """Find settings that stand in DeepSpeed's own file too."""
    values = document.section("deepspeed_config")
    if not values.get("deepspeed_config_file"):
        return
    twice = [("deepspeed_config", key) for key in _IN_THE_FILE if values.get(key) is not None]
    if document.values.get("mixed_precision") is not None and kind_of(document) == "DEEPSPEED":
        twice.append(("mixed_precision",))  # type: ignore[arg-type]  # a key of the top level
    for path in twice:
        yield document.error(
            path,
            "with deepspeed_config_file Accelerate refuses it here",
            "take it out and write it in that file",
        )


def check_sections(document: Document) -> Iterator[Finding]:
    """Find sections of another distributed_type, which Accelerate passes over."""
    kind = kind_of(document)
    for section, owner in _OWNER.items():
        if document.section(section) and kind and kind != owner:
            yield document.warning(
                section,
                f"it is read with distributed_type {owner} only, and this is {kind}",
                f"write distributed_type: {owner}, or take the section out",
            )
    if document.section("fp8_config") and document.values.get("mixed_precision") != "fp8":
        yield document.warning(
            "fp8_config", "it is read with mixed_precision fp8 only", "write mixed_precision: fp8, or take it out"
        )


def check_machine(document: Document, machine: Machine) -> Iterator[Finding]:
    """Find what this machine cannot do; another one may."""
    local = whole(document, "num_processes", 1) // max(whole(document, "num_machines", 1), 1)
    on_cpu = document.values.get("use_cpu") is True or kind_of(document) in ("MULTI_CPU", "NO", "XLA")
    fits = "`zae config resolve` or `zae launch` fits the file to this machine"
    if not on_cpu and local > len(machine.visible):
        wanted = f"{local} process{'es' * (local > 1)} a machine, and here there is {machine.describe()}"
        yield document.warning("num_processes", wanted, fits)
    precision = document.values.get("mixed_precision")
    if isinstance(precision, str) and precision not in machine.precisions and not document.values.get("use_cpu"):
        yield document.warning("mixed_precision", f"not every device here computes in {precision}", fits)


RULES = (
    check_required,
    check_counts,
    check_address,
    check_single,
    check_cpu,
    check_gpu_ids,
    check_fsdp,
    check_deepspeed,
    check_sections,
)
