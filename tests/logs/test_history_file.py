"""history.jsonl: whole lines, superseded ones, torn ones."""

import json
import math
import subprocess
import sys

import pytest

from zae_engine.logs.history_file import HistoryFile, read_history


def step(number, **values):
    return {"kind": "step", "step": number, **values}


def steps(path):
    return [line["step"] for line in read_history(path) if line["kind"] == "step"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.jsonl"


def test_lines_come_back_in_order(path):
    HistoryFile(path).append([step(1, loss=0.5), step(2, loss=0.25)])
    assert read_history(path) == read_history(path.parent) == [step(1, loss=0.5), step(2, loss=0.25)]


def test_no_file_has_no_lines(path):
    assert read_history(path) == []
    assert HistoryFile(path).count == 0


def test_nothing_is_written_for_no_lines(path):
    HistoryFile(path).append([])
    assert not path.exists()


def test_an_attempt_supersedes_the_lines_behind_its_checkpoint(path):
    file = HistoryFile(path)
    file.append([step(n) for n in (1, 2, 3)])
    file.append([{"kind": "attempt", "after": 1}, step(2), step(3)])
    assert steps(path) == [1, 2, 3]
    assert file.count == HistoryFile(path).count == path.read_bytes().count(b"\n") == 6  # nothing is ever taken away


def test_lines_that_were_passed_over_hold_again(path):
    other = {"kind": "attempt", "after": 1}
    HistoryFile(path).append([step(n) for n in (1, 2, 3)] + [other, step(2, other=True)])
    HistoryFile(path).append([{"kind": "attempt", "after": 3}, step(4)])
    assert steps(path) == [1, 2, 3, 4]
    assert all("other" not in line for line in read_history(path))


@pytest.mark.parametrize("torn", [b'{"kind": "st', b'{"kind": "step", "step": 3}', b"\xff\x00", b"3\n", b"[]\n", b"\n"])
def test_a_torn_last_line_costs_that_line_only(path, torn):
    HistoryFile(path).append([step(1), step(2)])
    path.write_bytes(path.read_bytes() + torn)
    whole = 3 if torn.endswith(b"}") else 2
    again = HistoryFile(path)
    assert again.count == whole
    again.append([{"kind": "attempt", "after": 2}, step(3)])
    assert steps(path) == [1, 2, 3]


@pytest.mark.parametrize("after", [-1, "1", None, 10**9])
def test_an_attempt_with_a_senseless_place_supersedes_nothing(path, after):
    HistoryFile(path).append([step(1), {"kind": "attempt", "after": after}, step(2)])
    assert steps(path) == [1, 2]


def test_numbers_that_json_lacks_are_text_for_every_reader(path):
    HistoryFile(path).append([step(1, loss=math.nan, more=[math.inf, (1, -math.inf)])])
    text = path.read_text()
    assert json.loads(text, parse_constant=pytest.fail)["more"] == ["inf", [1, "-inf"]]
    assert "NaN" not in text


def test_a_file_that_cannot_be_opened_keeps_the_lines_for_the_next_time(path):
    file = HistoryFile(path)
    path.mkdir()
    with pytest.raises(OSError):  # noqa: PT011  # which one depends on the system
        file.append([step(1)])
    path.rmdir()
    file.append([step(2)])
    assert steps(path) == [1, 2]
    assert file.count == 2


LIMITED = """
import resource, sys
from pathlib import Path
from zae_engine.logs.history_file import HistoryFile
file = HistoryFile(Path(sys.argv[1]))
file.append([{"kind": "row", "number": 0, "text": "x" * 100}])
size = file.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 130, resource.RLIM_INFINITY))
file.put([{"kind": "row", "number": n, "text": "x" * 100} for n in (1, 2)])
try:
    file.write()
except OSError:
    print(file.path.stat().st_size - size, file.waiting)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.write()
"""


@pytest.mark.usefixtures("starts_processes")
def test_a_write_that_is_cut_short_leaves_nothing_behind(path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0 2\n", done.stderr
    assert [line["number"] for line in read_history(path)] == [0, 1, 2]
    assert path.read_bytes().count(b"\n") == HistoryFile(path).count == 3
