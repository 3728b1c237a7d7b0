"""Lines are counted without parsing each of them, and yet as if they were."""

import pytest

from tests.logs.making import attempt, long_run, point, row
from zae_engine.logs import history_file
from zae_engine.logs.history_file import HistoryFile, held, parsed

ODD = {"a}": 1.5, 'b"}': "nan", "c{": {"d}": [2]}, "}": None, "}{": 1.0, "손실": 2}


def counted(path):
    """What the file counts, and what parsing each line would."""
    lines = [line for text in path.read_bytes().split(b"\n") if (line := parsed(text)) is not None]
    resumes = [line["step"] for line in held(lines) if line.get("kind") == "attempt" and line.get("after")]
    file = HistoryFile(path)
    return (file.count, file.resumes), (len(lines), resumes)


def test_wherever_a_crash_has_cut_the_file_the_count_is_that_of_its_whole_lines(tmp_path):
    whole = tmp_path / "history.jsonl"
    steps = [{"kind": "steps", "first": i, "values": {key: [value]}} for i, (key, value) in enumerate(ODD.items())]
    others = [{"kind": "point", "step": i, "train": {key: value}} for i, (key, value) in enumerate(ODD.items())]
    rows = [row(0, 2, test_acc="nan"), {"kind": "row", **ODD}]
    HistoryFile(whole).append([*steps, attempt(2, 2, 5), *others, *rows, attempt(3, 99, 6), *steps[:2]])
    content, cut = whole.read_bytes(), tmp_path / "cut.jsonl"
    counts = set()
    for end in range(len(content)):
        cut.write_bytes(content[:end] + b"\n" + content[end:])
        found, wanted = counted(cut)
        assert found == wanted, content[:end][-40:]
        counts.add(found[0])
    assert len(counts) > 1


@pytest.mark.parametrize("lost", [b"\0" * 60, b"\xff" * 60, b""])
def test_what_a_power_cut_has_put_together_is_no_line(tmp_path, lost):
    path = tmp_path / "history.jsonl"
    HistoryFile(path).append([point(1), row(0, 1), row(1, 2), point(3)])
    content = path.read_bytes()
    for begin in range(0, len(content) - 60, 7):
        path.write_bytes(content[:begin] + lost + content[begin + 60 :] if lost else content[:begin])
        assert counted(path)[0] == counted(path)[1]


def test_resumes_are_known_of_lines_that_were_only_put(tmp_path):
    file = HistoryFile(tmp_path / "history.jsonl")
    file.put([attempt(), point(2), point(4), attempt(2, 2, 2), point(3), attempt(3, 5, 3)])
    assert file.resumes == [2, 3]
    file.put([attempt(4, 2, 2)])
    assert file.resumes == [2]
    file.write()
    assert HistoryFile(tmp_path / "history.jsonl").resumes == [2]


def test_of_a_long_history_attempts_alone_are_parsed(tmp_path, monkeypatch):
    folder, read = long_run(tmp_path / "long", 20_000), []

    def noting(text):
        read.append(text)
        return parsed(text)

    monkeypatch.setattr(history_file, "parsed", noting)
    assert HistoryFile(folder / "history.jsonl").count == 62
    assert [text[:18] for text in read] == [b'{"kind": "attempt"']
