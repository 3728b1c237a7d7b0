"""From SLURM's variables to those that torch reads, so that ``srun python script.py`` needs no launcher."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Steps from here on are no srun of the user's: the batch script, an interactive shell, what SLURM runs for itself.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0

# Either of these says that SLURM gives each task accelerators of its own.
_BOUND = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND", "SLURM_STEP_GPU_BIND")


def variables(env: Mapping[str, str], accelerators: int) -> dict[str, str]:
    """Return RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT for a task of srun.

    Nothing is returned where srun did not start several tasks: in the script of sbatch, in the shell of salloc.

    Parameters
    ----------
    env : mapping
        ``os.environ``. Read are SLURM_STEP_ID, SLURM_PROCID, SLURM_LOCALID, SLURM_NODEID, SLURM_JOB_ID, and, of the
        step before the job, NUM_TASKS (NTASKS), TASKS_PER_NODE and NODELIST.
    accelerators : int
        How many this process sees; a task that SLURM shows just its own one is the first on it.
    """
    size = tasks(env)
    if size <= 1:
        return {}
    local_size = per_node(env, size)
    local_rank = env.get("SLURM_LOCALID", "0")
    if accelerators == 1 and local_size > 1 and any(name in env for name in _BOUND):
        local_size, local_rank = 1, "0"  # each of them is 'cuda:0' in the eyes of its task
    alone = per_node(env, size) == size
    return {
        "RANK": env["SLURM_PROCID"],
        "LOCAL_RANK": local_rank,
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": "127.0.0.1" if alone else first_host(_of_step(env, "NODELIST") or env["SLURM_JOB_NODELIST"]),
        "MASTER_PORT": str(port(int(env.get("SLURM_JOB_ID", "0")), int(env["SLURM_STEP_ID"]))),
    }


def tasks(env: Mapping[str, str]) -> int:
    """How many tasks srun has started with this one; 1 when this is no task of srun."""
    step = env.get("SLURM_STEP_ID", "")
    started = step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP and "SLURM_PROCID" in env
    if not started or "SLURM_PTY_PORT" in env:  # srun --pty is a shell, in which python is started by hand
        return 1
    return int(_of_step(env, "NUM_TASKS") or env.get("SLURM_NTASKS", "1"))


def per_node(env: Mapping[str, str], size: int) -> int:
    """How many of the tasks run on this machine, from SLURM's short form, ``'4(x2),3'`` say."""
    counts = list[int]()
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", _of_step(env, "TASKS_PER_NODE")):
        counts += [int(count)] * int(times or 1)
    node = int(env.get("SLURM_NODEID", "0"))
    if node < len(counts):
        return counts[node]
    return int(env.get("SLURM_NTASKS_PER_NODE", size))


def first_host(nodelist: str) -> str:
    """The first name in SLURM's short form: ``'gpu[003-005,9],login1'`` gives ``'gpu003'``."""
    first = re.match(r"(?:\[[^]]*\]|[^,[])+", nodelist)
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first.group() if first else nodelist)


def port(job: int, step: int) -> int:
    """A port that all tasks of a step agree on and other steps hardly use, below those that a system gives away."""
    return 20000 + (job * 17 + step) % 10000


def _of_step(env: Mapping[str, str], name: str) -> str:
    return env.get(f"SLURM_STEP_{name}") or env.get(f"SLURM_{name}", "")
