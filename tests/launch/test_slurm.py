"""srun: SLURM's variables become torch's, and nothing else is mistaken for it."""

import pytest

from tests.launch.processes import PROBE, clean, rows
from zae_engine.launch import slurm

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "6",
    "SLURM_TASKS_PER_NODE": "4,2",
    "SLURM_JOB_NODELIST": "gpu[003,007]",
}


def test_a_task_of_srun_gets_torchs_variables():
    assert slurm.variables(STEP, 0) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "6",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu003",
        "MASTER_PORT": str(slurm.port(4711, 0)),
    }


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_STEP_ID": ""},
        {"SLURM_STEP_ID": "4294967291"},  # the batch script
        {"SLURM_STEP_ID": "4294967290"},  # the shell that salloc opens on a node
        {"SLURM_PTY_PORT": "40001"},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "1"},
    ],
    ids=str,
)
def test_sbatch_salloc_and_one_task_are_not_taken_for_several(change):
    assert slurm.variables(STEP | change, 0) == {}


def test_the_step_counts_more_than_the_job():
    step = STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "b2,b4"}
    found = slurm.variables(step, 0)
    assert (found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"], found["MASTER_ADDR"]) == ("2", "1", "b2")


def test_tasks_that_see_only_their_own_accelerator_are_the_first_on_it():
    bound = STEP | {"SLURM_GPUS_PER_TASK": "1"}
    found = slurm.variables(bound, 1)
    assert (found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"], found["RANK"]) == ("0", "1", "5")
    for env, accelerators in ((bound, 2), (STEP, 1)):
        assert slurm.variables(env, accelerators)["LOCAL_RANK"] == "1"


@pytest.mark.parametrize(
    ("short", "node", "count"),
    [("4", 0, 4), ("2(x3)", 2, 2), ("2(x3),1", 3, 1), ("3,2(x2)", 0, 3), ("3,2(x2)", 2, 2)],
)
def test_tasks_per_node_are_read(short, node, count):
    assert slurm.per_node({"SLURM_TASKS_PER_NODE": short, "SLURM_NODEID": str(node)}, 9) == count


def test_tasks_per_node_may_be_told_otherwise():
    assert slurm.per_node({"SLURM_NTASKS_PER_NODE": "3"}, 9) == 3
    assert slurm.per_node({}, 9) == 9


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("localhost", "localhost"),
        ("a1,a2", "a1"),
        ("gpu[003-005,9],login1", "gpu003"),
        ("rack[1-2]n[04-05]", "rack1n04"),
        ("node-[7]", "node-7"),
        ("b[2,5].cluster.org,c1", "b2.cluster.org"),
    ],
)
def test_the_first_host_is_found(nodes, first):
    assert slurm.first_host(nodes) == first


def test_ports_differ_between_steps_and_jobs():
    ports = {slurm.port(job, step) for job in range(100, 150) for step in range(10)}
    assert len(ports) == 500
    assert min(ports) >= 20000
    assert max(ports) < 32768


def test_srun_joins_its_tasks(nursery):
    step = {"SLURM_JOB_ID": 815, "SLURM_STEP_ID": 3, "SLURM_NTASKS": 2, "SLURM_JOB_NODELIST": "somewhere"}
    step |= {"SLURM_TASKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": 3, "CUDA_VISIBLE_DEVICES": ""}
    tasks = [clean(**step, SLURM_PROCID=task, SLURM_LOCALID=task, SLURM_NODEID=0) for task in range(2)]
    for env in tasks:
        del env["OMP_NUM_THREADS"]
    done = [process.wait() for process in [nursery.begin(PROBE, "cpu", env=env) for env in tasks]]
    assert [one.returncode for one in done] == [0, 0], done
    seen = rows(done[0].stdout + done[1].stdout)
    assert [(row["rank"], row["local"], row["size"], row["total"]) for row in seen] == [(0, 0, 2, 3.0), (1, 1, 2, 3.0)]
    assert [(row["threads"], row["warned"]) for row in seen] == [(3, []), (3, [])]
