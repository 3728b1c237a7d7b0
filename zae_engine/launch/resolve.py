"""Fits a configuration to a machine, without a change to what is trained.

The loader's batch is the global batch, so the number of processes does not matter to the result. The precision does:
a change of it is told as such.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .check import check_document
from .cluster import Cluster, read_cluster
from .findings import ConfigError
from .key_combinations import SHARDED, hides_gpus, starts_many
from .machine import Machine, this_machine
from .yaml_file import Document, read_document

# What to train in where a precision is not there: the next one of the same range, or a wider one.
_INSTEAD = {"fp8": ("bf16", "fp16", "no"), "bf16": ("fp16", "no"), "fp16": ("no",)}
_OF_DEEPSPEED = ("gradient_clipping", "deepspeed_config_file")


@dataclass
class Resolved:
    """A configuration that fits.

    Attributes
    ----------
    config : dict
        The keys and values for Accelerate.
    changes : list of str
        What was changed, and why: one sentence each.
    """

    config: dict[str, Any]
    changes: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any, why: str) -> None:
        """Change one key, or take it out with None, and note it."""
        before = self.config.get(key)
        if (before == value and key in self.config) or (value is None and before is None):
            return
        if value is None:
            self.config.pop(key)
            self.changes.append(f"{key}: {_show(before)} -> left out ({why})")
        else:
            self.config[key] = value
            old = f"{_show(before)} -> " if before is not None else ""
            self.changes.append(f"{key}: {old}{_show(value)} ({why})")


def resolve_config(
    path: str | Path, machine: Machine | None = None, environ: Mapping[str, str] = os.environ
) -> Resolved:
    """Fit a configuration to a machine.

    Parameters
    ----------
    path : str or Path
        A YAML file.
    machine : Machine, optional
        This one by default.
    environ : mapping
        Where the variables of SLURM and torch's launcher are looked up.

    Raises
    ------
    ConfigError
        When the file has errors, or asks for what this machine cannot give without training something else.
    """
    return resolve_document(read_document(path), machine or this_machine(), environ, str(path))


def resolve_document(
    document: Document, machine: Machine, environ: Mapping[str, str] = os.environ, name: str = "the configuration"
) -> Resolved:
    """Fit what was read to a machine; see `resolve_config`."""
    cluster = read_cluster(environ)
    found = [f for f in check_document(document, machine) if f.level == "error"]
    told = ("main_process_ip", "main_process_port") if cluster and cluster.address else ()
    errors = [f for f in found if f.key not in told or document.values.get(f.key) is not None]
    if errors:
        raise ConfigError(f"{name} has errors", errors)
    unsaid = [key for key in ("num_processes", "num_machines") if document.values.get(key) is None]  # "num_machines:"
    resolved = Resolved({key: value for key, value in copy.deepcopy(document.values).items() if key not in unsaid})
    if resolved.config.pop("fp16", False) is True:  # as older versions of Accelerate wrote it
        resolved.config.setdefault("mixed_precision", "fp16")
    if document.values.get("compute_environment") == "AMAZON_SAGEMAKER":
        return resolved
    if cluster:
        _fit_cluster(resolved, cluster)
    if resolved.config["distributed_type"] != "XLA" and not resolved.config.get("mpirun_config"):
        _fit_devices(resolved, machine)
        _fit_precision(resolved, machine)
    _fit_port(resolved)
    return resolved


def machine_config(machine: Machine, processes: int | None = None) -> dict[str, Any]:
    """Return the configuration of a machine by itself: all its accelerators, or one CPU process.

    Parameters
    ----------
    processes : int, optional
        How many processes there shall be instead.
    """
    count = processes or max(len(machine.visible), 1)
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": machine.several if count > 1 else "NO",
        "use_cpu": not machine.visible,
        "num_processes": count,
        "num_machines": 1,
        "machine_rank": 0,
        "mixed_precision": "no",
    }


def override(document: Document, options: Mapping[str, Any]) -> None:
    """Put options of the command line in the place of what the file says.

    Parameters
    ----------
    options : mapping of str to object
        By the names of the keys; None is not given.
    """
    given = {key: value for key, value in options.items() if value is not None}
    document.values.update(given)
    kind = document.values.get("distributed_type")
    if kind == "MULTI_CPU":
        document.values.setdefault("use_cpu", True)
    if given.get("num_processes", 1) > 1 and kind in ("NO", "MULTI_CPU"):
        document.values["distributed_type"] = "MULTI_GPU"  # the only way in which Accelerate starts several


def uses_cpu(config: Mapping[str, Any]) -> bool:
    """Whether processes of this configuration have to be told to use the CPU, which Accelerate forgets."""
    return config.get("use_cpu") is True and starts_many(str(config.get("distributed_type")))


def write_config(config: Mapping[str, Any], path: str | Path) -> None:
    """Write a configuration as plain YAML that `accelerate launch --config_file` accepts."""
    Path(path).write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return f"its {len(value)} keys"
    return value if isinstance(value, str) else yaml.safe_dump(value).split("\n")[0]


def _fit_cluster(resolved: Resolved, cluster: Cluster) -> None:
    config, why = resolved.config, f"of {cluster.source}"
    local = max(config.get("num_processes", 1) // max(config.get("num_machines", 1), 1), 1)
    resolved.set("num_machines", cluster.machines, why)
    resolved.set("machine_rank", cluster.rank, why)
    resolved.set("num_processes", local * cluster.machines, f"{local} a machine, as before")
    if cluster.machines > 1:
        if config["distributed_type"] == "NO":
            resolved.set("distributed_type", "MULTI_GPU", "several machines")
        _fit_address(resolved, cluster, why)


def _fit_address(resolved: Resolved, cluster: Cluster, why: str) -> None:
    config = resolved.config
    if cluster.address:
        resolved.set("main_process_ip", cluster.address, why)
    elif not config.get("main_process_ip"):
        raise ConfigError(
            f"{cluster.source} says that there are {cluster.machines} machines, but not where the first one is;"
            " write main_process_ip in the file, or give --main_process_ip"
        )
    if cluster.port and cluster.source != "SLURM":
        resolved.set("main_process_port", cluster.port, why)
    elif not config.get("main_process_port"):  # 0, any free one, is for one machine only
        resolved.set("main_process_port", cluster.port or 29500, "one port for all machines")


def _fit_port(resolved: Resolved) -> None:
    config = resolved.config
    kind = config["distributed_type"]
    alone = config.get("num_machines", 1) == 1 and starts_many(kind) and kind != "XLA"
    if alone and config.get("main_process_port") is None:
        resolved.set("main_process_port", 0, "any free port, so that two trainings do not meet")


def _fit_devices(resolved: Resolved, machine: Machine) -> None:
    config = resolved.config
    if config.get("use_cpu") is True or config["distributed_type"] == "MULTI_CPU" or not machine.visible:
        _fit_cpu(resolved, machine)
    else:
        _fit_accelerators(resolved, machine)
    one = config.get("num_processes", 1) == 1 and config.get("num_machines", 1) == 1
    if one and config["distributed_type"].startswith("MULTI_"):
        resolved.set("distributed_type", "NO", "one process")


def _fit_cpu(resolved: Resolved, machine: Machine) -> None:
    config = resolved.config
    kind = config["distributed_type"]
    asked = config.get("use_cpu") is True or kind == "MULTI_CPU"
    why = "asked for" if asked else "no accelerator to use here"
    if kind in SHARDED:
        _unshard(resolved, kind)
    elif kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        resolved.set("distributed_type", "MULTI_GPU", f"{why}; several CPU processes are started in this way")
    resolved.set("use_cpu", True, why)
    if not hides_gpus(Document(config)):
        resolved.set("gpu_ids", None, why)
    machines = config.get("num_machines", 1)
    most = max(machine.cores, 2)  # two, so that what is written for several processes is tried as such
    if not asked and config.get("num_processes", 1) > most * machines:
        resolved.set("num_processes", most * machines, f"{machine.cores} CPU cores; the result is the same")


def _unshard(resolved: Resolved, kind: str) -> None:
    """FSDP and ZeRO divide the weights and change no arithmetic; what else their sections ask for would be lost."""
    section = f"{kind.lower()}_config"
    values = resolved.config.get(section) or {}
    lost = [key for key in _OF_DEEPSPEED if kind == "DEEPSPEED" and values.get(key) not in (None, "none", "auto")]
    if kind == "MEGATRON_LM" or lost:
        what = f" and its {' and '.join(lost)}" if lost else ""
        raise ConfigError(
            f"there is no accelerator to use here, and without one no {kind}{what}: something else would be trained;"
            " run it where there is one, or write the clipping into the trainer (gradient_clip=) and take it out here"
        )
    why = f"there is no {kind} without an accelerator; each CPU process has the whole model, and the result is the same"
    resolved.set("distributed_type", "MULTI_GPU", why)
    resolved.set(section, None, why)
    resolved.set("parallelism_config", None, why)


def _fit_accelerators(resolved: Resolved, machine: Machine) -> None:
    config, machines = resolved.config, resolved.config.get("num_machines", 1)
    if machine.kind == "mps" and config["distributed_type"] != "NO":
        resolved.set("distributed_type", "NO", "mps is one device")
    local = config.get("num_processes", 1) // machines
    room = list(machine.visible)
    if isinstance(config.get("gpu_ids"), str) and config["gpu_ids"] != "all":
        room = _map_ids([i.strip() for i in config["gpu_ids"].split(",")], machine.visible)
        why = f"within the visible ones ({', '.join(machine.visible)}), which Accelerate would leave"
        resolved.set("gpu_ids", ",".join(room), why)
    if local > len(room):
        each = ", and as many on each of the other machines" if machines > 1 else ""
        why = f"{len(room)} visible here{each}; the result is the same"
        resolved.set("num_processes", len(room) * machines, why)


def _map_ids(ids: list[str], visible: tuple[str, ...]) -> list[str]:
    """Return devices among the visible ones: those named, else those at these places, else as many as there are."""
    if set(ids) <= set(visible):
        return ids
    if all(i.isdecimal() and int(i) < len(visible) for i in ids):
        return [visible[int(i)] for i in ids]
    return list(visible[: len(ids)])


def _fit_precision(resolved: Resolved, machine: Machine) -> None:
    asked = resolved.config.get("mixed_precision")
    there = ("no", "bf16") if resolved.config.get("use_cpu") is True else machine.precisions
    if not isinstance(asked, str) or asked.lower() in there:
        return
    instead = next(p for p in _INSTEAD[asked.lower()] if p in there)
    shown = "no (fp32)" if instead == "no" else instead
    resolved.config["mixed_precision"] = instead
    resolved.changes.append(
        f"PRECISION mixed_precision: {asked} -> {shown} (the devices here do not compute in {asked};"
        " this changes the numbers that are trained)"
    )
