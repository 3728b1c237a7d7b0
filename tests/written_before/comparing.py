"""What the kept runs have to come to, and how close to that a run has to come."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.helpers import weights
from tests.trainer.addons.resumed import first_difference, outcome
from tests.written_before.problem import F32, FORMS, RANK, Form, Task, build, noted, run

HERE = Path(__file__).parent
FOLDERS = sorted(path.parent.relative_to(HERE).as_posix() for path in HERE.glob("v*/*/noted.json"))


def form_of(folder: str | Path) -> Form:
    return FORMS[Path(folder).name]


def on(processes: int) -> list[str]:
    """The folders of runs on so many processes."""
    return [folder for folder in FOLDERS if form_of(folder).processes == processes]


def then(folder: str) -> dict[str, Any]:
    """What the run that was never interrupted had come to, when the folder was written."""
    values = json.loads((HERE / folder / "noted.json").read_text())
    del values["made with"]
    return values | {"weights": load_file(HERE / folder / "noted.safetensors")}


def now(trainer: Task) -> dict[str, Any]:
    """The same of a run of today."""
    return noted(trainer) | {"weights": weights(trainer.model)}


def found(resumed: Task, whole: Task) -> dict[str, Any]:
    """What is compared of a run that went on and one that was never interrupted, both of today."""
    return {
        "resumed": now(resumed),
        "whole": now(whole),
        "difference": first_difference(outcome(whole), outcome(resumed)),
    }


def goes_on(folder: str, into: str) -> dict[str, Any]:
    """Let a copy of a folder go on, on the processes that there are, beside a run that is not interrupted."""
    form, beside = form_of(folder), Path(into) / folder
    if RANK == 0:
        shutil.copytree(HERE / folder / "run", beside / "run")
    return found(
        run(build(form, beside / "run"), form, resume="auto"),
        run(build(form, beside / "whole"), form),
    )


def assert_ends_alike(found: dict[str, Any], folder: str) -> None:
    """The old folder goes on to the end that was noted, and on a machine that computes the same bits, to that bit."""
    wanted = then(folder)
    tolerance = 1e-3 if form_of(folder).dtype == F32 else 1e-9
    assert_close(found["whole"], wanted, tolerance)
    assert_close(found["resumed"], wanted, tolerance)
    if first_difference(found["whole"], wanted) is None:
        assert found["difference"] is None


def assert_close(got: Any, wanted: Any, tolerance: float, where: str = "") -> None:
    """Nests that are equal but for the rounding of another machine, or of another torch."""
    if isinstance(wanted, dict):
        assert got.keys() == wanted.keys(), where
        for key in wanted:
            assert_close(got[key], wanted[key], tolerance, f"{where}/{key}")
    elif isinstance(wanted, list):
        assert len(got) == len(wanted), where
        for place, (one, other) in enumerate(zip(got, wanted, strict=True)):
            assert_close(one, other, tolerance, f"{where}/{place}")
    elif isinstance(wanted, torch.Tensor):
        assert got.dtype == wanted.dtype, where
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, msg=lambda said: f"{where}: {said}")
    elif isinstance(wanted, float):
        assert math.isclose(got, wanted, rel_tol=tolerance, abs_tol=tolerance), f"{where}: {got}, noted is {wanted}"
    else:
        assert got == wanted, where
