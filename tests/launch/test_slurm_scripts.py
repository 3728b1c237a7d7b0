"""The batch scripts of the examples, with stand-ins for srun and scontrol: what is queued again, and what is not."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.processes import ROOT, clean, finish, free_port, start

pytestmark = pytest.mark.usefixtures("starts_processes")

EXAMPLE = ROOT / "examples" / "multi_node"
SCRIPTS = ("slurm_srun.sh", "slurm_accelerate.sh")
BOTH = pytest.mark.parametrize(("script", "tasks"), [(SCRIPTS[0], 2), (SCRIPTS[1], 1)])

# Starts the command on two "machines" of this one, with SLURM's variables. As SLURM with --signal does, it tells the
# tasks and nothing that they have started: when there is a file `tell`.
SRUN = """#!/bin/sh
"exec" "{python}" "$0" "$@"  # a first line cannot name a Python in a folder with a space
import os, signal, subprocess, sys, time
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
each = int(os.environ["TASKS_PER_NODE"])
tasks = []
for task in range(2 * each):
    node, local = divmod(task, each)
    step = dict(SLURM_STEP_ID=0, SLURM_PROCID=task, SLURM_LOCALID=local, SLURM_NODEID=node, SLURM_NTASKS=2 * each)
    step["SLURM_TASKS_PER_NODE"] = f"{{each}}(x2)"
    tasks.append(subprocess.Popen(command, env=os.environ | {{k: str(v) for k, v in step.items()}}))
while any(task.poll() is None for task in tasks):
    if os.path.exists("tell"):
        os.remove("tell")
        for task in tasks:
            task.send_signal(signal.SIGUSR1)
    time.sleep(0.02)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""
SCONTROL = """#!/bin/sh
case "$1" in
    show) echo 127.0.0.1 ;;
    requeue) echo "$2" >> requeued; exit "${ANSWER:-0}" ;;
esac
"""


@pytest.fixture
def batch(tmp_path):
    """Starts a script in a folder of its own, with `srun` and `scontrol` in reach; `folder` is that folder."""

    def submit(script, srun, **env):
        for name, source in (("srun", srun), ("scontrol", SCONTROL)):
            (tmp_path / name).write_text(source)
            (tmp_path / name).chmod(0o755)
        for file in EXAMPLE.iterdir():
            if not (tmp_path / file.name).exists():
                shutil.copy(file, tmp_path)
        path = os.pathsep.join([str(tmp_path), os.path.dirname(sys.executable), os.environ["PATH"]])
        return start(["bash", script], clean(PATH=path, SLURM_JOB_ID=4711) | env, tmp_path)

    submit.folder = tmp_path
    return submit


def requeued(batch):
    file = batch.folder / "requeued"
    return file.read_text().split() if file.exists() else []


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("code", "again"), [(0, []), (1, []), (137, []), (75, ["4711"])])
def test_only_75_is_queued_again(batch, script, code, again):
    ((got, _, err),) = finish(batch(script, f"#!/bin/sh\nexit {code}\n"))
    assert (got, requeued(batch), err) == (code, again, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_refused_requeue_is_no_success(batch, script):
    ((got, _, _),) = finish(batch(script, "#!/bin/sh\nexit 75\n", ANSWER="3"))
    assert (got, requeued(batch)) == (3, ["4711"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_cancelled_job_is_not_queued_again(batch, script):
    """Tasks that are told to end exit with 75 then, too, but SLURM ends the script as well."""
    process = batch(script, "#!/bin/sh\ntouch began\nsleep 1\nexit 75\n")
    while not (batch.folder / "began").exists():
        time.sleep(0.02)
    process.terminate()
    ((got, _, _),) = finish(process)
    assert (got, requeued(batch)) == (-signal.SIGTERM, [])


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_slurm_is_asked_for(script):
    lines = (EXAMPLE / script).read_text().splitlines()
    end = lines.index("set -euo pipefail")  # SLURM reads nothing that stands behind the first command
    wanted = {"--signal=USR1@120", "--requeue", "--open-mode=append", "--nodes=2", "--time=04:00:00"}
    assert wanted <= {line.removeprefix("#SBATCH ") for line in lines[:end] if line.startswith("#SBATCH ")}
    assert subprocess.run(["bash", "-n", EXAMPLE / script]).returncode == 0


# Behaves as a training: told, it saves and exits with 75; the next time it goes on and ends well.
TRAIN = """
import os, signal, sys, time
rank = os.environ.get("RANK") or os.environ["SLURM_PROCID"]
if os.path.exists("saved" + rank):
    sys.exit(0)
def told(number, frame):
    open("saved" + rank, "w").close()
    sys.exit(75)
signal.signal(signal.SIGUSR1, told)
open("ready" + rank, "w").close()
time.sleep(60)
"""


@BOTH
def test_the_signal_reaches_every_process_and_the_job_goes_on(batch, script, tasks):
    (batch.folder / "train.py").write_text(TRAIN)
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"TASKS_PER_NODE": str(tasks), "PER_MACHINE": "2", "CUDA_VISIBLE_DEVICES": ""}
    process = batch(script, SRUN.format(python=sys.executable), **job)
    until = time.monotonic() + 60
    while len(list(batch.folder.glob("ready?"))) < 4 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    (batch.folder / "tell").touch()
    ((code, _, err),) = finish(process)
    assert (code, requeued(batch)) == (75, [job["SLURM_JOB_ID"]]), err
    assert len(list(batch.folder.glob("saved?"))) == 4
    ((code, _, err),) = finish(batch(script, SRUN.format(python=sys.executable), **job))
    assert (code, len(requeued(batch))) == (0, 1), err


@pytest.mark.slow
@BOTH
def test_the_slurm_scripts_train_one_model(batch, script, tasks):
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"TASKS_PER_NODE": str(tasks), "PER_MACHINE": "2", "CUDA_VISIBLE_DEVICES": ""}
    ((code, out, err),) = finish(batch(script, SRUN.format(python=sys.executable), **job))
    assert (code, requeued(batch)) == (0, []), err
    assert "4 processes: 1.000000, 2.000000, 3.000000, 4.000000" in out
