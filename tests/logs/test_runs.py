"""Runs as a list: sorted by anything, with what is missing last, for people and for scripts."""

import json
import math

import pytest

from tests.logs.making import STARTED, attempt, end, note, point, row, write
from zae_engine.checkpoint.lock import RunLock
from zae_engine.cli import main
from zae_engine.logs.reading import RunFolderError
from zae_engine.logs.runs import COLUMNS, list_runs


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, loss, acc in (("b", 0.5, 0.9), ("a", 0.25, 0.8), ("deep/c", 0.75, None)):
        more = {} if acc is None else {"test_acc": acc}
        lines = [attempt(), row(0, 10, loss, **more), point(10, time=STARTED + 2), end(time=STARTED + 100 * loss)]
        write(tmp_path / "runs" / name, lines, [note()])
    write(tmp_path / "runs" / "new", [], [note("acc (max)")])
    write(tmp_path / "runs" / "odd", [attempt(), row(0, 5, "nan")], [note()])
    return tmp_path / "runs"


@pytest.fixture
def zae(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(("runs", *map(str, arguments)))
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def names(*options, **more):
    return [row["name"] for row in list_runs(*options, **more)]


def test_a_row_tells_the_run(runs):
    row = next(row for row in list_runs(runs) if row["name"] == "a")
    assert row == {"name": "a", "status": "done", "epochs": 1, "steps": 10, "best": 0.25, "test_loss": 0.25,
                   "train_loss": 0.1, "lr": 0.001, "duration": 25.0, "started": "2025-11-24T16:00:00+00:00",
                   "samples/s": 16.0, "folder": str(runs / "a"), "best_name": "test_loss"}  # fmt: skip


def test_any_column_sorts_and_what_is_missing_comes_last(runs):
    assert names(runs) == ["a", "b", "deep/c", "new", "odd"]
    assert names(runs, reverse=True) == ["odd", "new", "deep/c", "b", "a"]
    assert names(runs, "test_loss") == ["a", "b", "deep/c", "new", "odd"]
    assert names(runs, "best", reverse=True) == ["deep/c", "b", "a", "new", "odd"]
    assert names(runs, "test_acc", reverse=True) == ["b", "a", "deep/c", "new", "odd"]
    for column in COLUMNS:
        assert sorted(names(runs, column)) == ["a", "b", "deep/c", "new", "odd"]
    assert math.isnan(list_runs(runs)[-1]["test_loss"])


def test_a_column_that_no_run_has_is_refused(runs, zae):
    code, _, err = zae("runs", "--sort", "tset_acc")
    assert code == 2
    assert err.startswith("zae: no run has a column 'tset_acc'; there are name, status, epochs, steps, best, ")
    assert err.endswith("; did you mean 'test_acc'?\n")


def test_a_table(runs, zae):
    code, out, err = zae("runs", "--sort", "test_acc", "-r")
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == [name.upper() for name in (*COLUMNS[:7], "test_acc", *COLUMNS[7:])]
    assert [line.split()[0] for line in lines] == ["b", "a", "deep/c", "new", "odd"]
    assert lines[0].split()[:9] == ["b", "done", "1", "10", "test_loss", "0.5", "0.5", "0.1", "0.9"]
    ends = {line.index(cell) + len(cell) for line, cell in zip(lines, ("0.9  ", "0.8  "), strict=False)}
    assert ends == {head.index("TEST_ACC") + len("TEST_ACC  ")}
    assert {len(line) for line in lines} == {len(head)}


def test_a_script_gets_json(runs, zae):
    code, out, _ = zae("runs", "--json")
    rows = json.loads(out, parse_constant=pytest.fail)
    assert code == 0
    assert [row["best"] for row in rows] == [0.25, 0.5, 0.75, None, None]
    assert (rows[4]["test_loss"], rows[3]["status"]) == ("nan", "broken off")


def test_one_run_s_folder_and_the_current_one(runs, zae, monkeypatch):
    assert names(runs / "deep" / "c") == ["c"]
    monkeypatch.chdir(runs / "a")
    assert zae()[1].splitlines()[1].startswith("a ")


def test_a_run_that_goes_on(runs):
    with RunLock(runs / "a"):
        assert list_runs(runs)[0]["status"] == "running"


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(runs, zae):
    write(runs / "a", [], tail=b"\x00\x00")
    (runs / "a" / "run.json").write_bytes(b"{")
    write(runs / "broken", [], tail=b"{")
    code, out, err = zae("runs")
    assert (code, len(out.splitlines())) == (0, 7)
    assert out.splitlines()[3].split()[:2] == ["broken", "unreadable"]
    assert "broken' has a history.jsonl in which no line can be read" in err


def test_no_run_is_an_error(tmp_path, zae):
    with pytest.raises(RunFolderError, match="there is no"):
        list_runs(tmp_path / "nowhere")
    code, out, err = zae(tmp_path)
    assert (code, out) == (2, "")
    assert "is empty; a run folder has a history.jsonl" in err
