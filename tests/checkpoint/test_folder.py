"""Which checkpoints there are, and which one is taken."""

import json
import os
import re
from pathlib import Path

import pytest

import zae_engine
from tests.checkpoint.making import begin, make, names, watched, writer
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.folder import (
    choose,
    committed,
    examine,
    foreign_files,
    name_of,
    next_serial,
    parse_name,
    problems_of,
    read_checkpoint,
)

QUICK = ["checkpoint/disk.py", "checkpoint/folder.py", "checkpoint/commit.py", "checkpoint/retention.py"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


def damage(path):
    (path / "state.json").write_bytes(b"{}")


@pytest.mark.parametrize("file", [*QUICK, "cli/checkpoint.py"])
def test_no_torch_is_imported_to_look_at_a_folder(file):
    source = (Path(zae_engine.__file__).parent / file).read_text(encoding="utf-8")
    assert not re.search(r"^(from|import) \S*(torch|numpy|trainer|documents|weights|codec)", source, re.MULTILINE)


def test_names():
    assert name_of(7, 420) == "000007-step-420"
    assert parse_name("1000000-step-0") == (1000000, 0)
    for name in ("7-step-1", "000007-step-01", "0000007-step-1", "000007-step-", "000007-step-1x", "x000007-step-1"):
        assert parse_name(name) is None


def test_what_is_committed_in_order(folder):
    assert committed(folder) == []
    for serial in (10, 2, 1_000_000):
        make(folder, serial)
    begin(folder, 3).write(writer())
    (folder / "000004-step-40").touch()
    (folder / "notes").mkdir()
    assert [c.serial for c in committed(folder)] == [2, 10, 1_000_000]
    assert next_serial(folder) == 1_000_001
    assert next_serial(folder / "nothing") == 1


def test_the_next_serial_is_above_what_is_damaged_or_unfinished(folder):
    make(folder, 1)
    begin(folder, 5).write(writer())
    assert next_serial(folder) == 6


def test_what_a_checkpoint_says(folder):
    made = read_checkpoint(make(folder, 4, **watched(0.5, "max", "acc")))
    assert (made.serial, made.step, made.epoch, made.processes) == (4, 40, 1, 1)
    assert made.metrics == {"loss": 0.25}
    assert made.monitored == ("acc", "max", 0.5)
    assert made.size == sum((made.path / name).stat().st_size for name in made.files)
    assert made.created.tzinfo
    assert made.file("state.json") == made.path / "state.json"
    with pytest.raises(CheckpointError, match=r"lists no file 'stat.json'; did you mean 'state.json'"):
        made.file("stat.json")


def test_what_cannot_be_read_is_empty(folder):
    path = make(folder, 1)
    odd = {"metrics": [1], "files": None, "created": 5, "epoch": "1", "monitored": {"value": "nan", "mode": "min"}}
    for text in ("[", json.dumps(odd)):
        (path / "manifest.json").write_text(text, encoding="utf-8")
        made = committed(folder)[0]
        assert (made.metrics, made.files, made.size) == ({}, {}, 0)
        assert (made.epoch, made.processes, made.created, made.monitored) == (None,) * 4


def test_a_foreign_file_is_named_and_never_loaded(folder):
    path = make(folder, 1)
    (path / "sharded" / "9.safetensors").touch()
    (path / ".DS_Store").touch()
    assert foreign_files(path) == [".DS_Store", "sharded/9.safetensors"]
    assert problems_of(path) == []
    with pytest.raises(CheckpointError, match="lists no file"):
        choose(folder)[0].file("sharded/9.safetensors")


def test_sizes_alone_are_compared_without_reading(folder):
    path = make(folder, 1)
    (path / "state.json").write_bytes(bytes(300))
    assert problems_of(path, checksums=False) == []
    assert examine(path)["state.json"] == "state.json was changed: its checksum differs"
    assert examine(path)["manifest.json"] == examine(path)["process-0.json"] == ""


def test_links_within_the_checkpoint_and_to_it_will_do(folder, tmp_path):
    path = make(folder, 1)
    os.rename(path / "state.json", path / "kept")
    (path / "state.json").symlink_to("kept")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert problems_of(tmp_path / "link" / "checkpoints" / path.name) == []


def test_the_last(folder):
    assert choose(folder) == (None, [])
    for serial in range(1, 5):
        make(folder, serial)
    damage(folder / "000004-step-40")
    (folder / "000003-step-30" / "manifest.json").unlink()
    chosen, skipped = choose(folder)
    assert chosen.serial == 2
    assert skipped == [
        "000004-step-40 is passed over: state.json has 2 bytes, and had 300 when it was written",
        "000003-step-30 is passed over: manifest.json is missing",
    ]


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 4)])
def test_the_best(folder, mode, best):
    values = {1: 5.0, 2: 1.0, 3: 1.0, 4: 9.0, 5: float("nan"), 6: 3.0}
    make(folder, 7, **watched(-100.0 if mode == "min" else 100.0, mode, "something else"))
    for serial, value in values.items():
        make(folder, serial + 10, **watched(value, mode))
    make(folder, 20)
    assert choose(folder, "best")[0].serial == best + 10
    damage(folder / name_of(best + 10, 10 * (best + 10)))
    chosen, skipped = choose(folder, "best")
    assert chosen.serial == (13 if mode == "min" else 11)
    assert len(skipped) == 1


def test_the_best_without_values(folder):
    make(folder, 1, best=True)
    make(folder, 2, best=True)
    make(folder, 3)
    assert choose(folder, "best")[0].serial == 2
    assert choose(folder / "nothing", "best") == (None, ["no checkpoint has a value that tells the best"])


def test_a_path(folder, tmp_path):
    for serial in (1, 2):
        make(folder, serial)
    damage(folder / "000002-step-20")
    os.rename(folder / "000001-step-10", tmp_path / "kept")
    assert choose(folder, tmp_path / "kept")[0].step == 10
    with pytest.raises(CheckpointError, match=r"000002-step-20' is damaged: state.json has 2 bytes"):
        choose(folder, folder / "000002-step-20")
    with pytest.raises(CheckpointError, match=r"has no whole checkpoint; 000002-step-20 is passed over"):
        choose(folder, folder.parent)
    make(folder, 1)
    for path in (folder, folder.parent, str(folder.parent)):
        chosen, skipped = choose(tmp_path / "other", path)
        assert (chosen.serial, len(skipped)) == (1, 1)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("run/checkpoints/000001-step-1", "there is no .*; did you mean .*run/checkpoints/000001-step-10'"),
        ("rum", "there is no .*; did you mean .*/run'"),
        ("notes", "notes' is no checkpoint and no run folder"),
        ("notes.txt", "notes.txt' is no checkpoint and no run folder"),
        ("empty", "has no whole checkpoint; it has none at all"),
    ],
)
def test_a_path_with_nothing(folder, tmp_path, path, match):
    make(folder, 1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=match):
        choose(folder, tmp_path / path)


def test_a_word_that_is_none(folder):
    with pytest.raises(CheckpointError, match="there is no 'bst'; did you mean 'best'"):
        choose(folder, "bst")


def test_looking_changes_nothing(folder):
    make(folder, 1)
    begin(folder, 2).write(writer())
    before = names(folder)
    choose(folder)
    assert names(folder) == before
