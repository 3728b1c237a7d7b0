"""Lines are counted without parsing each of them, and yet as if they were."""

from zae_engine.logs.history_file import HistoryFile, parsed

ODD = {"a}": 1.5, 'b"}': "nan", "c{": {"d}": [2]}, "}": None}


def test_wherever_a_crash_has_cut_the_file_the_count_is_that_of_its_whole_lines(tmp_path):
    whole = tmp_path / "history.jsonl"
    steps = [{"kind": "steps", "first": i, "values": {key: [value]}} for i, (key, value) in enumerate(ODD.items())]
    HistoryFile(whole).append([*steps, {"kind": "attempt", "after": 2}, *steps, {"kind": "attempt", "after": 99}])
    content, cut = whole.read_bytes(), tmp_path / "cut.jsonl"
    counts = set()
    for end in range(len(content)):
        cut.write_bytes(content[:end] + b"\n" + content[end:])
        counts.add(HistoryFile(cut).count)
        lines = cut.read_bytes().split(b"\n")
        assert HistoryFile(cut).count == sum(parsed(line) is not None for line in lines), content[:end][-40:]
    assert len(counts) > 1
