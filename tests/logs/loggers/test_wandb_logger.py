"""W&B by its real client, without a network; what it wrote is read back by wandb's own reader."""

import http.server
import json
import math
import os
import pty
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import MLPTrainer, loader, make
from zae_engine.logs.delivery import close
from zae_engine.logs.loggers.logger import Record, RunInfo
from zae_engine.logs.loggers.network import unreachable
from zae_engine.logs.loggers.wandb_account import has_key
from zae_engine.logs.loggers.wandb_file import read_steps
from zae_engine.logs.loggers.wandb_logger import WandBLogger, valid
from zae_engine.trainer.addons import WandBLoggerAddon
from zae_engine.trainer.records.images import png

pytestmark = [
    pytest.mark.usefixtures("starts_processes"),
    pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed"),
]

CONFIG = {"settings": {"lr": 0.1}, "launch": {"num_processes": 2}, "git": "0123abc"}
KEY = "0123456789" * 4


@pytest.fixture(scope="module", autouse=True)
def _the_client():
    """Its import takes half a second, for which other tests need not wait; its service ends with these."""
    global wandb
    import wandb

    yield
    wandb.teardown()


@pytest.fixture(autouse=True)
def _nobody(monkeypatch, tmp_path):
    """No key, no settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    yield
    wandb.sdk.lib.wbauth.unauthenticate_session()  # wandb remembers a key that it has used


def info(folder, **values):
    return RunInfo(**{"folder": folder, "name": "a run/1", "config": CONFIG} | values)


def begin(folder, settings=None, open_client=None, **values):
    logger = WandBLogger(settings, open_client)
    logger.check()
    logger.start(info(folder, **values))
    return logger


def record(step, **values):
    return Record(step, 1e9 + step, {"train/loss": 1 / step, "test/loss": abs(step - 3) + 0.5, "lr": 0.1} | values)


def pieces(folder):
    return sorted(Path(folder).glob("wandb/offline-run-*/run-*.wandb"))


def inspect(path, *options):
    """What wandb's own reader says of a file."""
    command = [wandb.util.get_core_path(), "leet", "inspect", "-no-observability", "-json", *options]
    done = subprocess.run([*command, "-run-file", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(path, kind):
    found = (json.loads(line) for line in inspect(path).splitlines())
    return [line[kind] for line in found if line["type"] == kind]


def rows(folder):
    return [line["item"] for path in pieces(folder) for line in lines(path, "history")]


def summary(path):
    return json.loads(inspect(path, "-summary"))


def test_without_key_or_settings_there_is_a_complete_offline_run(tmp_path):
    got = []

    def work():  # as every logger: not in the main thread
        logger = begin(tmp_path)
        for step in range(1, 6):
            logger.log(record(step, bad=math.nan if step == 2 else math.inf))
        logger.summarize({"seconds": 2.5, "best": None})
        logger.finish("done")
        got.append(logger)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    (path,), (logger,) = pieces(tmp_path), got
    said = summary(path)
    assert [row["_step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]
    assert [row["bad"] for row in rows(tmp_path)] == ["Infinity", "NaN", *["Infinity"] * 3]
    assert rows(tmp_path)[0]["_timestamp"] == 1e9 + 1
    assert said["config"] == CONFIG
    assert (said["project"], said["name"], said["exit_code"]) == ("a run-1", "a run/1", 0)
    assert said["summary"]["test/loss"] == {"min": 0.5, "last": 2.5}
    assert said["summary"]["summary/seconds"] == 2.5
    (notice,) = logger.notices
    assert "there is no API key" in notice
    assert f"`wandb sync {tmp_path}/wandb/offline-run-*-{logger.client.id}`" in notice
    assert wandb.run is None


def test_a_resumed_run_goes_on_and_keeps_its_best(tmp_path):
    first = begin(tmp_path)
    for step in (1, 2, 3):
        first.log(record(step))
    first.finish("interrupted")
    second = begin(tmp_path, id=first.client.id, step=3)
    assert (second.client.id, second.last_step()) == (first.client.id, 3)
    second.log(record(6, **{"test/loss": math.nan}))  # wandb's own minimum would stay NaN
    second.log(record(7))
    second.finish("done")
    assert [row["_step"] for row in rows(tmp_path)] == [1, 2, 3, 6, 7]
    assert [summary(path)["exit_code"] for path in pieces(tmp_path)] == [75, 0]
    assert [len(lines(path, "preempting")) for path in pieces(tmp_path)] == [1, 0]
    assert summary(pieces(tmp_path)[1])["summary"]["test/loss"] == {"min": 0.5, "last": 4.5}


def test_a_failed_run_is_marked_and_the_best_of_all_attempts_is_the_summary_s(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "of the environment")
    logger = begin(tmp_path, monitor=("test/acc", "max"))
    logger.log(record(1, **{"test/acc": 0.5}))
    logger.log(record(2, **{"test/acc": 0.25}))
    logger.summarize({"best": {"name": "test_acc", "mode": "max", "value": 0.75, "step": None}})
    logger.finish("failed")
    said = summary(pieces(tmp_path)[0])
    assert said["project"] == "of the environment"
    assert (said["exit_code"], said["summary"]["test/acc"]) == (1, {"max": 0.75, "last": 0.25})


def test_a_value_that_turns_out_to_tell_the_best_has_it_of_all_attempts(tmp_path):
    first = begin(tmp_path, monitor=("train/acc_epoch", "max"))
    for step, value in enumerate((0.5, 0.75, 0.25), 1):
        first.log(record(step, **{"train/acc": value}))
    first.finish("interrupted")
    second = begin(tmp_path, id=first.client.id, step=3, monitor=("train/acc_epoch", "max"))
    second.watch("train/acc", "max")
    second.log(record(4, **{"train/acc": 0.625}))
    second.finish("done")
    assert summary(pieces(tmp_path)[1])["summary"]["train/acc"] == {"max": 0.75, "last": 0.625}


def test_a_training_without_validation_has_the_best_of_its_metric(tmp_path):
    trainer = make(MLPTrainer.add_on(WandBLoggerAddon), monitor="acc", save_path=tmp_path, log_every="1st")
    trainer.run(3, loader())
    close(trainer._journal.readers.feeds.values(), "done")
    said, values = summary(pieces(tmp_path)[0])["summary"], trainer.history.column("train_acc")
    assert said["train/acc"] == {"max": max(values), "last": values[-1]}


KILLED = """
import os, sys, threading
from pathlib import Path
from tests.logs.loggers.test_wandb_logger import begin, record

def work():
    logger = begin(Path(sys.argv[1]))
    print(logger.client.id, flush=True)
    for step in range(1, 10**6):
        logger.log(record(step))
        if step == int(sys.argv[2]):
            os.kill(os.getpid(), 9)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("last", [pytest.param(1, marks=pytest.mark.slow), 400])
def test_nothing_is_missing_and_nothing_twice_after_kill_9(tmp_path, last):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(last)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -9
    logger = begin(tmp_path, id=killed.stdout.strip(), step=last)
    there = logger.last_step()
    assert 0 <= there <= last  # whether wandb-core, which dies then too, writes the last of it is a matter of chance
    for step in range(there + 1, last + 4):
        logger.log(record(step))
    logger.finish("done")
    assert [row["_step"] for row in rows(tmp_path)] == list(range(1, last + 4))
    assert summary(pieces(tmp_path)[1])["exit_code"] == 0
    assert summary(pieces(tmp_path)[1])["config"] == CONFIG
    assert [step for path in pieces(tmp_path) for step, _ in read_steps(path)] == list(range(1, last + 4))


def test_what_was_logged_is_in_the_file_soon(tmp_path):
    logger = begin(tmp_path)
    for step in (1, 2, 3):
        logger.log(record(step))
    (path,), until = pieces(tmp_path), time.monotonic() + 5  # wandb's own interval is 15 s
    while [step for step, _ in read_steps(path)] != [1, 2, 3]:
        assert time.monotonic() < until
        time.sleep(0.1)
    logger.finish("done")


def test_a_file_is_read_up_to_where_it_was_cut(tmp_path):
    logger = begin(tmp_path)
    for step in range(1, 201):  # more than two blocks of the file
        logger.log(record(step, bad=math.nan, text="x" * 200))
    logger.finish("done")
    (path,) = pieces(tmp_path)
    whole, cut = list(read_steps(path)), tmp_path / "cut.wandb"
    data = path.read_bytes()
    assert len(data) > 2 * 32768
    assert [step for step, _ in whole] == list(range(1, 201))
    assert whole[1][1].items() >= {"train/loss": 0.5, "lr": 0.1, "text": "x" * 200}.items()
    for size in [0, 3, 7, *range(10, len(data), 997), 32768 - 3, 32768, 32768 + 3]:
        cut.write_bytes(data[:size])
        there = [step for step, _ in read_steps(cut)]
        assert there == list(range(1, len(there) + 1))
        assert len(there) < 200 or size > len(data) - 2000  # where the summary and the end are
    cut.write_text("no such file")
    assert list(read_steps(cut)) == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"projekt": "p"}, TypeError, "no setting 'projekt'; did you mean 'project'"),
        ({"log_modle": True}, TypeError, "did you mean 'log_model'"),
        ({"log_model": "yes"}, TypeError, "must be True or False"),
        ({"mode": "of"}, ValueError, "'online', 'offline'"),
    ],
)
def test_what_wandb_does_not_take_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        WandBLogger(settings).check()


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_error(404)

    do_HEAD = do_GET = do_POST  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def silent():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed():
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{port.getsockname()[1]}"


@pytest.mark.slow
def test_a_key_without_a_network_leads_to_an_offline_run_soon(tmp_path, monkeypatch, silent):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for url, seconds in ((closed(), 6.0), (silent, 10.0)):
        before = time.monotonic()
        logger = begin(tmp_path, {"settings": {"base_url": url}})
        assert time.monotonic() - before < seconds
        assert logger.client.offline
        assert url in logger.notices[0]
        logger.finish("done")


def test_a_server_that_refuses_leads_to_an_offline_run_unless_online_was_asked_for(tmp_path, monkeypatch, refusing):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert unreachable(refusing) == ""
    settings = {"settings": {"base_url": refusing, "init_timeout": 5.0}}
    logger = begin(tmp_path, settings)
    assert logger.client.offline
    assert "Failed to authenticate" in logger.notices[0]
    logger.finish("done")
    with pytest.raises(wandb.errors.CommError):
        begin(tmp_path, {"mode": "online", **settings})


def test_where_a_key_is_found(tmp_path, monkeypatch):
    assert not has_key("https://api.wandb.ai")
    (tmp_path / "netrc").write_text(f"machine wandb.example.org login user password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert has_key("https://wandb.example.org")
    assert not has_key("https://api.wandb.ai")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert not has_key("https://api.wandb.ai")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_key("https://api.wandb.ai")


def test_online_without_a_key_is_an_error_and_no_question(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(RuntimeError, match="wandb login"):
        begin(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = begin(tmp_path)
    logger.log(record(1))
    logger.finish("done")
    assert not logger.notices
    assert not (tmp_path / "wandb").exists()


ASKED = """
import sys
from pathlib import Path
from tests.logs.loggers.test_wandb_logger import begin, record
logger = begin(Path(sys.argv[1]))
logger.log(record(1))
logger.finish("done")
"""


def test_nothing_is_asked_nor_said_in_a_terminal(tmp_path):
    ours, its = pty.openpty()
    command = [sys.executable, "-c", ASKED, str(tmp_path)]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, start_new_session=True) as process:
        os.close(its)
        said = bytearray()
        while True:
            try:
                said += os.read(ours, 4096) or b""
            except OSError:  # its end is closed
                break
        assert process.wait(60) == 0
    os.close(ours)
    assert len(rows(tmp_path)) == 1
    assert said.decode() == ""


def test_the_script_s_own_run_is_used_and_left_open(tmp_path):
    with wandb.init(mode="offline", dir=tmp_path, project="own", config={"lr": 7}) as run:
        logger = begin(tmp_path / "ours")
        assert logger.client is run
        assert logger.last_step() is None
        run.log({"mine": 1})
        logger.log(record(5))
        logger.finish("done")
        run.log({"mine": 2})
        other = begin(tmp_path / "other", {"project": "another"})
        assert other.client is not run
        assert wandb.run is run
        other.finish("done")
    assert [(row.get("mine"), row.get("step")) for row in rows(tmp_path)] == [(1, None), (None, 5), (2, None)]
    assert summary(pieces(tmp_path)[0])["config"] == {"lr": 7} | CONFIG


def test_a_run_of_its_own_is_not_left_for_one_that_the_script_opens_later(tmp_path):
    logger = begin(tmp_path)
    logger.log(record(1))
    logger.finish("done")
    with wandb.init(mode="offline", dir=tmp_path / "other", project="own") as run:
        again = begin(tmp_path, id=logger.client.id)
        assert again.client is not run
        again.log(record(2))
        again.finish("done")
        assert wandb.run is run
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_a_script_may_log_to_the_run_by_itself(tmp_path):
    logger = begin(tmp_path)
    assert wandb.run is logger.client  # as with a script's own wandb.init
    for step in (1, 2, 3):
        wandb.log({"mine": step})
        wandb.log({"mine": -step})
        logger.log(record(step))
    logger.finish("interrupted")
    assert wandb.run is None
    logger = begin(tmp_path, id=logger.client.id)
    assert logger.last_step() == 3
    logger.log(record(4))
    logger.finish("done")
    assert [row["mine"] for row in rows(tmp_path) if "mine" in row] == [1, -1, 2, -2, 3, -3]
    assert [row["step"] for row in rows(tmp_path) if "step" in row] == [1, 2, 3, 4]
    assert [row["train/loss"] for row in rows(tmp_path) if "step" in row] == [1, 1 / 2, 1 / 3, 1 / 4]


def test_what_a_script_does_not_commit_comes_with_the_record_of_its_step(tmp_path):
    class Telling(MLPTrainer):
        def metric_on_epoch_end(self):
            if self.mode == "test":
                epoch = float(self.progress_checker.get_epoch())
                picture = wandb.Image(np.full((2, 3), 100, np.uint8))
                self.loggers["wandb"].log({"mine": epoch, "picture": picture}, commit=False)
                wandb.log({"by the module": epoch}, commit=False)
                if epoch == 2:
                    wandb.log({"table": wandb.Table(columns=["a"], data=[[1]])}, commit=False)
            return {}

    trainer = make(Telling.add_on(WandBLoggerAddon), save_path=tmp_path)
    trainer.run(4, loader(), loader(11))
    close(trainer._journal.readers.feeds.values(), "done")
    found = [row for path in pieces(tmp_path) for _, row in read_steps(path)]
    for name in ("mine", "by the module"):
        assert [(row["step"], row[name]) for row in found if name in row] == [(6, 1), (12, 2), (18, 3), (24, 4)]
    assert [row["step"] for row in found if "picture/width" in row] == [6, 12, 18, 24]
    assert sum("table/_type" in row for row in found) == 1


def test_texts_and_pictures_are_in_their_row_and_late_parts_in_rows_of_their_own(tmp_path):
    logger = begin(tmp_path)
    picture = tmp_path / "weights.png"
    picture.write_bytes(png(np.full((2, 3, 1), 100, np.uint8)))
    logger.log(Record(1, 1e9, {"mine": 1.0}, {"note": "one"}, {"weights": picture}))
    logger.log(Record(1, 1e9, {"mine": 2.0}, part=1))
    logger.finish("interrupted")
    logger = begin(tmp_path, id=logger.client.id, step=1)
    assert (logger.last_step(), logger.last_part()) == (1, 1)
    logger.log(record(4))
    logger.finish("done")
    first, late, last = rows(tmp_path)
    (_, kept), *_ = (row for path in pieces(tmp_path) for row in read_steps(path))
    assert (kept["note"], kept["weights/_type"], kept["weights/width"]) == ("one", "image-file", 3)
    assert [(row["step"], row.get("mine")) for row in (first, late, last)] == [(1, 1), (1, 2), (4, None)]


def test_settings_reach_wandb_and_a_trainer_may_open_the_run(tmp_path):
    seen = []

    def init_wandb(params):
        seen.append(params)
        return wandb.init(**params)

    given = {"project": "p", "tags": ["a"], "config": {"settings": "mine"}, "id": "chosen", "dir": tmp_path / "there"}
    (tmp_path / "there").mkdir()
    logger = begin(tmp_path, {**given, "settings": wandb.Settings(x_disable_stats=True)}, init_wandb)
    logger.finish("done")
    (params,), said = seen, summary(pieces(tmp_path / "there")[0])
    assert params["settings"].x_disable_stats
    assert params["settings"].silent
    assert (said["project"], said["run_id"], said["tags"]) == ("p", "chosen", ["a"])
    assert said["config"] == CONFIG | {"settings": "mine"}
    with pytest.raises(TypeError, match="has to return the run"):
        begin(tmp_path, {}, lambda params: None)


def test_several_at_once_in_one_process(tmp_path):
    def work(number):
        logger = begin(tmp_path / str(number), {"project": "p"})
        for step in range(1, 4):
            logger.log(record(step, number=float(number)))
        logger.finish("done")

    for number in range(3):
        (tmp_path / str(number)).mkdir()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(3):
        assert [(row["_step"], row["number"]) for row in rows(tmp_path / str(number))] == [
            (s, number) for s in (1, 2, 3)
        ]


def test_the_best_model_is_an_artifact_by_option(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for option in (True, False):
        folder = tmp_path / str(option)
        folder.mkdir()
        logger = begin(folder, {"project": "p", "log_model": option})
        logger.keep_file(tmp_path / "model.safetensors")
        logger.finish("done")
        kept = lines(pieces(folder)[0], "artifact")
        assert [(artifact["type"], sorted(artifact["aliases"])) for artifact in kept] == [
            ("model", ["best", "latest"])
        ] * option


def test_a_run_s_name_is_made_a_project():
    assert valid("runs/1: a?") == "runs-1- a-"
    assert len(valid("x" * 500)) == 128
    assert valid(" ") == "zae-engine"
