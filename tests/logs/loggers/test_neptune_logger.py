"""Neptune by its real client, offline; what it wrote is read back by its own classes, as its `sync` and `status` do."""

import base64
import importlib.util
import inspect
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.logs.logging_helpers import with_own
from zae_engine.logs.loggers.logger import Record, RunInfo
from zae_engine.logs.loggers.neptune_logger import INIT_RUN, NeptuneLogger, container, server_of

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("neptune") is None, reason="neptune is not installed"),
    pytest.mark.filterwarnings(r"ignore:jsonschema\.RefResolver is deprecated:DeprecationWarning"),
]

CONFIG = {"settings": {"lr": 0.1, "momentum": None}, "launch": {"num_processes": 2}, "git": "0123abc"}


@pytest.fixture(autouse=True)
def _nobody(monkeypatch):
    for name in [name for name in os.environ if name.startswith("NEPTUNE_")]:
        monkeypatch.delenv(name)


def begin(folder, settings=None, open_client=None, **values):
    logger = NeptuneLogger(settings, open_client)
    logger.check()
    said = {"folder": Path(folder), "name": "a run/1", "config": CONFIG} | values
    logger.id = logger.start(RunInfo(**said))
    return logger


def record(step, **values):
    return Record(step, 1e9 + step, {"train/loss": 1 / step, "lr": 0.1} | values)


def runs(folder):
    """The offline runs of a folder, and the pieces of each, as `neptune sync` collects them."""
    from neptune.cli.collect import collect_offline_containers

    found = collect_offline_containers(path=Path(folder) / ".neptune")
    return {run.container_id: [piece.path for piece in run.execution_dirs] for run in found}


def operations(path):
    from neptune.core.components.queue.disk_queue import DiskQueue
    from neptune.internal.operation import Operation

    queue = DiskQueue(path, lambda operation: operation.to_dict(), Operation.from_dict, threading.RLock())
    try:
        return [element.obj for element in queue.get_batch(10**6)]
    finally:
        queue.close()


def read(folder):
    """Series as pairs of step and value, and single values, of the only run of a folder."""
    (pieces,) = runs(folder).values()
    series, single = defaultdict(list), {}
    for path in sorted(pieces, key=lambda piece: piece.stat().st_mtime_ns):
        for operation in operations(path):
            name = "/".join(operation.path)
            if type(operation).__name__ == "LogFloats":
                series[name] += [(value.step, value.value) for value in operation.values]
            elif hasattr(operation, "value"):
                single[name] = operation.value
    return {name: sorted(values) for name, values in series.items()}, single


def test_without_settings_there_is_an_offline_run_that_neptune_reads(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, got = tmp_path / "run", []

    def work():  # as every logger: not in the main thread
        logger = begin(folder)
        for step in range(1, 4):
            logger.log(record(step, bad=math.nan if step == 2 else math.inf if step == 3 else 1.0))
        logger.flush()
        assert read(folder)[0]["lr"] == [(1, 0.1), (2, 0.1), (3, 0.1)]
        logger.summarize({"seconds": 2.5, "best": {"value": 0.5}, "reason": None})
        logger.finish("done")
        got.append(logger)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    (logger,), (series, single) = got, read(folder)
    assert series["train/loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert series["bad"] == [(1, 1.0)]
    assert (
        single.items() >= {"config/settings/lr": 0.1, "config/launch/num_processes": 2, "config/git": "0123abc"}.items()
    )
    assert single.items() >= {"sys/name": "a run/1", "sys/failed": False, "status": "done"}.items()
    assert single.items() >= {"summary/seconds": 2.5, "summary/best/value": 0.5}.items()
    assert [sentence.split(",")[0] for sentence in logger.notices] == [
        "Neptune's hosted service was shut down on 2026-03-05 and no token of a self-hosted server is given",
        "Neptune takes neither NaN nor infinities",
    ]
    assert f"zae logs export {folder}" in logger.notices[0]
    assert list(tmp_path.iterdir()) == [folder]
    assert "NEPTUNE_DATA_DIRECTORY" not in os.environ
    assert capfd.readouterr() == ("", "")


def test_neptune_s_status_lists_one_run_of_all_attempts(tmp_path, capsys):
    from neptune.cli.status import StatusRunner
    from neptune.internal.backends.offline_neptune_backend import OfflineNeptuneBackend

    first = begin(tmp_path)
    for step in (1, 2, 3):
        first.log(record(step))
    first.finish("failed")
    assert read(tmp_path)[1]["sys/failed"] is True
    second = begin(tmp_path, id=first.id, step=3)
    assert second.id == first.id
    for step in range(second.last_step() + 1, 6):
        second.log(record(step, late=1.0))
    second.finish("done")
    series, single = read(tmp_path)
    assert [step for step, _ in series["lr"]] == [1, 2, 3, 4, 5]
    assert (single["sys/failed"], single["status"]) == (False, "done")
    assert [len(pieces) for pieces in runs(tmp_path).values()] == [2]
    capsys.readouterr()
    # the command itself first asks a server, even for what is only on this disk
    StatusRunner.status(backend=OfflineNeptuneBackend(), path=tmp_path / ".neptune")
    assert capsys.readouterr().out.count(f"offline/{first.id}") == 1


KILLED = """
import os, sys, threading
from tests.logs.loggers.test_neptune_logger import begin, record

def work():
    logger = begin(sys.argv[1])
    print(logger.id, flush=True)
    for step in range(1, 10**6):
        logger.log(record(step))
        if step == int(sys.argv[2]):
            os.kill(os.getpid(), 9)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("last", [pytest.param(1, marks=pytest.mark.slow), 177])
def test_nothing_is_missing_and_nothing_twice_after_kill_9(tmp_path, last):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(last)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -9
    logger = begin(tmp_path, id=killed.stdout.strip(), step=last)
    there = logger.last_step()
    assert there == last - 1  # the last one once more, since it might be there in part
    for step in range(there + 1, last + 4):
        logger.log(record(step))
    logger.finish("done")
    for values in read(tmp_path)[0].values():
        assert [step for step, _ in values] == list(range(1, last + 4))


def test_a_record_that_is_there_in_part_is_completed(tmp_path):
    first = begin(tmp_path)
    first.log(record(1))
    first.log(Record(2, 1e9, {"train/loss": 0.5}))  # as if killed before the others were written
    first.finish("interrupted")
    second = begin(tmp_path, id=first.id, step=2)
    for step in range(second.last_step() + 1, 4):
        second.log(record(step))
    second.finish("done")
    series, _ = read(tmp_path)
    assert series == {"train/loss": [(1, 1.0), (2, 0.5), (3, 1 / 3)], "lr": [(1, 0.1), (2, 0.1), (3, 0.1)]}


FORKED = """
import os, sys
from tests.logs.loggers.test_neptune_logger import begin, record
logger = begin(sys.argv[1])
for step in range(1, 10):
    logger.client["lr"].append(0.1, step=step)  # which waits to be written
    if os.fork() == 0:  # as the workers of a loader are started
        os._exit(0)
    os.wait()
logger.finish("done")
"""


def test_texts_and_pictures_are_series_and_come_once(tmp_path):
    logger = begin(tmp_path)
    for step in (1, 2):
        logger.log(with_own(tmp_path, step))
    logger.finish("interrupted")
    again = begin(tmp_path, id=logger.id)
    for step in (2, 3):  # it cannot tell whether a record is there in whole, and is given the last one again
        again.log(with_own(tmp_path, step))
    again.finish("done")
    assert again.last_step() == 1
    (kept,) = runs(tmp_path).values()
    every = [each for path in kept for each in operations(path) if "/".join(each.path) in ("note", "weights")]
    there = [(type(each).__name__, value.step) for each in every for value in each.values]
    assert sorted(there) == [(kind, step) for kind in ("LogImages", "LogStrings") for step in (1, 2, 3)]


@pytest.mark.usefixtures("starts_processes")
def test_forked_workers_write_nothing_twice(tmp_path):
    done = subprocess.run([sys.executable, "-c", FORKED, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert [step for step, _ in read(tmp_path)[0]["lr"]] == list(range(1, 10))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"project_nam": "p"}, TypeError, "no setting 'project_nam'; did you mean 'project_name'"),
        ({"api_tokn": "p"}, TypeError, "did you mean 'api_token'"),
        ({"project": "a/b", "project_name": "a/b"}, TypeError, "its old name"),
        ({"mode": "read-only"}, ValueError, "'offline', 'async'"),
        ({"log_model": 1}, TypeError, "must be True or False"),
    ],
)
def test_what_neptune_does_not_take_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        NeptuneLogger(settings).check()


def test_the_names_of_settings_are_neptune_s():
    import neptune

    known = [name for name, p in inspect.signature(neptune.init_run).parameters.items() if p.kind != p.VAR_KEYWORD]
    assert sorted(INIT_RUN) == sorted(known)


def token(url, **more):
    return base64.b64encode(json.dumps({"api_address": url, "api_key": "k"} | more).encode()).decode()


@pytest.mark.parametrize(
    ("given", "server"),
    [
        (token("https://app.neptune.ai", api_url="https://app.neptune.ai"), None),
        (token("https://neptune.ai"), None),
        (token("https://neptune.example.org"), "https://neptune.example.org"),
        (token("https://notneptune.ai"), "https://notneptune.ai"),
        (token("http://a", api_url="http://b:8080"), "http://b:8080"),
        ("your_api_token", None),
        ("ANONYMOUS", None),
        (base64.b64encode(b"[1]").decode(), None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_token_of_a_self_hosted_server_names_one(given, server):
    assert server_of(given) == server


def test_a_token_of_the_service_that_is_no_more_does_no_harm(tmp_path):
    old = {"project_name": "workspace/project", "api_tkn": token("https://app.neptune.ai"), "mode": "async"}
    logger = begin(tmp_path, old)
    logger.log(record(1))
    logger.finish("done")
    assert "shut down on 2026-03-05" in logger.notices[0]
    assert read(tmp_path)[0]["lr"] == [(1, 0.1)]


@pytest.mark.slow
def test_a_server_that_does_not_answer_costs_seconds_only(tmp_path, monkeypatch):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("NEPTUNE_API_TOKEN", token(url))
        before = time.monotonic()
        logger = begin(tmp_path, {"project": "a/b"})
        assert time.monotonic() - before < 8
    logger.finish("done")
    assert url in logger.notices[0]
    assert len(runs(tmp_path)) == 1


def test_a_trainer_may_open_the_run(tmp_path):
    import neptune

    seen = []

    def init_neptune(params):
        seen.append(params)
        return neptune.init_run(**params)

    logger = begin(tmp_path, {"tags": ["a"], "api_tkn": "x", "capture_traceback": True}, init_neptune)
    logger.log(record(1))
    logger.flush()
    logger.finish("interrupted")
    (params,) = seen
    assert params["tags"] == ["a"]
    assert (params["api_token"], params["mode"], params["capture_traceback"]) == ("x", "offline", True)
    assert read(tmp_path)[1]["status"] == "interrupted"
    assert logger.last_step() is None
    with pytest.raises(TypeError, match=r"return the run: neptune\.init_run"):
        begin(tmp_path, {}, lambda params: None)


def test_the_best_model_by_option(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    logger = begin(tmp_path, {"log_model": True})
    logger.keep_file(tmp_path / "model.safetensors")
    logger.finish("done")
    ((piece,),) = runs(tmp_path).values()
    files = [o.file_path for o in operations(piece) if type(o).__name__ == "UploadFile" and o.path == ["model", "best"]]
    assert files == [str(tmp_path / "model.safetensors")]


def test_an_id_of_one_s_own_is_made_a_folder_s_name():
    assert container("abc-1") == "abc-1"
    assert len(container("a__b/c")) == 32
    assert container("a__b/c") == container("a__b/c")
