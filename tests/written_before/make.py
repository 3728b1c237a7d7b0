"""Write run folders with the present version, for later versions to load: python -m tests.written_before.make.

``v0_8`` was written by version 0.8.0 at commit 39cd7c1 (torch 2.13.0, Python 3.11), before the modules moved into
rooms. What is there is never written again: a folder that newer code has made says nothing of older files. Another
version gets a folder of its own beside it, and this program refuses one that is there.

No name of the machine, and no path of it, gets into the files: the program gives itself others before it trains, since
the manifests have checksums of what is written. So it trains in a folder whose path says nothing, and which has to be
made for it if it is not allowed to.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.distributed.conftest import start
from tests.written_before.problem import FORMS, RANK, build, noted, run
from zae_engine import __version__

PLACE = Path("/written")
KEPT = Path(__file__).parent / f"v{'_'.join(__version__.split('.')[:2])}"
EXIT_INTERRUPTED = 75


def main(part: str = "", name: str = "") -> None:
    """Make everything; or, in a process that was started for it, a part of one form."""
    if part:
        torch.set_num_threads(1)
        # What run.json and TensorBoard's files are told of the machine.
        socket.gethostname = lambda: "machine"
        sys.orig_argv[:] = ["python", "-m", "tests.written_before.make"]
        {"whole": whole, "run": cut}[part](name)
        return
    if KEPT.exists():
        raise SystemExit(f"{KEPT.name} is there, and is not written again")
    PLACE.mkdir(exist_ok=True)
    for name in FORMS:
        make(name)
    shutil.rmtree(PLACE)


def make(name: str) -> None:
    """Both parts of a form, each in processes of its own, which close at their end what they have opened."""
    for part in ("whole", "run"):
        done = start(FORMS[name].processes, "-m", "tests.written_before.make", part, name)
        ends = (EXIT_INTERRUPTED, 1) if part == "run" and FORMS[name].away_at else (0,)  # a launcher's is 1
        assert done.returncode in ends, done.stderr
    shutil.rmtree(PLACE / name / "whole")
    (PLACE / name / "run" / "curves.png").unlink(missing_ok=True)  # which is large, and nothing reads it
    shutil.copytree(PLACE / name, KEPT / name)


def whole(name: str) -> None:
    """The run that is not interrupted, and what it comes to."""
    into = PLACE / name
    trainer = run(build(FORMS[name], into / "whole"), FORMS[name])
    if RANK:
        return
    save_file(trainer.model.state_dict(), into / "noted.safetensors")
    made_with = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    (into / "noted.json").write_text(json.dumps(noted(trainer) | {"made with": made_with}, allow_nan=False) + "\n")
    if name == "finished":
        trainer.save_model(into / "saved.safetensors")
        trainer.save_model(into / "saved.ckpt")


def cut(name: str) -> None:
    """The first part of the same run, in the folder that is kept."""
    trainer = build(FORMS[name], PLACE / name / "run")
    trainer.away_at = FORMS[name].away_at
    run(trainer, FORMS[name], FORMS[name].cut)


if __name__ == "__main__":
    main(*sys.argv[1:])
