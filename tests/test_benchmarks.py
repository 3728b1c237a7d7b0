"""The benchmarks run, and what they compare does the same work; their figures mean nothing here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.gpu import probes
from tests.benchmarks.gpu.__main__ import parse_arguments

ROOT = Path(__file__).parents[1]


@pytest.fixture
def quick(tmp_path):
    """Runs a benchmark quickly, and returns what it found."""

    def run(name, *more):
        file = tmp_path / f"{name}.json"
        command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--quick", "--json", str(file), *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = json.loads(file.read_text(encoding="utf-8"))
        return found, done.stdout

    return run


def names(rows):
    assert all(row["us"] > 0 for row in rows)
    return [row["row"] for row in rows]


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_processes(quick):
    found, shown = quick("processes")
    for rows in found["models"].values():
        assert {"ddp", "zae-engine", "ddp+clip", "zae-engine+clip", "accelerate"} <= set(names(rows))
        assert max(row["weight_difference"] for row in rows) < 1e-5
    assert "note:" not in shown


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_skipping(quick):
    found, _ = quick("skipping")
    assert len(found) == 4
    for rows in found.values():
        assert names(rows)[:2] == ["from 0", "from 10,000"]


@pytest.mark.usefixtures("starts_processes")
def test_seeded(quick):
    found, _ = quick("seeded")
    assert list(found) == ["0", "2"]
    for rows in found.values():
        assert names(rows)[:2] == ["TensorDataset", "TensorDataset, seeded"]
        assert len(rows) == 10


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_shards(quick):
    found, _ = quick("shards")
    assert list(found) == ["1 process", "2 processes"]
    for models in found.values():
        (rows,) = models.values()
        assert {"plain", "shards=4", "shards=8"} <= set(names(rows))


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_saving(quick):
    found, _ = quick("saving")
    (rows,) = found.values()
    assert [row["row"] for row in rows][::2] == ["torch.save", "checkpoint"]
    assert all(0.9 < row["size"] < 1.5 for row in rows[2:])
    assert all(row["told_ms"] > 0 for row in rows[2:])


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_restarting(quick):
    found, _ = quick("restarting")
    assert list(found) == ["in order", "shuffled"]
    for rows in found.values():
        assert names(rows)[:4] == ["verifying", "loading", "history", "order"]


@pytest.mark.usefixtures("starts_processes")
def test_command_line(quick):
    found, _ = quick("command_line")
    (rows,) = found.values()
    assert names(rows)[2:] == ["zae --help", "zae runs", "zae runs, killed", "zae report"]
    assert all(row["processor_us"] > 0 for row in rows)


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_long_run(quick):
    found, _ = quick("long_run")
    assert {"step 1: resume", "long epoch: resume", "short epochs: resume", "long epoch: picture"} <= found.keys()
    assert 15 < found["long epoch: history, bytes a step"] < 30


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_loggers(quick):
    found, _ = quick("loggers")
    (rows,) = found.values()
    assert names(rows) == ["no add-on", "csv"]
    assert [list(row["start_s"]) for row in rows] == [[], ["csv"]]
    assert all(min(row["cpu_us"], row["thread_us"]) > 0 and row["end_s"] >= 0 for row in rows)


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_gpu_on_a_cpu(quick):
    found, shown = quick("gpu", "--device", "cpu")
    assert [len(rows) for rows in found["rows"].values()] == [4, 4, 6, 3, 3, 3]
    for rows in found["rows"].values():
        assert {"by hand", "by hand, once more", "zae-engine"} <= set(names(rows))
        # The trainer trains what the loop by hand does, to the bit; a fused optimizer is another one.
        assert all(row["same_bits"] for row in rows if row["row"].startswith("zae-engine"))
    assert found["left out"] == []
    assert "the figures say nothing" in shown


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_gpu_leaves_out_what_does_not_fit(quick):
    found, shown = quick("gpu", "--device", "cpu", "--seconds", "-1")
    assert set(map(len, found["rows"].values())) == {0}
    assert "left out: tiny MLP, bf16, eager: it takes about 0 s, and 0 s are left (--seconds)" in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_says_what_to_write_where_there_is_none():
    with pytest.raises(SystemExit, match=r"there is no GPU here .* write --device cpu to try the script"):
        parse_arguments([])


@pytest.mark.parametrize(
    ("spans", "share"),
    [([], None), ([(1, 1)], None), ([(0, 4)], 0), ([(3, 4), (0, 1)], 0.5), ([(0, 10), (2, 3), (15, 20)], 0.25)],
)
def test_the_share_of_the_time_in_which_a_device_is_idle(spans, share):
    assert probes.idle_share(spans) == share


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_compare(quick):
    found, shown = quick("compare")
    cells = found["cells"]
    assert list(cells) == ["step", "clip", "eval", "micro", "processes", "weights", "import"]
    assert all(value > 0 for column in cells.values() for value in column.values())
    assert all({"zae-engine", "accelerate"} <= set(column) for column in cells.values())
    assert cells["weights"]["zae-engine"] < 1e-6 < cells["weights"]["accelerate"]
    assert not [note for note in found["notes"] if "weights" in note]
    table = [line for line in shown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {len(cells) + 2}
    assert len(table) >= 6
