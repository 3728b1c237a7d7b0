"""What a list shows of a run is the same by its summary and by its history; one of another history is not asked."""

import json
import os

import pytest

from tests.helpers import PlainTrainer, loader, make
from tests.logs.making import STARTED, attempt, end, long_run, note, point, row, steps, write
from zae_engine.checkpoint.lock import RunLock
from zae_engine.logs import listing, reading
from zae_engine.logs.listing import listed
from zae_engine.logs.runs import list_runs
from zae_engine.logs.summary import write_summary
from zae_engine.trainer.addons import StateManagerAddon

LINES = [attempt(), steps(1, loss=[1.0, 0.5]), point(2, time=STARTED + 2), row(0, 2, 0.5, test_acc="inf"),
         end(time=STARTED + 9.0625)]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    folder = write(tmp_path / "runs" / "first", LINES, [note()])
    write_summary(folder)
    return folder


@pytest.fixture
def opened(monkeypatch):
    """The names of the files of which lines were read."""
    names, lines_of = [], reading.lines_of

    def noting(path, *begin):
        names.append(path.name)
        return lines_of(path, *begin)

    monkeypatch.setattr(reading, "lines_of", noting)
    return names


def test_by_its_summary_a_run_is_the_same_as_by_its_history(folder, opened):
    kept = list_runs(folder, "test_acc")
    assert opened == []
    (folder / "summary.json").unlink()
    assert list_runs(folder, "test_acc") == kept
    assert set(opened) == {"history.jsonl"}
    assert (kept[0]["duration"], kept[0]["test_acc"], kept[0]["status"]) == (9.0625, float("inf"), "done")


def test_of_a_run_that_was_trained_too(tmp_path, opened):
    trainer = make(PlainTrainer.add_on(StateManagerAddon), save_path=tmp_path / "run")
    trainer.run(3, loader(), loader(20))
    opened.clear()
    kept = list_runs(tmp_path)
    assert opened == []
    assert (kept[0]["epochs"], kept[0]["steps"], kept[0]["status"]) == (3, 18, "done")
    (tmp_path / "run" / "summary.json").unlink()
    assert list_runs(tmp_path) == kept
    trainer.run(1, loader(), loader(20))
    assert [row["epochs"] for row in list_runs(tmp_path)] == [4]


def test_a_history_that_goes_on_is_read(folder):
    for more, steps_now in ((row(1, 4, 0.25), 4), (attempt(2, after=5, step=4), 4), (steps(5, loss=[0.1]), 5)):
        with open(folder / "history.jsonl", "a") as file:
            file.write(json.dumps(more) + "\n")
        os.utime(folder / "history.jsonl", ns=(0, 0))
        assert list_runs(folder)[0]["steps"] == steps_now


@pytest.mark.parametrize("name", ["history.jsonl", "run.json"])
def test_files_that_were_changed_since_are_read(folder, opened, name):
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace("0.5", "0.1"))
    os.utime(folder / "summary.json", ns=(0, 0))
    assert list_runs(folder)[0]["best"] == (0.1 if name == "history.jsonl" else 0.5)
    assert set(opened) == {"history.jsonl"}


def test_a_run_that_goes_on_is_running(folder):
    with RunLock(folder):
        assert list_runs(folder)[0]["status"] == "running"


def test_a_run_without_an_end_keeps_nothing_for_lists(tmp_path):
    folder = write(tmp_path / "killed", LINES[:-1], [note()])
    write_summary(folder)
    assert "listed" not in json.loads((folder / "summary.json").read_text())
    assert list_runs(folder)[0]["status"] == "broken off"


@pytest.mark.parametrize("part", ["of", "values", "last"])
@pytest.mark.parametrize("value", [None, 3, [], {"status": "done"}, {"x": "y"}, {"x": None}, {"x": {}}])
def test_what_is_not_of_its_kind_is_not_believed(folder, opened, part, value):
    before = list_runs(folder)
    summary = json.loads((folder / "summary.json").read_text())
    summary["listed"][part] = value
    (folder / "summary.json").write_text(json.dumps(summary))
    assert list_runs(folder) == before
    assert opened


def test_the_numbers_of_the_steps_are_not_parsed_for_a_list(tmp_path, monkeypatch):
    folder, read = long_run(tmp_path / "long", 20_000), []
    texts = reading._read_at_once

    def noting(lines):
        read.extend(map(len, lines))
        return texts(lines)

    monkeypatch.setattr(reading, "_read_at_once", noting)
    found = listed(folder)
    assert found == listing.listed_of(reading.read_run(folder))
    assert sum(read[: len(read) // 2]) * 20 < sum(read[len(read) // 2 :])


def test_the_last_step_of_a_run_that_was_killed_is_known(tmp_path):
    lost = [attempt(), steps(1, loss=[1.0] * 9), steps(10, loss=[1.0])]
    again = [attempt(2, after=1, step=4), steps(5, loss=[1.0, None, 1.0, None]), steps(9, loss=[None])]
    for lines, last in ((lost, 10), (lost + again, 7), ([attempt(), {"kind": "step", "step": 3, "loss": 1.0}], 3)):
        folder = write(tmp_path / str(last), lines, tail=b'{"kind": "steps", "epoch": 1, "first": 20, "values": {"lo')
        assert reading.glance(folder).step == reading.read_run(folder).step == last
