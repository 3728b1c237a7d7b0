"""How many machines take part and which one this is, from the variables of SLURM and of torch's launcher."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from . import slurm
from .findings import ConfigError

# What torchrun takes for its own options (Kubernetes' training operator sets them), and what it tells its processes.
_TORCHRUN = ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")
_ELASTIC = ("GROUP_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Cluster:
    """The machines of a launch, as the environment has them.

    Attributes
    ----------
    source : str
        Who said so, for the user.
    machines, rank : int
        How many there are, and this one's number from 0.
    address : str or None
        Of the first machine.
    port : int or None
        To meet at.
    """

    source: str
    machines: int
    rank: int
    address: str | None = None
    port: int | None = None


def read_cluster(environ: Mapping[str, str] = os.environ) -> Cluster | None:
    """Return what the environment says about the machines; None when it says nothing.

    Raises
    ------
    ConfigError
        When SLURM has several nodes and this was not started on each of them.
    """
    if "SLURM_JOB_ID" in environ and "SLURM_JOB_NUM_NODES" in environ:
        return _read_slurm(environ)
    for source, names in (("torchrun's PET_ variables", _TORCHRUN), ("torch elastic", _ELASTIC)):
        machines, rank, address, port = (environ.get(name, "") for name in names)
        if machines.isdecimal() and (rank.isdecimal() or int(machines) == 1):
            return Cluster(source, int(machines), int(rank or 0), address or None, int(port) if port else None)
    return None


def refuse_nested(environ: Mapping[str, str] = os.environ) -> None:
    """Refuse to launch from within a launch.

    Raises
    ------
    ConfigError
        When a launcher has started this process as one of several.
    """
    command = "start `zae launch` once a machine"
    if "RANK" in environ and "LOCAL_RANK" in environ:
        raise ConfigError(
            "this process was started by a launcher already (RANK and LOCAL_RANK are set);"
            f" {command}, or give the script to that launcher"
        )
    tasks = slurm.tasks(environ)
    if tasks > 1 and slurm.per_node(environ, tasks) > 1:
        raise ConfigError(
            f"srun started {slurm.per_node(environ, tasks)} of this on the node; {command},"
            " `srun --ntasks-per-node=1 zae launch ...`, or let srun start the script itself: `srun python script.py`"
        )


def _read_slurm(environ: Mapping[str, str]) -> Cluster:
    machines = int(environ["SLURM_JOB_NUM_NODES"])
    if machines > 1 and slurm.tasks(environ) <= 1:
        raise ConfigError(
            f"SLURM has {machines} nodes for this job, and this runs on one of them only, so the others would never"
            " come; write `srun --ntasks-per-node=1 zae launch ...` in the batch script"
        )
    return Cluster(
        "SLURM",
        machines,
        int(environ.get("SLURM_NODEID", "0")),
        _first_host(environ.get("SLURM_JOB_NODELIST", "")) if machines > 1 else None,
        slurm.port(int(environ["SLURM_JOB_ID"]), 0) if machines > 1 else None,
    )


def _first_host(nodelist: str) -> str:
    if tool := shutil.which("scontrol"):
        answer = subprocess.run([tool, "show", "hostnames", nodelist], capture_output=True, text=True, timeout=30)
        if answer.returncode == 0 and answer.stdout.split():
            return answer.stdout.split()[0]
    return slurm.first_host(nodelist)
