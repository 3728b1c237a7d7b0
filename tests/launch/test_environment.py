"""The handshake: what a launcher says, and what is refused, on paper and by real processes."""

import pytest

from tests.launch.processes import ACCELERATE, PROBE, TORCHRUN, clean, free_port, rows
from zae_engine.launch.environment import (
    LaunchError,
    World,
    check_agreement,
    check_choice,
    check_untouched,
    cores,
    enter,
    notices,
    threads,
)

TWO = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
TWO |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
SECOND_OF_TWO = World(2, 1, 2, 1, True)
LONE = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_DYNAMO_BACKEND": "no", "MASTER_PORT": "29500"}


# ---------------------------------------------------------------------- what a launcher says


@pytest.mark.parametrize("env", [{}, {"WORLD_SIZE": "1"}, {"SLURM_NTASKS": "4"}, {"MASTER_PORT": "29500"}], ids=str)
def test_without_a_launcher_there_is_one_process(env):
    assert enter(dict(env), 1) == World(1, 0, 1, 0, False)


def test_torchruns_word_is_taken():
    assert enter(dict(TWO), 0) == enter(dict(TWO), 2) == SECOND_OF_TWO
    assert enter(TWO | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, 0) == World(1, 0, 2, 0, True)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_a_launch_is_refused_by_naming_what_is_missing(name):
    env = {key: value for key, value in TWO.items() if key != name}
    with pytest.raises(
        LaunchError, match=rf"started 2 processes \(WORLD_SIZE=2\), but without {name}; start .*torchrun"
    ):
        enter(env, 0)
    assert enter(env, 0, grouped=True).size == 2  # the processes have found each other in another way


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "2"}, "RANK=2 does not fit WORLD_SIZE=2; ranks go from 0 to 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a whole number"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK='-1' is not a whole number"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT='http' is not a whole number"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536 is no port; they go up to 65535"),
    ],
)
def test_numbers_that_cannot_be_are_refused(change, message):
    with pytest.raises(LaunchError, match=message):
        enter(TWO | change, 0)


@pytest.mark.parametrize("size", [{}, {"WORLD_SIZE": "1"}])
def test_a_local_rank_alone_is_somebody_elses(size):
    with pytest.raises(LaunchError, match=r"LOCAL_RANK=5 is set, .* but not RANK; .*: unset LOCAL_RANK"):
        enter({"LOCAL_RANK": "5", **size}, 0)
    assert enter({"LOCAL_RANK": "-1", **size}, 0) == World()
    assert enter({"LOCAL_RANK": "5", **size}, 0, grouped=True) == World()


def test_one_process_of_several_that_were_asked_for_is_refused():
    with pytest.raises(LaunchError, match=r"this process was started alone.*torchrun --nproc-per-node N"):
        enter(dict(LONE), 0)
    assert enter({name: LONE[name] for name in list(LONE)[:2]}, 0) == World()  # one was asked for


MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPI |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


def test_mpiruns_word_is_put_into_torchs():
    env = dict(MPI)
    assert enter(env, 0) == SECOND_OF_TWO
    assert (env["RANK"], env["MASTER_ADDR"], env["MASTER_PORT"]) == ("1", "127.0.0.1", "29500")
    assert enter(LONE | MPI, 0) == SECOND_OF_TWO  # accelerate launch with an mpirun_hostfile
    assert enter({"PMI_RANK": "1", "PMI_SIZE": "2"}, 0) == SECOND_OF_TWO
    assert enter(MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, 0) == World()


def test_mpirun_on_several_machines_has_to_name_the_first():
    env = MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    with pytest.raises(LaunchError, match=r"mpirun -x MASTER_ADDR=HOST"):
        enter(dict(env), 0)
    assert enter(env | {"MASTER_ADDR": "node1"}, 1) == World(2, 1, 1, 0, True)


# ---------------------------------------------------------------------- what cannot be


def test_more_processes_than_accelerators_are_refused_with_both_numbers():
    with pytest.raises(
        LaunchError, match=r"2 processes were started on this machine, which has 1 visible accelerators"
    ):
        enter(dict(TWO), 1)


def test_a_process_without_an_accelerator_is_refused():
    with pytest.raises(LaunchError, match=r"LOCAL_RANK=5 has no accelerator: 2 visible here"):
        enter(TWO | {"WORLD_SIZE": "8", "LOCAL_RANK": "5"}, 2)


def test_an_index_under_a_launcher_has_to_be_the_process_own():
    for index in (None, 1):
        check_choice({}, SECOND_OF_TWO, "cuda", index)
    with pytest.raises(LaunchError, match=r"device='cuda:0' .* process 1 of 2, .* 'cuda:1'.* write device='cuda'"):
        check_choice({}, SECOND_OF_TWO, "cuda", 0)
    check_choice({}, World(), "cuda", 3)
    check_choice({}, SECOND_OF_TWO, "cpu", 0)


def test_one_device_for_all_is_refused():
    with pytest.raises(LaunchError, match=r"ACCELERATE_TORCH_DEVICE=cuda:0 would be .* all 2 processes; unset it"):
        check_choice({"ACCELERATE_TORCH_DEVICE": "cuda:0"}, SECOND_OF_TWO, None, None)
    with pytest.raises(LaunchError, match=r"device='mps' is only one, but 2 processes"):
        check_choice({}, SECOND_OF_TWO, "mps", None)
    check_choice({"ACCELERATE_TORCH_DEVICE": "cuda:0"}, World(), None, None)


def test_the_launcher_and_accelerate_have_to_agree():
    check_agreement(SECOND_OF_TWO, 2)
    check_untouched(SECOND_OF_TWO, None)
    check_untouched(SECOND_OF_TWO, 2)
    with pytest.raises(LaunchError, match=r"2 processes were started \(WORLD_SIZE\), but Accelerate runs 1"):
        check_agreement(SECOND_OF_TWO, 1)
    with pytest.raises(LaunchError, match=r"2 processes were started, but Accelerate was set up for 1 earlier"):
        check_untouched(SECOND_OF_TWO, 1)


# ---------------------------------------------------------------------- what is told, and threads


def test_only_what_was_not_asked_for_is_told():
    assert notices({}, SECOND_OF_TWO, cpu=False, asked=False) == []
    assert notices({}, World(), cpu=True, asked=False) == []
    assert notices({}, SECOND_OF_TWO, cpu=True, asked=True) == []
    assert notices({"ACCELERATE_USE_CPU": "yes"}, SECOND_OF_TWO, cpu=True, asked=False) == []
    (told,) = notices({}, SECOND_OF_TWO, cpu=True, asked=False)
    assert "2 processes train on the CPU" in told
    (told,) = notices({"ACCELERATE_USE_FSDP": "true"}, SECOND_OF_TWO, cpu=True, asked=True)
    assert told.startswith("FSDP needs an accelerator and is left out")


def test_the_cores_are_shared():
    assert threads({}, World()) is None
    assert threads({"OMP_NUM_THREADS": "3"}, SECOND_OF_TWO) is None
    assert threads({}, SECOND_OF_TWO) == max(1, cores() // 2)
    assert threads({"SLURM_CPUS_PER_TASK": "6"}, SECOND_OF_TWO) == 6


# ---------------------------------------------------------------------- real processes


def assert_together(seen, notice=""):
    assert [row["rank"] for row in seen] == [0, 1]
    assert {row["size"] for row in seen} == {2}
    assert {row["total"] for row in seen} == {3.0}
    assert notice in " ".join(seen[0]["warned"]) if notice else not seen[0]["warned"]
    assert not seen[1]["warned"]


def test_torchrun_without_an_accelerator_trains_on_the_cpu_and_says_so_once(nursery):
    done = nursery.run(*TORCHRUN, "--nproc-per-node", 2, PROBE, env=clean(CUDA_VISIBLE_DEVICES=""))
    assert done.returncode == 0, done.stderr
    assert_together(rows(done.stdout), "2 processes train on the CPU; device='cpu' asks for that")


def test_accelerate_launch_on_the_cpu_when_it_is_asked_for_needs_no_notice(nursery):
    flags = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    command = [*ACCELERATE, *flags.split(), "--main_process_port", 0, PROBE, "cpu"]
    done = nursery.run(*command, env=clean())
    assert done.returncode == 0, done.stderr
    assert_together(rows(done.stdout))


def test_accelerate_launch_that_starts_one_process_instead_of_two_is_refused(nursery):
    done = nursery.run(*ACCELERATE, "--cpu", "--num_processes", 2, "--num_machines", 1, PROBE, env=clean())
    assert done.returncode != 0, done.stderr
    assert "this process was started alone" in rows(done.stdout)[0]["refused"]


def probes(nursery, *environments):
    """What processes say that are started beside each other."""
    started = [nursery.begin(PROBE, "cpu", env=env) for env in environments]
    return rows("".join(process.wait().stdout for process in started))


def test_mpirun_joins(nursery):
    ranks = [MPI | {"OMPI_COMM_WORLD_RANK": r, "OMPI_COMM_WORLD_LOCAL_RANK": r} for r in "01"]
    env = {"MASTER_PORT": free_port(), "CUDA_VISIBLE_DEVICES": ""}
    assert_together(probes(nursery, *(clean(**rank, **env) for rank in ranks)))


EARLIER = """
from accelerate import Accelerator, debug_launcher
from tests.launch.probe import main
own = Accelerator(cpu=True)
debug_launcher(main, num_processes=2)
"""


def test_what_accelerate_was_set_up_for_before_a_fork_is_refused(nursery, tmp_path):
    done = nursery.run("-c", EARLIER, cwd=tmp_path, env=clean())
    assert done.returncode != 0
    assert all("Accelerate was set up for 1 earlier" in row["refused"] for row in rows(done.stdout))
    assert rows(done.stdout)


def test_debug_launcher_and_notebook_launcher_join(nursery, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from accelerate import debug_launcher, notebook_launcher\nfrom tests.launch.probe import main\n"
        f"debug_launcher(main, ('cpu',))\nnotebook_launcher(main, ('cpu',), 2, use_port='{free_port()}')\n"
    )
    done = nursery.run(script, env=clean())
    assert done.returncode == 0, done.stderr
    seen = rows(done.stdout)
    assert [row["rank"] for row in seen] == [0, 0, 1, 1]
    assert {row["total"] for row in seen} == {3.0}


def test_a_restart_joins_again(nursery):
    seen = []
    for attempt in range(2):  # as torchrun's agent does it; its own restarts over gloo time out now and then
        env = TWO | {"TORCHELASTIC_RESTART_COUNT": attempt, "MASTER_PORT": free_port()}
        seen.append(probes(nursery, *(clean(**env | {"RANK": rank, "LOCAL_RANK": rank}) for rank in range(2))))
    for attempt in seen:
        assert_together(attempt)
