"""Start a script on several processes by Accelerate's own launcher, from outside or from the script itself."""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .environment import LaunchError
from .resolve import write_config

# In the environment of what `restart` starts, so that no worker ever starts workers.
MARK = "ZAE_ENGINE_RESTARTED"

_PASSED_ON = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
_AGAIN = "import sys; sys.path.append(sys.argv[1]); from zae_engine.launch.start import _start_again; _start_again()"


def start(config_file: str, command: Sequence[str], module: bool = False, python: bool = True) -> NoReturn:
    """Run a script as an Accelerate configuration says, and exit as its processes did.

    Accelerate's launcher runs in this process. SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are passed on to the processes,
    which decide what to do; this one waits for them.

    Parameters
    ----------
    config_file : str
        A YAML file that ``accelerate launch --config_file`` takes.
    command : sequence of str
        The script and its arguments.
    module : bool
        The script is a module's name, as after ``python -m``.
    python : bool
        False runs the command as it is, not by this Python.

    Raises
    ------
    SystemExit
        Always: 0 when all went well, else the code of the process that failed first, 128 + n for signal n.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser

    flags = [] if python else ["--no_python"]
    flags += ["--module"] if module else []
    arguments = ["--config_file", str(config_file), *_port(str(config_file)), *flags, *map(str, command)]
    with _passing_on():
        code = _code_of(launch_command, launch_command_parser().parse_args(arguments))
    raise SystemExit(code)


def _port(config_file: str) -> list[str]:
    """A free port, where the configuration names none or one that is taken, and all processes are on this machine."""
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(config_file)
    one_machine = isinstance(config, ClusterConfig) and config.num_machines == 1
    # The launcher for one process would export the 0 as it is, for mpirun.
    if not one_machine or config.distributed_type in ("NO", "MULTI_CPU", "XLA"):
        return []
    return ["--main_process_port", "0"] if not config.main_process_port or _taken(config.main_process_port) else []


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _code_of(launch: Any, arguments: Any) -> int:
    """Launch, and return the exit code; the processes have told their errors already, so the launcher's stay untold."""
    from subprocess import CalledProcessError

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _tell(f"process {rank}", failure.exitcode)
    except CalledProcessError as error:
        return _tell("the process", error.returncode)
    except SignalException as error:  # those that torch passes on by itself
        return 128 + int(error.sigval)
    return 0


def _tell(who: str, code: int) -> int:
    how = f"exit code {code}"
    if code < 0:
        how, code = signal.Signals(-code).name, 128 - code
    print(f"zae-engine: {who} ended with {how}, and the others with it", file=sys.stderr)
    return code


@contextmanager
def _passing_on() -> Iterator[None]:
    """Pass signals on to the processes that are started meanwhile."""
    import psutil  # type: ignore[import-untyped]  # comes with Accelerate

    me = psutil.Process()
    before = {child.pid for child in me.children()}

    def pass_on(number: int, _: FrameType | None) -> None:
        workers = [child for child in me.children() if child.pid not in before]
        for worker in workers:
            # Ctrl-C has reached those that share the terminal's foreground with this process.
            if number != signal.SIGINT or os.getpgid(worker.pid) != os.getpgrp() or not sys.stdin.isatty():
                worker.send_signal(number)
        if not workers:
            raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in _PASSED_ON if hasattr(signal, name)]
    handlers = {number: signal.signal(number, pass_on) for number in numbers}
    # torch's launcher would give its workers 30 seconds, and tell only that it got a signal; older ones do so anyway.
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGHUP,SIGQUIT")
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------- from within a script


def interactive() -> bool:
    """Whether this is a session (Jupyter, IPython, ``python``, ``python -i``), and no script."""
    shell = sys.modules.get("IPython")
    running = shell is not None and shell.get_ipython() is not None
    return running or hasattr(sys, "ps1") or bool(sys.flags.interactive)


def this_command(words: Sequence[str], file: str | None, executable: str) -> list[str]:
    """How this process was started, so that it can be started again.

    Parameters
    ----------
    words : sequence of str
        ``sys.orig_argv``: with the interpreter's options, ``-m`` and the script's arguments.
    file : str or None
        ``__main__.__file__``; there is none under ``python -c`` and when the program comes from standard input.
    executable : str
        ``sys.executable``.

    Raises
    ------
    LaunchError
        When there is no file that could be run again.
    """
    if file is None or file.startswith("<"):
        how = "python -c" if "-c" in words else "standard input"
        raise LaunchError(
            f"several devices need a script that can be started once more in each process, but this came from {how};"
            " write it into a file and run `python FILE`, or start it by `accelerate launch FILE`"
        )
    return [executable, *words[1:]]


def began_in(words: Sequence[str], file: str) -> str | None:
    """The folder in which ``python folder/script.py`` was called, should the script have left it; None if unknown."""
    for word in words[1:]:
        word = word.removeprefix("./")
        if word and file.endswith(os.sep + word):
            return file[: -len(word)]
    return None


def restart(config: Mapping[str, Any], environ: Mapping[str, str]) -> NoReturn:
    """Put in this process's place a launcher that runs the same command on the processes of `config`.

    Nothing of this process is left: its data, and what it holds on a GPU, is given back.

    Parameters
    ----------
    config : mapping
        An Accelerate launch configuration.
    environ : mapping
        Variables for the processes, besides those that are there.

    Raises
    ------
    LaunchError
        When this command cannot be run again.
    """
    _refuse_nested()
    file = getattr(sys.modules["__main__"], "__file__", None)
    command = this_command(sys.orig_argv, file, sys.executable)
    _leave()
    os.chdir(began_in(sys.orig_argv, str(file)) or ".")  # a relative path in the command starts from there
    os.environ.update({MARK: "1", **environ})
    package = str(Path(__file__).resolve().parents[2])
    words = [sys.executable, "-c", _AGAIN, package, json.dumps(dict(config)), *command]
    if os.name == "posix":
        os.execv(sys.executable, words)
    import subprocess  # elsewhere exec would return to the shell at once

    sys.exit(subprocess.call(words))


def _refuse_nested() -> None:
    if MARK in os.environ:
        raise LaunchError(
            f"this script was started for several devices already ({MARK} is set), but no launcher's variables are"
            " there; keep RANK and WORLD_SIZE in the environment, or unset it in what the script starts"
        )
    if interactive():
        raise LaunchError(
            "several devices need a script that can be started once more in each process, but this is a session;"
            " write the trainer into a file and run `python FILE`, or give one device"
        )
    tested = "PYTEST_CURRENT_TEST" in os.environ and "pytest" in sys.modules  # pytest itself would be started again
    if tested or multiprocessing.parent_process() is not None:
        raise LaunchError(
            "several devices start the main script once more in each process, and this is not it, but a part that"
            " something else runs; make the trainer in the script, or start it by `accelerate launch`"
        )


def _leave() -> None:
    """What would happen at this process's end happens now."""
    for child in multiprocessing.active_children():
        child.terminate()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()


def _start_again() -> NoReturn:
    """The other side of `restart`: read the configuration and the command from the command line, and start."""
    config, command = json.loads(sys.argv[2]), sys.argv[3:]
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "launch.yaml")
        write_config(config, file)
        start(file, command, python=False)
