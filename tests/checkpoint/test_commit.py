"""One checkpoint by several real processes: all of it, or none, and why."""

import errno
import json
import os
import stat
import time
from functools import partial

import numpy as np
import pytest

import zae_engine.checkpoint.commit as module
from tests.checkpoint.making import FILES, begin, content, ended, fork, make, names, summary, writer
from zae_engine.checkpoint.commit import Commit, clear_leftovers
from zae_engine.checkpoint.disk import digest, in_words, sync
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.folder import choose, foreign_files, problems_of, read_checkpoint


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


def test_one_process(folder):
    commit = begin(folder, 7, "abc")
    files = commit.write(writer(7))
    assert names(folder) == [".000007-step-70.abc.partial"]
    assert files["state.json"] == dict(zip(("size", "sha256"), digest(commit.partial / "state.json"), strict=True))
    path = commit.finish(summary(7, refers_to=[3], best=True))
    assert path == folder / "000007-step-70"
    assert names(folder) == ["000007-step-70"]
    assert problems_of(path) == foreign_files(path) == []
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"] == files
    assert files.keys() == FILES.keys()
    assert (manifest["refers_to"], manifest["best"], manifest["processes"]) == ([3], True, 1)


def test_files_follow_the_umask(folder):
    before = os.umask(0o027)
    try:
        path = make(folder, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((path / "manifest.json").stat().st_mode) == 0o640


def test_numbers_that_json_has_not(folder):
    path = make(folder, 1, metrics={"a": float("nan"), "b": -float("inf"), "c": np.float32(0.5), "d": np.int64(3)})
    text = (path / "manifest.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=pytest.fail)  # other readers refuse NaN
    metrics = read_checkpoint(path).metrics
    assert str(metrics) == "{'a': nan, 'b': -inf, 'c': 0.5, 'd': 3.0}"


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"serial": 2}, "is of 000002-step-10, not 000001-step-10"),
        ({"step": -1}, "step: -1, which is no count"),
        ({"extra": object()}, r"summary\['extra'\] is of type object"),
        ({"metrics": {"a": [1, {2}]}}, r"summary\['metrics'\]\['a'\]\[1\] is of type set"),
    ],
)
def test_a_summary_that_does_not_do(folder, said, match):
    commit = begin(folder, 1)
    commit.write(writer())
    with pytest.raises(CheckpointError, match=match):
        commit.finish(summary(1, **said))
    assert names(folder) == []


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("manifest.json", "take another name"),
        ("files-0.json", "take another name"),
        ("../a", "within the folder"),
        ("/etc/hostname", "within the folder"),
        ("stat.json", "did you mean 'state.json'"),
        ("sharded", "is no file"),
    ],
)
def test_names_that_a_writer_may_not_return(folder, name, match):
    with pytest.raises(CheckpointError, match=match):
        begin(folder, 1).write(lambda place: [*writer()(place), name])
    assert names(folder) == []


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("7-step-1", "t"), "write name_of"),
        (("000007-step-1", "a/b"), "token='a/b' has other signs"),
        (("000007-step-1", "t", 2, 2), "index=2 is not below count=2"),
    ],
)
def test_arguments_that_make_no_commit(folder, arguments, match):
    with pytest.raises(ValueError, match=match):
        Commit(folder, *arguments)


def fail(place):
    (place / "a").write_bytes(b"1")
    raise RuntimeError("of the writer")


def test_a_writer_s_own_error_stays_and_leaves_nothing(folder):
    with pytest.raises(RuntimeError, match="of the writer"):
        begin(folder, 1).write(fail)
    assert names(folder) == []


def test_what_the_disk_says_in_words(folder):
    assert in_words(OSError(errno.ENOSPC, "x", "/a"), folder).startswith("no space left on the disk; ")
    assert in_words(OSError(errno.ENOSPC, "x", "/a"), folder).endswith("('/a')")
    assert str(folder) in in_words(RuntimeError("I/O error: something (os error 28)"), folder)
    assert "no space" in in_words(RuntimeError("I/O error: something (os error 28)"), folder)
    assert in_words(RuntimeError("no disk"), folder) == ""


def test_a_checkpoint_of_the_same_name_is_replaced(folder):
    path = make(folder, 1, {"a": 10})
    make(folder, 1, {"b": 10})
    assert names(path) == ["b", "manifest.json"]
    assert names(folder) == ["000001-step-10"]


@pytest.mark.parametrize("there", ["file", "link", "empty"])
def test_something_else_of_the_same_name_is_replaced(folder, tmp_path, there):
    folder.mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    path = folder / "000001-step-10"
    if there == "link":
        path.symlink_to(tmp_path / "kept")
    else:
        path.touch() if there == "file" else path.mkdir()
    assert problems_of(make(folder, 1)) == []
    assert names(folder) == ["000001-step-10"]
    assert (tmp_path / "kept").is_dir()


def test_leftovers_go_and_all_else_stays(folder, tmp_path):
    make(folder, 1)
    begin(folder, 2, "x").write(writer())
    begin(folder, 2, "y", 1, 2).abandon("why")
    (folder / ".000003-step-30.trash").mkdir()
    (folder / ".000004-step-40.z.partial").symlink_to(tmp_path)
    others = {".hidden", ".000005.partial", ".git.x.partial", "000006-step-60.partial"}
    for name in others:
        (folder / name).mkdir()
    os.rename(make(folder, 8), folder / ".000008-step-80.a.replaced")
    os.rename(make(folder, 9), folder / ".000001-step-10.b.replaced")  # by the one that is there
    assert clear_leftovers(folder) == []
    assert set(names(folder)) == others | {"000001-step-10", "000008-step-80"}
    assert choose(folder)[0].serial == 8
    assert read_checkpoint(folder / "000001-step-10").serial == 1
    assert tmp_path.is_dir()
    assert clear_leftovers(tmp_path / "nothing") == []


# -- several processes --


def take_part(folder, index, count, delay=0.0, fails=False, timeout=30.0, syncs=0.0):
    commit = begin(folder, 5, "t", index, count)
    if syncs:
        module.sync = partial(sync_late, syncs)
    time.sleep(delay)
    try:
        write = writer(5, {f"process-{index}.json": 100 + index, f"sharded/{index}.bin": 5000})
        commit.write(fail if fails else write)
        done = str(commit.finish(summary(5), timeout)) if index == 0 else "written"
    except (CheckpointError, RuntimeError) as error:
        done = f"{type(error).__name__}: {error}"
    (folder.parent / f"said-{index}").write_text(done, encoding="utf-8")


def sync_late(seconds, path):
    """A disk that takes its time."""
    time.sleep(seconds)
    sync(path)


@pytest.fixture
def together(folder):
    """Runs real processes, which take part with the settings of each, and gives what each of them says."""

    def run(*settings):
        folder.parent.mkdir()
        children = [fork(partial(take_part, **said), folder, i, len(settings)) for i, said in enumerate(settings)]
        assert [ended(child) for child in children] == [0] * len(children)
        return [(folder.parent / f"said-{i}").read_text(encoding="utf-8") for i in range(len(children))]

    return run


@pytest.mark.usefixtures("starts_processes")
def test_three_processes(folder, together):
    said = together({}, {"delay": 0.2}, {})
    assert said == [str(folder / "000005-step-50"), "written", "written"]
    assert names(folder) == ["000005-step-50"]
    assert problems_of(folder / "000005-step-50") == []
    checkpoint = read_checkpoint(folder / "000005-step-50")
    assert checkpoint.processes == 3
    assert {"process-2.json", "sharded/1.bin"} <= checkpoint.files.keys()
    assert foreign_files(checkpoint.path) == []


@pytest.mark.usefixtures("starts_processes")
def test_the_first_may_be_done_before_another_one_is(folder, together):
    """It gives the folder its name once it sees the others' lists, which nobody may look for in the old place then."""
    assert together({}, {"syncs": 0.2}) == [str(folder / "000005-step-50"), "written"]
    assert names(folder) == ["000005-step-50"]


@pytest.mark.usefixtures("starts_processes")
def test_one_that_fails_is_told_to_all(folder, together):
    said = together({}, {"fails": True}, {"delay": 0.5})
    assert said[0] == "CheckpointError: checkpoint 000005-step-50 is not written: process 1: of the writer"
    assert said[1] == "RuntimeError: of the writer"
    assert said[2] == said[0]
    assert names(folder) == [".000005-step-50.t.failed"]
    assert clear_leftovers(folder) == []
    assert names(folder) == []


@pytest.mark.usefixtures("starts_processes")
def test_one_that_is_late(folder, together):
    said = together({"timeout": 0.1}, {"delay": 1.0})
    assert "process 1 did not finish its files within 0.1 s; is " in said[0]
    assert "process 0: " in said[1]
    assert names(folder) == [".000005-step-50.t.failed"]


def test_waiting_ends_when_it_is_given_up(folder):
    commit = begin(folder, 1, count=2)
    commit.write(writer())
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match="it was given up"):
        commit.finish(summary(1), given_up=lambda: time.perf_counter() > began + 0.05)
    assert time.perf_counter() < began + 5


def test_a_file_that_two_processes_wrote(folder):
    commits = [begin(folder, 1, "t", index, 2) for index in range(2)]
    for commit in commits:
        commit.write(writer(1, {"model.safetensors": 10}))
    with pytest.raises(CheckpointError, match=r"'model.safetensors' was written by process 1 and by another"):
        commits[0].finish(summary(1))


def test_a_process_without_files(folder):
    commits = [begin(folder, 1, "t", index, 2) for index in range(2)]
    commits[1].write(lambda place: [])
    commits[0].write(writer(1))
    assert problems_of(commits[0].finish(summary(1), timeout=1)) == []


def test_files_that_cannot_be_seen_yet_are_waited_for(folder):
    commits = [begin(folder, 1, "t", index, 2) for index in range(2)]
    commits[0].write(writer(1))
    commits[1].write(writer(1, {"late": 50}))
    late = commits[1].partial / "late"
    late.write_bytes(b"")

    def shows():
        late.write_bytes(content("late", 50, 1))
        return False

    assert problems_of(commits[0].finish(summary(1), 5, given_up=shows)) == []
