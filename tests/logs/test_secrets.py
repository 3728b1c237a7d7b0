"""Nothing that looks like a secret is in any file of a run: not of its command, its error or its loggers."""

import os
import subprocess

import pytest

from tests.helpers import PlainTrainer, loader, make
from tests.nurse import environment
from zae_engine.trainer.addons import CSVLoggerAddon, StateManagerAddon
from zae_engine.trainer.journal.settings import plain_settings

SCRIPT = """
import pytest

from tests.helpers import PlainTrainer, loader, make
from zae_engine.trainer import addons

class Refused(PlainTrainer):
    def train_step(self, batch):
        if self.progress_checker.get_step() > 3:
            raise RuntimeError("401 of https://me:SECRET-4@host/?token=SECRET-5 with Authorization: Bearer SECRET-6")
        return super().train_step(batch)

kinds = [addons.WandBLoggerAddon, addons.NeptuneLoggerAddon, addons.MLflowLoggerAddon, addons.TensorBoardLoggerAddon]
trainer = make(Refused.add_on(addons.StateManagerAddon, *kinds), save_path="run", log_every="1st")
try:
    trainer.run(2, loader(), loader(11))
except RuntimeError:
    trainer.close_loggers()
"""
WORDS = (
    *("--api-key", "SECRET-1", "--url", "https://me:SECRET-2@host/", "-H", "Authorization: Bearer SECRET-3"),
    *("--n_tokens", "5"),
)


@pytest.mark.usefixtures("with_git")
def test_no_file_of_a_run_has_a_secret(nursery, tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    for words in (["init", "-q"], ["remote", "add", "origin", "https://me:SECRET-7@host/it.git"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, timeout=60)
    variables = {"WANDB_MODE": "offline", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": os.getcwd()}
    done = nursery.run("train.py", *WORDS, cwd=tmp_path, timeout=250, env=environment() | variables)
    assert done.returncode == 0, done.stderr
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not [path for path, content in files.items() if b"SECRET" in content]
    assert any(path.suffix == ".wandb" and b"--n_tokens" in content for path, content in files.items())
    assert b"401 of https://***@host/?token=***" in files[tmp_path / "run/history.jsonl"]


def test_a_loggers_note_has_no_secret():
    settings = {
        "project": "digits",
        "api_key": "S3CRET",
        "tracking_uri": "http://me:S3CRET@host",
        "settings": {"x_extra_http_headers": {"X-Who": "S3CRET"}},
        "tags": ["hf_S3CRETS3CRET"],
        "n_tokens": 5,
    }
    assert plain_settings(settings) == {"project": "digits", "n_tokens": 5}


def test_what_a_logger_raises_is_shown_clean(tmp_path, capsys):
    kind = PlainTrainer.add_on(StateManagerAddon, CSVLoggerAddon)
    place = tmp_path / "a file"
    place.write_text("")
    trainer = make(kind, save_path=tmp_path / "run", web_logger={"csv": {"path": place / "token=S3CRET" / "a.csv"}})
    trainer.run(1, loader())
    trainer.close_loggers()
    err = capsys.readouterr().err
    assert "csv is set aside: NotADirectoryError: [Errno 20] Not a directory: " in err
    assert "token=***" in err


class Stopped(PlainTrainer):
    def train_step(self, batch):
        self.stop("the password: S3CRET was refused")
        return super().train_step(batch)


def test_a_reason_to_stop_is_written_clean(tmp_path):
    trainer = make(Stopped.add_on(StateManagerAddon), save_path=tmp_path)
    trainer.run(1, loader())
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [content for content in files if b"S3CRET" in content]
    assert '"reason": "the password: *** was refused"' in (tmp_path / "history.jsonl").read_text()
