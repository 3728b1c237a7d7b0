"""The handshake: what a launcher says about this process, and whether Accelerate came to the same.

Accelerate trains alone, without a word, when it does not find what it expects: N processes would then be N trainings
that all think they are the first. Here both sides are compared, before the Accelerator is made and after.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from . import slurm
from .machine import cores

# The names that torch.distributed and Accelerate read.
REQUIRED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_MPI = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK"),
    "LOCAL_WORLD_SIZE": ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE"),
}

_LAST_PORT = 65535

_SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron"}  # fmt: skip  # noqa: E501

_ALONE = (
    "several processes were asked for, but this process was started alone: so does accelerate launch with --cpu or"
    " MULTI_CPU (unless it is given an mpirun_hostfile), and without --multi_gpu. Write `accelerate launch --multi_gpu"
    " --num_processes N script.py` or `torchrun --nproc-per-node N script.py`, with device='cpu' in the script for the"
    " CPU; or use --num_processes 1 (and unset MASTER_PORT, should it be set by yourself)"
)


class LaunchError(RuntimeError):
    """The processes were not started in a way that can train one model."""


@dataclass(frozen=True)
class World:
    """What the launcher says: how many processes there are, and which one this is.

    Attributes
    ----------
    size, local_size : int
        Processes in all, and on this machine.
    rank, local_rank : int
        This one's number among them, from 0.
    launched : bool
        Whether a launcher said so; without one, this is the one process.
    """

    size: int = 1
    rank: int = 0
    local_size: int = 1
    local_rank: int = 0
    launched: bool = False


def origins(env: Mapping[str, str]) -> list[str]:
    """The variables of mpirun and srun from which torch's are made."""
    names = [*(name for theirs in _MPI.values() for name in theirs), "SLURM_STEP_ID", "SLURM_PROCID"]
    return [name for name in names if name in env]


def flag(env: Mapping[str, str], name: str) -> bool:
    """Whether a variable is set to true, as Accelerate reads it."""
    return env.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")


def by_accelerate(env: Mapping[str, str]) -> bool:
    """Whether ``accelerate launch`` started this process, be it the only one."""
    return "ACCELERATE_DYNAMO_BACKEND" in env and "ACCELERATE_MIXED_PRECISION" in env


def enter(env: MutableMapping[str, str], accelerators: int, grouped: bool = False) -> World:
    """Read what the launcher says; put SLURM's and MPI's words into torch's.

    Parameters
    ----------
    env : mutable mapping
        ``os.environ``; gets the variables that torch reads, when srun or mpirun started this process.
    accelerators : int
        How many this process sees; 0 when it trains on the CPU.
    grouped : bool
        Whether torch's process group exists already, so that nobody has to be found any more.

    Raises
    ------
    LaunchError
        When variables are missing or contradict each other, or there are fewer accelerators than processes.
    """
    if "RANK" not in env and "WORLD_SIZE" not in env:
        for name, value in (slurm.variables(env, accelerators) or _mpi(env)).items():
            env.setdefault(name, value)
    world = _read(env, grouped)
    if (
        not world.launched
        and "MASTER_PORT" in env
        and {"ACCELERATE_USE_CPU", "ACCELERATE_DYNAMO_BACKEND"} <= env.keys()
    ):
        raise LaunchError(_ALONE)  # what accelerate's launcher for one process leaves behind
    if world.size > 1:
        _check_room(world, accelerators)
    return world


def _read(env: Mapping[str, str], grouped: bool) -> World:
    size = number(env, "WORLD_SIZE", 1)
    if "RANK" not in env and size <= 1:
        if env.get("LOCAL_RANK", "-1") != "-1" and not grouped:  # for which Accelerate takes it as launched
            raise LaunchError(
                f"LOCAL_RANK={env['LOCAL_RANK']} is set, as by a launcher, but not RANK; one that is gone may have left"
                " it behind: unset LOCAL_RANK"
            )
        return World()
    missing = [name for name in REQUIRED if name not in env]
    if missing and not grouped:
        raise LaunchError(
            f"a launcher started {size} processes (WORLD_SIZE={size}), but without {', '.join(missing)}; start them by"
            " `torchrun`, `accelerate launch` or `srun`, or unset WORLD_SIZE and RANK"
        )
    if not grouped and number(env, "MASTER_PORT", 0) > _LAST_PORT:
        raise LaunchError(f"MASTER_PORT={env['MASTER_PORT']} is no port; they go up to {_LAST_PORT}")
    rank = number(env, "RANK", 0)
    if not 0 <= rank < size:
        raise LaunchError(f"RANK={rank} does not fit WORLD_SIZE={size}; ranks go from 0 to {size - 1}")
    local_rank = number(env, "LOCAL_RANK", 0)
    return World(size, rank, number(env, "LOCAL_WORLD_SIZE", local_rank + 1), local_rank, True)


def number(env: Mapping[str, str], name: str, default: int) -> int:
    """A variable that has to be a whole number."""
    value = env.get(name, str(default))
    if not value.strip().isdecimal():
        raise LaunchError(f"{name}={value!r} is not a whole number; unset it, or let a launcher set it")
    return int(value)


def _mpi(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch reads, from those of mpirun; nothing when that did not start several processes."""
    found = {name: value for name, theirs in _MPI.items() for value in [_first(env, theirs)] if value is not None}
    if number(found, "WORLD_SIZE", 1) <= 1 or "RANK" not in found:
        return {}
    found.setdefault("LOCAL_WORLD_SIZE", found["WORLD_SIZE"])
    found.setdefault("LOCAL_RANK", found["RANK"])
    if found["LOCAL_WORLD_SIZE"] == found["WORLD_SIZE"]:
        found["MASTER_ADDR"] = "127.0.0.1"
    elif "MASTER_ADDR" not in env:
        raise LaunchError(
            f"mpirun started {found['WORLD_SIZE']} processes on several machines, and they have to find the first one;"
            " write `mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500 ...` with the host of rank 0"
        )
    return {"MASTER_PORT": "29500", **found}


def _first(env: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((env[name] for name in names if name in env), None)


def _check_room(world: World, accelerators: int) -> None:
    if not accelerators:
        return  # a CPU has room for any number of processes
    # Accelerate would begin again at the first one, and two processes would share it.
    if world.local_size > accelerators:
        raise LaunchError(
            f"{world.local_size} processes were started on this machine, which has {accelerators} visible accelerators;"
            f" start {accelerators}, or make more of them visible (CUDA_VISIBLE_DEVICES)"
        )
    if world.local_rank >= accelerators:
        raise LaunchError(
            f"LOCAL_RANK={world.local_rank} has no accelerator: {accelerators} visible here, numbered from 0;"
            f" start {accelerators} processes on this machine, or make more of them visible (CUDA_VISIBLE_DEVICES)"
        )


def check_choice(env: Mapping[str, str], world: World, kind: str | None, index: int | None) -> None:
    """Refuse a device that every process would take.

    Parameters
    ----------
    kind, index : str or None, int or None
        The two parts of ``device='cuda:1'``; None where nothing was asked.
    """
    if world.launched and kind not in (None, "cpu") and index not in (None, world.local_rank):
        raise LaunchError(
            f"device='{kind}:{index}' was asked for in process {world.rank} of {world.size}, whose own is"
            f" '{kind}:{world.local_rank}': a launcher gives each process its own; write device='{kind}', or None"
        )
    if world.size == 1:
        return
    if kind == "mps":
        raise LaunchError(
            f"device='mps' is only one, but {world.size} processes were started; start one, without a launcher"
        )
    if forced := env.get("ACCELERATE_TORCH_DEVICE"):
        raise LaunchError(
            f"ACCELERATE_TORCH_DEVICE={forced} would be the device of all {world.size} processes; unset it, since a"
            " launcher gives each process its own"
        )


def check_untouched(world: World, earlier: int | None) -> None:
    """Refuse when Accelerate was set up earlier in this process for another number of processes.

    Parameters
    ----------
    earlier : int or None
        The number of processes that Accelerate's state has; None when it was not set up yet.
    """
    if earlier is not None and earlier != world.size:
        raise LaunchError(
            f"{world.size} processes were started, but Accelerate was set up for {earlier} earlier in this process (or,"
            " before a fork, in the one that started it), by an Accelerator() or a PartialState(). Make the trainer"
            " first, inside the function that is launched"
        )


def check_agreement(world: World, processes: int) -> None:
    """The handshake's end: refuse unless Accelerate came to the launcher's number of processes."""
    if processes != world.size:
        raise LaunchError(
            f"{world.size} processes were started (WORLD_SIZE), but Accelerate runs {processes}: each would train by"
            " itself and think that it is the first. Start them by `accelerate launch` or `torchrun`, make the trainer"
            " before any other Accelerator, and give device=None or 'cpu'"
        )


def notices(env: Mapping[str, str], world: World, cpu: bool, asked: bool) -> list[str]:
    """What the user should know about a launch that works in another way than it was written.

    Parameters
    ----------
    cpu : bool
        Whether the processes train on the CPU.
    asked : bool
        Whether that was asked for.
    """
    if not cpu or not world.launched:
        return []
    told = []
    hidden = set(env.get("CUDA_VISIBLE_DEVICES", "").split(",")) == {"-1"}  # on purpose, as in cpu_2.yaml
    if world.size > 1 and not asked and not hidden and not flag(env, "ACCELERATE_USE_CPU"):
        told.append(
            f"there is no accelerator for several processes here, so {world.size} processes train on the CPU;"
            " device='cpu' asks for that"
        )
    told += [
        f"{name} needs an accelerator and is left out on the CPU; the gradients are averaged as without it"
        for variable, name in _SHARDED.items()
        if flag(env, variable)
    ]
    return told


def threads(env: Mapping[str, str], world: World) -> int | None:
    """How many threads a process on the CPU should have; None when that is set already, or there is only one."""
    if world.size == 1 or "OMP_NUM_THREADS" in env:
        return None
    if "SLURM_CPUS_PER_TASK" in env:
        return number(env, "SLURM_CPUS_PER_TASK", 1)
    return max(1, cores() // world.local_size)
