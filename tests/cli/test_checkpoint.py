"""``zae checkpoint``: what it prints, and the codes that it exits with."""

import os
import re

import pytest
import torch

from tests.checkpoint.making import begin, make, summary, watched, writer
from zae_engine.checkpoint.documents import write_document, write_tensors
from zae_engine.cli import main


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(("checkpoint", *map(str, arguments)))
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


def save(folder, serial, value=1.0):
    """With tensors that can be read."""
    commit = begin(folder, serial)

    def write(partial):
        write_tensors(partial / "model.safetensors", {"w": torch.full((2, 3), value)})
        state = {
            "step": 10,
            "lr": value,
            "rows": [*"abcdefghijklmnopqrstuvwxyz0123"],
            "losses": list(range(30)),
            "moment": torch.zeros(2),
        }
        return ["model.safetensors", *write_document(partial, "state", state)]

    commit.write(write)
    return commit.finish(summary(serial))


def test_a_table(run, folder):
    make(folder, 1, **watched(1.0))
    make(folder, 2, metrics={"loss": 0.123456, "acc": float("nan")})
    (make(folder, 3) / "state.json").write_bytes(b"{}")
    (make(folder, 4) / "manifest.json").write_bytes(b"{}")
    begin(folder, 5, "tok").write(writer())
    code, out, err = run("ls", "run")
    assert (code, err) == (0, "")
    rows = [re.split("  +", line) for line in out.splitlines()]
    assert rows[0] == ["NAME", "STEP", "EPOCH", "METRICS", "SIZE", "AGE", "PROCESSES", "STATE"]
    assert rows[1][:5] == ["000001-step-10", "10", "1", "loss 1", "14.4 kB"]
    assert re.fullmatch(r"\d+ s", rows[1][5])
    assert rows[1][6:] == ["1", "whole"]
    assert rows[2][3] == "loss 0.1235, acc nan"
    assert rows[3][7] == "damaged: state.json has 2 bytes, and had 300 when it was written"
    assert rows[4] == [
        "000004-step-40",
        "40",
        "?",
        "0 B",
        "?",
        "?",
        "damaged: manifest.json is no manifest of a checkpoint",
    ]
    assert rows[5] == [".000005-step-50.tok.partial", "partial"]
    assert run("ls", "run/checkpoints")[1].count("\n") == out.count("\n")
    assert run("ls", "run/checkpoints/000001-step-10")[1].count("\n") == 2


def test_a_run_without_checkpoints(run, folder):
    folder.mkdir(parents=True)
    assert run("ls", "run") == (0, "run has no checkpoint yet\n", "")
    assert run("verify", "run") == (0, "0 verified, 0 damaged\n", "")


def test_verify(run, folder):
    path = make(folder, 1)
    (path / "notes.txt").touch()
    code, out, _ = run("verify", "run")
    assert code == 0
    assert out.splitlines()[:3] == ["000001-step-10: whole", "  ok  manifest.json", "  ok  model.safetensors"]
    assert out.splitlines()[-2:] == [
        "  --  notes.txt is not of the checkpoint, and is never loaded",
        "1 verified, 0 damaged",
    ]
    make(folder, 2)
    (path / "state.json").write_bytes(bytes(300))
    code, out, _ = run("verify", "run")
    assert code == 1
    assert "  BAD state.json was changed: its checksum differs\n" in out
    assert "000002-step-20: whole" in out
    assert out.endswith("2 verified, 1 damaged\n")
    assert run("verify", folder / "000002-step-20")[0] == 0


def test_diff(run, folder, tmp_path):
    one, same, other = save(folder, 1), save(folder, 2), save(folder, 3, value=1.5)
    assert run("diff", one, same) == (0, "0 differences\n", "")
    code, out, _ = run("diff", one, other)
    assert code == 1
    assert out.splitlines() == [
        "model: w: 6 of 6 differ, by at most 0.5 (relative 0.333)",
        "state: lr: 1.0 -> 1.5",
        "2 differences",
    ]
    assert run("diff", other, "run")[0] == 0
    write_tensors(tmp_path / "w.safetensors", {"w": torch.ones(2, 3)})
    assert run("diff", "w.safetensors", one)[0] == 0
    assert run("diff", "w.safetensors", other)[1].endswith("\n1 difference\n")


def test_show(run, folder):
    save(folder, 1)
    code, out, _ = run("show", "run")
    assert code == 0
    for line in (
        "run/checkpoints/000001-step-10",
        "  step: 10",
        "  metrics: loss 1.0",
        "  processes: 1",
        "model: 1 tensors, 6 numbers, 24 B; 0 plain values",
        "  w  float32 [2, 3]",
        "state: 1 tensors, 2 numbers, 8 B; 33 plain values",
        "  moment  float32 [2]",
        "  lr  1.0",
        "  rows/3  'd'",
        "  and 13 more plain values",
    ):
        assert f"{line}\n" in out
    assert run("show", folder / "000001-step-10" / "model.safetensors")[1].startswith("model: 1 tensors")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ls", "rum"], "did you mean 'run'?"),
        (["verify", "run/checkpoints/000001-step-11"], "did you mean 'run/checkpoints/000001-step-10'?"),
        (["diff", "rum", "run"], "did you mean 'run'?"),
        (["show", "rum"], "did you mean 'run'?"),
        (["show", "new"], "has no checkpoint yet"),
        (["show", "text"], "is no checkpoint and no run folder"),
        (["show", "run"], "is damaged: state.json has 1 bytes"),
        (["diff", "text/a.pt", "run"], "a.pt"),
        (["verfy", "run"], "Did you mean 'verify'"),
        (["ls"], "Missing argument 'PATH'"),
        ([], "Missing command"),
    ],
)
def test_errors_are_one_line_and_end_with_2(run, folder, tmp_path, arguments, words):
    (make(folder, 1) / "state.json").write_bytes(b"1")
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.pt").write_bytes(b"no weights")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words.lower() in err.lower()
    assert err.startswith("zae: ")
    assert err.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(run, folder):
    make(folder, 1)
    folder.chmod(0)
    code, _, err = run("ls", "run")
    folder.chmod(0o755)
    assert code == 2
    assert "Permission denied" in err
