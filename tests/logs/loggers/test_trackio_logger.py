"""Runs of Trackio, read back from its database."""

import importlib.util
import json
import sqlite3
import sys

import pytest

from tests.logs.logging_helpers import info, odd_record, record, resume_after_kill, run_attempt, with_own
from zae_engine.logs.loggers.trackio_logger import TrackioLogger

if importlib.util.find_spec("trackio") is None:
    pytest.skip("trackio is not installed", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def database(tmp_path_factory):
    """A folder of the tests' own, for processes that they start as well: Trackio reads the variable at its import."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            patch.delenv(name, raising=False)
        if "trackio" not in sys.modules:
            patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("track io")))
        from trackio.utils import TRACKIO_DIR

        patch.setenv("TRACKIO_DIR", str(TRACKIO_DIR))
        yield TRACKIO_DIR


@pytest.fixture
def project(request):
    name = request.node.name.replace("_", " ")
    yield name
    import trackio

    trackio.delete_project(name, force=True)


def logger(project, **settings):
    return TrackioLogger({"project": project, "auto_log_cpu": False, "auto_log_gpu": False} | settings)


def rows(database, project, id):
    """``(step, values)`` as they lie in the database."""
    with sqlite3.connect(database / f"{project.replace(' ', '')}.db") as connection:
        found = connection.execute(
            "SELECT step, metrics FROM metrics WHERE run_id = ? ORDER BY rowid", (id,)
        ).fetchall()
    connection.close()
    return [(step, json.loads(values)) for step, values in found]


def runs(project):
    import trackio

    return {run.name: run for run in trackio.Api().runs(project)}


def test_every_record_is_read_back(tmp_path, database, project):
    id, last = run_attempt(logger(project), info(tmp_path / "a run"), [record(step) for step in range(1, 6)])
    assert last == 0
    kept = rows(database, project, id)
    assert kept == [(step, record(step).values) for step in range(1, 6)]
    assert runs(project)["digits"].id == id
    assert runs(project)["digits"].config["settings"]["the optimizer"] == {"name": "SGD", "nesterov": False}


def test_a_resumed_run_goes_on(tmp_path, database, project):
    id, _ = run_attempt(logger(project), info(tmp_path), [record(step) for step in range(1, 6)], "interrupted")
    runs(project)["digits"].rename("renamed")
    again, last = run_attempt(logger(project), info(tmp_path, id, 3), [record(step) for step in range(4, 9)])
    assert (again, last) == (id, 5)
    assert [step for step, _ in rows(database, project, id)] == list(range(1, 9))
    assert list(runs(project)) == ["renamed"]


def test_texts_and_pictures_are_kept(tmp_path, database, project):
    id, _ = run_attempt(logger(project), info(tmp_path), [with_own(tmp_path, step) for step in (1, 2)])
    kept = rows(database, project, id)
    assert [(step, values["note"]) for step, values in kept] == [(1, "step 1"), (2, "step 2")]
    assert [values["weights"]["_type"] for _, values in kept] == ["trackio.image"] * 2


def test_what_is_no_number_is_kept_as_text(tmp_path, database, project):
    id, _ = run_attempt(logger(project), info(tmp_path), [odd_record(1)])
    values = rows(database, project, id)[0][1]
    assert [values[name] for name in ("grad_norm", "test/loss", "test/gain")] == ["NaN", "Infinity", "-Infinity"]


def test_a_new_run_has_a_name_of_its_own_and_says_where_it_is(tmp_path, database, project):
    first = logger(project)
    ids = [run_attempt(first, info(tmp_path), [record(1)])[0], run_attempt(logger(project), info(tmp_path), [])[0]]
    third = run_attempt(logger(project), info(tmp_path), [record(2)])[0]
    assert len({*ids, third}) == 3
    assert {"digits", "digits-2"} <= set(runs(project))
    assert first.notices == [f"the run is 'digits' of the project {project!r} in {database} (`trackio show` shows it)"]


def test_a_run_that_is_gone_is_begun_anew(tmp_path, database, project):
    run_attempt(logger(project), info(tmp_path), [record(1)])
    later = logger(project)
    id, last = run_attempt(later, info(tmp_path, "0" * 32, 7), [record(2)])
    assert (last, [step for step, _ in rows(database, project, id)]) == (0, [2])
    assert "has no run 000" in later.notices[0]


def test_a_younger_run_of_the_name_is_left_alone(tmp_path, database, project):
    import trackio

    id, _ = run_attempt(logger(project), info(tmp_path), [record(1)])
    trackio.init(project=project, name="digits", embed=False, auto_log_cpu=False, auto_log_gpu=False).log({"a": 1.0})
    trackio.finish()
    with pytest.raises(RuntimeError, match="has a younger run 'digits'"):
        run_attempt(logger(project), info(tmp_path, id, 1), [record(2)])
    assert [step for step, _ in rows(database, project, id)] == [1]


def test_a_users_own_run_stays_open(tmp_path, database, project):
    import trackio

    own = trackio.init(project=project, name="mine", embed=False, auto_log_cpu=False, auto_log_gpu=False)
    run_attempt(logger(project), info(tmp_path), [record(1)])
    trackio.log({"a": 1.0}, step=5)
    trackio.finish()
    assert rows(database, project, own.id) == [(5, {"a": 1.0})]


def test_the_best_weights_are_an_artifact_by_option(tmp_path, project):
    import trackio

    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    for keep in (False, True):
        keeper = logger(project, log_model=keep)
        keeper.start(info(tmp_path))
        keeper.keep_file(weights)
        keeper.finish("done")
    found = trackio.sqlite_storage.SQLiteStorage.list_artifacts(project)
    assert [artifact["name"] for artifact in found] == ["model.safetensors"]


def test_what_is_not_written_is_told(tmp_path, database, project, monkeypatch):
    monkeypatch.setattr("zae_engine.logs.loggers.trackio_logger._PATIENCE", 0.2)
    stuck = logger(project)
    stuck.start(info(tmp_path))
    stuck.finish("done")
    stuck._offered = 9  # as if its thread had lost a record
    with pytest.raises(RuntimeError, match="kept nothing after step 0"):
        stuck.flush()


def test_wrong_settings_are_refused():
    with pytest.raises(TypeError, match="no setting 'spaceid'; did you mean 'space_id'"):
        TrackioLogger({"spaceid": "x"}).check()
    with pytest.raises(TypeError, match="project='' of the trackio logger is no name"):
        TrackioLogger({"project": ""}).check()


def test_a_killed_run_goes_on(nursery, tmp_path, database, project):
    settings = {"project": project, "auto_log_cpu": False, "auto_log_gpu": False}
    id, last = resume_after_kill(nursery, "trackio", tmp_path / "a run", settings)
    assert 10 <= last < 60
    assert [step for step, _ in rows(database, project, id)] == list(range(1, 61))
