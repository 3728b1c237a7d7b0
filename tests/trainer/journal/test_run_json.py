"""run.json: an entry for each attempt, and no secrets anywhere in the folder."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers import PlainTrainer, loader, make
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.journal.run_json import note_attempt, read_run_json

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys
from tests.helpers import loader, make, PlainTrainer
from zae_engine.trainer.addons import StateManagerAddon
trainer = make(PlainTrainer.add_on(StateManagerAddon), save_path=sys.argv[1])
trainer.run(2, loader(), resume="auto")
"""


def test_each_attempt_is_added(tmp_path):
    trainer = make()
    noted = [note_attempt(tmp_path, trainer, 1, token, ({}, {})) for token in ("a", "b")]
    first, second = read_run_json(tmp_path)["attempts"]
    assert noted == [first, second]
    assert (first["token"], second["token"], second["attempt"]) == ("a", "b", 2)
    assert second["seed"] == trainer.seed
    assert second["launch"]["device"] == "cpu"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"attempts": 3}', b"\xff"])
def test_a_damaged_file_is_begun_anew(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    assert note_attempt(tmp_path, make(), 1, "a", ({}, {}))["attempt"] == 1


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(CheckpointError, match=r"run.json' cannot be written"):
        note_attempt(tmp_path, make(), 1, "a", ({}, {}))


def git(folder, *words):
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, timeout=30)


@pytest.mark.usefixtures("with_git")
def test_no_secret_is_in_a_run_folder(nursery, tmp_path):
    script, folder = tmp_path / "code" / "train.py", tmp_path / "run"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    git(script.parent, "init", "-q")
    git(script.parent, "remote", "add", "origin", "https://me:S3CRET-remote@host/project.git")
    git(script.parent, "add", "train.py")
    git(script.parent, "-c", "user.name=a", "-c", "user.email=b@c", "commit", "-qm", "first")
    words = ["--api-key=S3CRET-a", "--token", "S3CRET-b", "db.password=S3CRET-c", "https://me:S3CRET-d@host"]
    secrets = {"WANDB_API_KEY": "S3CRET-e", "HF_TOKEN": "S3CRET-f", "AWS_SECRET_ACCESS_KEY": "S3CRET-g"}
    done = nursery.run(script, folder, *words, env=os.environ | secrets | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path.name for path in files if b"S3CRET" in path.read_bytes()] == []
    attempt = json.loads((folder / "run.json").read_text())["attempts"][0]
    assert attempt["command"][1:3] == [str(script), str(folder)]
    assert len(attempt["circumstances"]["git"]) >= 12


def test_a_summary_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    (tmp_path / "summary.json").mkdir()
    make(PlainTrainer.add_on(StateManagerAddon), save_path=tmp_path, log_bar=True).run(1, loader())
    assert "no summary.json was written: " in capsys.readouterr().err
