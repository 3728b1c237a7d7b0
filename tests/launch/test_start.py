"""Accelerate's launcher in this process: exit codes, signals, ports, and how a script is started again."""

import signal
import socket

import pytest
import yaml

from tests.launch.processes import clean
from zae_engine.launch.environment import LaunchError
from zae_engine.launch.start import began_in, restart, this_command

STARTER = "import sys; from zae_engine.launch.start import start; start(sys.argv[1], sys.argv[2:])"

# No library is imported, so that the processes are there at once.
WAITING = r"""
import os, signal, sys, time
def told(number, frame):
    os.write(1, f"told {os.environ.get('RANK')} {number}\n".encode())  # in one piece
    if number != signal.SIGUSR1:
        time.sleep(0.3)  # both are told before one of them ends
        os._exit(75)
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, told)
os.write(1, b"ready\n")
time.sleep(60)
"""


def launch(nursery, folder, source, **settings):
    config, script = folder / "config.yaml", folder / "script.py"
    config.write_text(yaml.safe_dump({"compute_environment": "LOCAL_MACHINE", **settings}))
    script.write_text(source)
    return nursery.begin("-c", STARTER, config, script, "an argument", env=clean(ACCELERATE_USE_CPU="true"))


def wait_for(process, count):
    process.until(lambda: process.out.read_text() == "ready\n" * count)


TWO = {"distributed_type": "MULTI_GPU", "num_processes": 2, "mixed_precision": "no", "use_cpu": True}
ONE = {"distributed_type": "NO", "num_processes": 1, "mixed_precision": "no", "use_cpu": True}


def test_signals_go_to_the_processes_and_their_exit_code_comes_back(nursery, tmp_path):
    process = launch(nursery, tmp_path, WAITING, **TWO)
    wait_for(process, 2)
    process.send(signal.SIGUSR1)
    process.until(lambda: process.out.read_text().count("told") == 2)
    process.send(signal.SIGTERM)
    done = process.wait(30)
    told = {tuple(line.split()[1:]) for line in done.stdout.splitlines() if line.startswith("told")}
    assert told >= {(rank, str(int(number))) for rank in "01" for number in (signal.SIGUSR1, signal.SIGTERM)}
    assert done.returncode == 75
    assert "ended with exit code 75" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_process_is_told_of_ctrl_c(nursery, tmp_path):
    process = launch(nursery, tmp_path, WAITING, **ONE)
    wait_for(process, 1)
    process.send(signal.SIGINT)
    done = process.wait(30)
    assert done.returncode == 75
    assert f"told None {int(signal.SIGINT)}" in done.stdout


FAILING = """
import os, signal, sys
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
print(sys.argv[1], os.environ["MASTER_PORT"], flush=True)
"""


def test_a_killed_process_is_told_and_a_taken_port_is_avoided(nursery, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = launch(nursery, tmp_path, FAILING, main_process_port=port, **TWO).wait()
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr == "zae-engine: process 1 ended with SIGKILL, and the others with it\n"
    if done.stdout:  # it may have been stopped before
        assert done.stdout.startswith("an argument")
        assert str(port) not in done.stdout


# ---------------------------------------------------------------------- a script is started again


def test_a_command_is_told_as_it_was():
    words = ["python", "-W", "error", "-m", "some.module", "--n", "a b"]
    assert this_command(words, "/x/some/module.py", "/bin/python3") == ["/bin/python3", *words[1:]]


@pytest.mark.parametrize(
    ("words", "how"), [(["python", "-c", "print()"], "python -c"), (["python", "-"], "standard input")]
)
def test_what_is_no_file_is_refused(words, how):
    with pytest.raises(LaunchError, match=rf"this came from {how}; write it into a file and run `python FILE`"):
        this_command(words, None, "python")
    with pytest.raises(LaunchError, match=f"this came from {how}"):
        this_command(words, "<stdin>", "python")


@pytest.mark.parametrize(
    ("words", "file", "folder"),
    [
        (["python", "-u", "sub/x.py", "a"], "/home/me/sub/x.py", "/home/me/"),
        (["python", "./x.py"], "/home/me/x.py", "/home/me/"),
        (["python", "/home/x.py"], "/home/x.py", None),
        (["python", "-m", "pkg"], "/home/pkg/__main__.py", None),
    ],
)
def test_the_folder_that_a_script_was_called_in_is_known(words, file, folder):
    assert began_in(words, file) == folder


def test_what_runs_within_something_else_is_not_started_again():
    with pytest.raises(LaunchError, match=r"start the main script once more .* and this is not it"):
        restart({}, {})


def test_nothing_is_started_twice(monkeypatch):
    monkeypatch.setenv("ZAE_ENGINE_RESTARTED", "1")
    with pytest.raises(LaunchError, match="was started for several devices already"):
        restart({}, {})
