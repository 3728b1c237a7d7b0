"""A clean parent that has imported everything, and forks what tests start: real processes, there in milliseconds.

It reads one JSON object a line (`argv` behind ``python``, `cwd`, `env`, files for `out` and `err`, and packages that
are not to be found), answers with the child's process id, and tells each end as ``{"pid", "code"}``. It has one thread,
so that forking is safe. When its input ends, it kills what is left.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import sys
import threading
import types
import warnings

import accelerate  # noqa: F401
import numpy as np  # noqa: F401
import torch
import torch.distributed.fsdp

import zae_engine.trainer.addons  # noqa: F401
from tests import helpers


def serve() -> dict | None:
    """In the parent: until the input ends. In a child: return what it is to do."""
    _answer({"ready": True})
    living: set[int] = set()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _tell_ends(living)
        if 0 not in ready:
            continue
        line = _line()
        if not line.strip():
            _end(living)
            return None
        order = json.loads(line)
        child = os.fork()
        if not child:
            signal.set_wakeup_fd(-1)
            os.close(woken), os.close(wake)
            _become(order)
            return order
        living.add(child)
        _answer({"pid": child})


def _line() -> bytes:
    text = b""
    while not text.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        text += byte
    return text


def _answer(value: dict) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


def _tell_ends(living: set[int]) -> None:
    for child in list(living):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            living.discard(child)
            _answer({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _end(living: set[int]) -> None:
    for child in living:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _become(order: dict) -> None:
    """A process of its own, as a shell starts it: session, standard streams, environment, default signals."""
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    out, err = (os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for name in ("out", "err"))
    for source, target in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.modules.update(dict.fromkeys(order["without"]))
    if asked := os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(asked)


def run(argv: list[str]) -> None:
    """What ``python`` does with these words: ``-m MODULE``, ``-c CODE`` or a script, each with its arguments."""
    kind, rest = argv[0], argv[1:]
    sys.orig_argv = [sys.executable, *argv]
    own = os.path.dirname(os.path.abspath(kind)) if kind not in ("-m", "-c") else os.getcwd()
    sys.path[:1] = [own, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        sys.argv = ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(kind, run_name="__main__")


def leave(code: object) -> None:
    """As the interpreter does, but for taking torch's modules apart, which takes half a second."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    helpers.sgd(helpers.mlp())  # the first optimizer imports torch._dynamo, for a second
    gc.collect()
    gc.freeze()
    # A child goes on from here to the end of the program, as any script does, exit codes and all.
    if (order := serve()) is not None:
        try:
            run(order["argv"])
        except SystemExit as ending:
            leave(ending.code)
        leave(0)
