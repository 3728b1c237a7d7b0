"""What a run folder says is data: no address and no path of it is used outside of it, unless the user names it, too."""

import http.server
import json
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers import PlainTrainer, loader, make
from tests.logs.making import attempt, point, row, write
from zae_engine.logs.export import SyncError, export, sync
from zae_engine.logs.reading import RunFolderError
from zae_engine.trainer.addons import (
    CSVLoggerAddon,
    MLflowLoggerAddon,
    StateManagerAddon,
    TensorBoardLoggerAddon,
    WandBLoggerAddon,
)

pytestmark = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
VICTIM = "one line\nthe last line, without its end"


class Recorder(http.server.BaseHTTPRequestHandler):
    """Keeps what is sent to it."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.got.append(self.headers.get("authorization"))
        self.send_response(404)
        self.end_headers()

    do_POST = do_HEAD = do_GET  # noqa: N815 (http.server's names)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        server.got, server.url = [], f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def _user(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "TOKEN-OF-THE-USER")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("HF_TOKEN", "hf_OF_THE_USER")
    yield
    if wandb := sys.modules.get("wandb"):
        wandb.sdk.lib.wbauth.unauthenticate_session()  # wandb remembers a key that it has used


def strangers(logger, settings=None, id=None):
    """A run folder that says something of a logger."""
    folder = Path("run")
    write(folder, [attempt(), point(2), row(0, 2, 1.2)])
    (folder / "loggers").mkdir()
    note = {"logger": logger, "id": id, "step": 0, "settings": settings or {}, "status": "open"}
    (folder / f"loggers/{logger}.json").write_text(json.dumps(note))
    return folder


def refused(folder, **options):
    with pytest.raises(SyncError) as told:
        sync(folder, **options)
    return str(told.value)


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("logger", "settings", "remedy"),
    [
        ("mlflow", {"tracking_uri": "URL"}, "set MLFLOW_TRACKING_URI to the same, or give your own: `zae logs sync"),
        ("mlflow", {"tracking_uri": "URL", "artifact_location": "/tmp"}, "--set tracking_uri=... --set artifact_loc"),
        ("wandb", {"settings": {"base_url": "URL"}}, "set WANDB_BASE_URL to the same"),
        ("wandb", {"settings": {"http_proxy": "URL", "silent": True}}, """--set 'settings={"http_proxy": ...}'`"""),
        ("wandb", {"settings": {"x_extra_http_headers": {"a": "URL"}}}, "settings.x_extra_http_headers="),
        ("wandb", {"config": "/etc/passwd"}, "--set config=..."),
        ("trackio", {"server_url": "URL", "project": "digits"}, "set TRACKIO_SERVER_URL to the same"),
        ("trackio", {"space_id": "stranger/space"}, "set TRACKIO_SPACE_ID to the same"),
        ("trackio", {"webhook_url": "URL"}, "set TRACKIO_WEBHOOK_URL to the same"),
        ("neptune", {"api_token": "URL"}, "set NEPTUNE_API_TOKEN to the same"),
        ("neptune", {"proxies": {"http": "URL"}}, "--set proxies=..."),
        ("neptune", {"source_files": ["/etc/passwd"]}, "--set source_files=..."),
        ("tracker", {"log_with": "tensorboard", "logging_dir": "/tmp"}, "--set logging_dir=..."),
        ("tracker", {"log_with": "tensorboard", "project": "../../elsewhere"}, "--set project=..."),
        ("tensorboard", {"log_dir": "s3://bucket/board"}, "--set log_dir=..."),
        ("tensorboard", {"filename_suffix": "/../../elsewhere"}, "--set filename_suffix=..."),
    ],
)
def test_an_address_of_the_folder_alone_gets_nothing(server, logger, settings, remedy):
    folder = strangers(logger, json.loads(json.dumps(settings).replace("URL", server.url)))
    words = refused(folder)
    assert words.startswith(f"{logger} gets nothing: run/loggers/{logger}.json says ")
    assert remedy in words
    assert server.got == []
    assert {path.name for path in Path().rglob("*")} == {"history.jsonl", f"{logger}.json", "lock", "loggers", "run"}


@pytest.mark.usefixtures("starts_processes")  # MLflow asks for the machine's
@pytest.mark.parametrize("how", ["environment", "option"])
def test_an_address_that_the_user_names_too_is_used(server, monkeypatch, how):
    folder, own = strangers("mlflow", {"tracking_uri": server.url}), {}
    if how == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    else:
        own = {"tracking_uri": server.url}
    assert "mlflow could not take it: MlflowException" in refused(folder, settings=own)
    assert set(server.got) == {"Bearer TOKEN-OF-THE-USER"}


def test_another_address_of_the_user_is_not_the_folders(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "gets nothing" in refused(strangers("mlflow", {"tracking_uri": server.url}))
    assert server.got == []


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # MLflow's own code
def test_stores_inside_of_the_folder_are_used():
    folder = strangers("mlflow", {"tracking_uri": f"sqlite:///{Path('run/own.db').absolute()}", "experiment": "digits"})
    assert "mlflow got 1 records" in sync(folder)[0]
    assert (folder / "own.db").is_file()


@pytest.mark.parametrize(
    ("logger", "settings", "id"),
    [
        ("csv", {}, "../victim.txt"),
        ("csv", {}, "VICTIM"),
        ("csv", {"path": "VICTIM"}, None),
        ("csv", {"path": "VICTIM"}, "VICTIM"),
        ("csv", {"path": "run/../victim.txt"}, None),
        ("csv", {}, "link.csv"),
        ("csv", {}, "notes.txt"),
        ("mlflow", {"tracking_uri": "sqlite:///VICTIM"}, None),
        ("mlflow", {"tracking_uri": "sqlite:///run/%2e%2e/victim.txt"}, None),
        ("mlflow", {"tracking_uri": "sqlite+pysqlite:///run/own.db"}, None),
    ],
)
def test_a_file_that_is_not_the_loggers_is_not_touched(logger, settings, id):
    victim = Path("victim.txt").absolute()
    given = json.loads(json.dumps([settings, id]).replace("VICTIM", str(victim)))
    folder = strangers(logger, *given)
    (folder / "link.csv").symlink_to(victim)
    for path in (victim, folder / "notes.txt"):
        path.write_text(VICTIM)
    before = sorted(Path().iterdir())
    refused(folder)
    assert victim.read_text() == (folder / "notes.txt").read_text() == VICTIM
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("logger", "place"),
    [
        ("csv", "metrics.csv"),
        ("csv", "loggers"),
        ("mlflow", "mlflow.db"),
        ("tensorboard", "tensorboard"),
        ("neptune", ".neptune/offline"),
        ("wandb", "wandb"),
    ],
)
def test_a_link_leads_no_logger_out_of_the_folder(logger, place):
    folder, outside = strangers(logger, id="metrics.csv" if logger == "csv" else None), Path("outside").absolute()
    (folder / place).parent.mkdir(exist_ok=True)
    if place == "loggers":
        (folder / place).rename(outside)
    elif "." in place[1:]:
        outside.write_text("step,time\n1,2")
    else:
        outside.mkdir()
    before = outside.read_text() if outside.is_file() else sorted(outside.iterdir())
    (folder / place).symlink_to(outside)
    assert "gets nothing" in refused(folder)
    assert before == (outside.read_text() if outside.is_file() else sorted(outside.iterdir()))


@pytest.mark.usefixtures("starts_processes")
def test_wandb_takes_no_settings_out_of_the_folder(server, monkeypatch):
    folder = strangers("wandb")
    (folder / "wandb").mkdir()
    (folder / "wandb/settings").write_text(f"[default]\nbase_url = {server.url}\n")
    monkeypatch.chdir(folder)
    done = subprocess.run(
        [sys.executable, "-m", "zae_engine.cli", "logs", "sync", "."], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("zae: wandb gets nothing: it would take its settings from 'wandb/settings'")
    assert server.got == []


@pytest.mark.parametrize(("add_on", "id"), [(CSVLoggerAddon, "../victim.txt"), (TensorBoardLoggerAddon, "../outside")])
def test_a_training_that_goes_on_leaves_what_is_outside_alone(tmp_path, capsys, add_on, id):
    Path("victim.txt").write_text(VICTIM)
    Path("outside").mkdir()
    train(add_on, 1)
    note = Path(f"run/loggers/{add_on.logger}.json")
    note.write_text(json.dumps({**json.loads(note.read_text()), "id": id}))
    train(add_on, 2)
    assert "the run folder says that it is kept in" in capsys.readouterr().err
    assert (Path("victim.txt").read_text(), list(Path("outside").iterdir())) == (VICTIM, [])


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("add_on", "place"),
    [
        (TensorBoardLoggerAddon, "tensorboard"),
        (MLflowLoggerAddon, "mlflow.db"),
        (WandBLoggerAddon, "wandb"),
        (CSVLoggerAddon, "loggers"),
    ],
)
def test_a_link_leads_no_training_out_of_the_folder(capsys, monkeypatch, add_on, place):
    monkeypatch.setenv("WANDB_MODE", "offline")
    outside = Path("outside").absolute()
    outside.mkdir()
    Path("run").mkdir()
    Path("run", place).symlink_to(outside / "file" if "." in place else outside)
    train(add_on, 1)
    assert f"{add_on.logger} gets nothing: '{Path('run', place).absolute()}' is a link" in capsys.readouterr().err
    assert list(outside.iterdir()) == []


def test_a_link_of_a_client_is_its_own():
    train(TensorBoardLoggerAddon, 1)
    Path("kept").write_text("")
    Path("run/tensorboard/kept").symlink_to(Path("kept").absolute())
    train(TensorBoardLoggerAddon, 2)
    assert json.loads(Path("run/loggers/tensorboard.json").read_text())["status"] == "done"


def train(add_on, epochs, **settings):
    kind = PlainTrainer.add_on(StateManagerAddon, add_on)
    trainer = make(kind, save_path="run", web_logger={add_on.logger: settings})
    trainer.run(epochs, loader(), resume="auto")
    trainer.close_loggers()


@pytest.mark.parametrize(
    ("add_on", "setting"), [(CSVLoggerAddon, {"path": "table.csv"}), (TensorBoardLoggerAddon, {"log_dir": "board"})]
)
def test_a_place_of_the_users_own_goes_on(add_on, setting):
    train(add_on, 1, **setting)
    train(add_on, 2, **setting)
    note = json.loads(Path(f"run/loggers/{add_on.logger}.json").read_text())
    assert (note["id"], note["status"]) == (os.path.abspath(next(iter(setting.values()))), "done")
    Path(f"run/loggers/{add_on.logger}.json").write_text(json.dumps({**note, "step": 0, "status": "open"}))
    assert "gets nothing" in refused(Path("run"))
    assert "got 0 records" in sync(Path("run"), settings=setting)[0]


def test_settings_are_for_one_logger():
    folder = strangers("csv")
    (folder / "loggers/mlflow.json").write_text((folder / "loggers/csv.json").read_text())
    with pytest.raises(
        RunFolderError, match=r"settings are for one logger, and 'run' has csv, mlflow; name one of them"
    ):
        sync(folder, settings={"path": "a.csv"})


def test_an_export_stays_in_the_folder_unless_told():
    folder = strangers("csv")
    (folder / "export").symlink_to(Path().absolute())
    with pytest.raises(OSError, match="'run/export' is refused"):
        export(folder, "csv", {})
    assert "1 records of run are in csv" in export(folder, "csv", {}, Path("here"))
