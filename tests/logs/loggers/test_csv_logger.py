"""``metrics.csv``: one line a record, columns that come later, a line that a crash has cut, an older run's file."""

import csv
import math

import pytest

from tests.logs.logging_helpers import START, info, odd_record, record, resume_after_kill, run_attempt
from zae_engine.logs.loggers.csv_logger import CSVLogger


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_record_is_a_line(tmp_path):
    folder = tmp_path / "a run"
    id, last = run_attempt(CSVLogger(), info(folder), [record(step) for step in range(1, 6)])
    assert (id, last) == ("metrics.csv", 0)
    kept = rows(folder / "metrics.csv")
    assert list(kept[0]) == ["step", "time", "train/loss", "lr", "samples/s", "epoch"]
    assert [int(row["step"]) for row in kept] == [1, 2, 3, 4, 5]
    assert [float(row["train/loss"]) for row in kept] == [1 / step for step in range(1, 6)]  # exact
    assert float(kept[2]["time"]) == START + 3


def test_a_column_may_come_later(tmp_path):
    logger = CSVLogger()
    logger.start(info(tmp_path))
    for each in (record(1), odd_record(2), record(3, test__acc=0.5)):
        logger.log(each)
        logger.flush()
    logger.finish("done")
    kept = rows(tmp_path / "metrics.csv")
    assert [row["test/acc"] for row in kept] == ["", "", "0.5"]
    assert [kept[1][name] for name in ("grad_norm", "test/loss", "test/gain")] == ["nan", "inf", "-inf"]
    assert math.isnan(float(kept[1]["grad_norm"]))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_goes_on_and_drops_a_cut_line(tmp_path):
    run_attempt(CSVLogger(), info(tmp_path), [record(step) for step in range(1, 6)])
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("6,17640000")
    id, last = run_attempt(
        CSVLogger(), info(tmp_path, "metrics.csv", 3), [record(step, late=1.0) for step in range(4, 9)]
    )
    assert (id, last) == ("metrics.csv", 5)
    assert [int(row["step"]) for row in rows(tmp_path / "metrics.csv")] == list(range(1, 9))  # 4 and 5 not twice
    assert [row["late"] for row in rows(tmp_path / "metrics.csv")] == [""] * 5 + ["1.0"] * 3


def test_a_new_run_keeps_the_older_file_aside(tmp_path):
    for first in (1, 11, 21):
        run_attempt(CSVLogger(), info(tmp_path), [record(first)])
    kept = {path.name: rows(path)[0]["step"] for path in tmp_path.iterdir()}
    assert kept == {"metrics-1.csv": "1", "metrics-2.csv": "11", "metrics.csv": "21"}


def test_the_path_may_be_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = info(tmp_path / "run")
    id, _ = run_attempt(CSVLogger({"path": "tables/of it.csv"}), run, [record(1)])
    assert id == str(tmp_path / "tables" / "of it.csv")
    monkeypatch.chdir(tmp_path / "run")
    assert run_attempt(CSVLogger({"path": "tables/of it.csv"}), info(tmp_path / "run", id), [record(2)]) == (id, 1)
    assert [row["step"] for row in rows(id)] == ["1", "2"]


def test_a_moved_folder_is_gone_on_with(tmp_path):
    id, _ = run_attempt(CSVLogger(), info(tmp_path / "run"), [record(1)])
    (tmp_path / "run").rename(tmp_path / "moved")
    assert run_attempt(CSVLogger(), info(tmp_path / "moved", id), [record(2)]) == (id, 1)
    assert len(rows(tmp_path / "moved" / "metrics.csv")) == 2


def test_a_file_that_is_gone_starts_from_nothing(tmp_path):
    assert run_attempt(CSVLogger(), info(tmp_path, "metrics.csv", 9), [record(1)]) == ("metrics.csv", 0)
    assert len(rows(tmp_path / "metrics.csv")) == 1


def test_a_foreign_file_is_not_touched(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no file of the csv logger"):
        CSVLogger().start(info(tmp_path, "other.csv"))
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_wrong_settings_are_refused():
    with pytest.raises(TypeError, match="csv logger has no setting 'pth'; did you mean 'path'"):
        CSVLogger({"pth": "x.csv"}).check()
    with pytest.raises(TypeError, match="path=3 of the csv logger is no path"):
        CSVLogger({"path": 3}).check()


def test_a_killed_run_goes_on(nursery, tmp_path):
    id, last = resume_after_kill(nursery, "csv", tmp_path / "a run")
    assert (id, last) == ("metrics.csv", 10)
    assert [int(row["step"]) for row in rows(tmp_path / "a run" / "metrics.csv")] == list(range(1, 61))
