"""Files in a folder that somebody else has filled: written without following anything, read without waiting."""

import ast
import json
import os
import stat
import threading
from pathlib import Path

import pytest

import zae_engine
from tests.helpers import PlainTrainer, loader, make
from tests.logs.making import STARTED, attempt, note, point, row, write
from zae_engine import files
from zae_engine.checkpoint.commit import Commit
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.lock import RunLock
from zae_engine.logs.cursor import Cursor, cursors_in
from zae_engine.logs.curves import draw_curves
from zae_engine.logs.export import export, sync
from zae_engine.logs.reading import RunFolderError, read_run
from zae_engine.logs.report import write_report
from zae_engine.logs.runs import list_runs
from zae_engine.trainer.addons import StateManagerAddon

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders, and asks before links")
LINES = (attempt(), point(2, time=STARTED + 5), row(0, 2, 0.5))


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "outside" / "victim.txt"
    path.parent.mkdir()
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"
    assert os.listdir(path.parent) == ["victim.txt"]


def test_a_link_is_replaced_and_never_followed(tmp_path, victim):
    for name in ("note.json", "dangling"):
        (tmp_path / name).symlink_to(victim if name == "note.json" else tmp_path / "nothing")
        files.write_text(tmp_path / name, "new")
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    assert not (tmp_path / "nothing").exists()


def test_nobody_can_know_where_it_is_written(tmp_path):
    seen = set()
    for _ in range(20):
        with files.replacing(tmp_path / "a") as partial:
            seen.add(partial.name)
    assert len(seen) == 20
    assert os.listdir(tmp_path) == ["a"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    files.write_text(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError), files.replacing(tmp_path / "a") as partial:
        partial.write_text("half" * 10_000 + "\ud800")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    for name in ("n" * 255, "é" * 127):
        files.write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_mode_is_what_the_umask_leaves_whoever_writes(tmp_path, mask):
    before = os.umask(mask)
    try:
        with files.replacing(tmp_path / "a") as partial:
            os.chmod(partial, 0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def odd_things(folder, victim):
    """What may stand where a file is looked for, by name."""
    (folder / "link").symlink_to(victim)
    (folder / "ring").symlink_to("ring")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    return ("link", "ring", "folder", "pipe", "device")


def test_only_plain_files_are_read_and_appended_to(tmp_path, victim):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in odd_things(folder, victim):
        with pytest.raises(OSError, match=name):
            files.read_bytes(folder / name)
        with pytest.raises(OSError, match=name), files.appending(folder / name):
            pass
        with pytest.raises(OSError, match=name):
            files.cut(folder / name, 0)
    assert files.read_bytes(folder / "link", follow=True) == b"precious"  # a path of the user's own
    for name in ("pipe", "device", "folder"):
        with pytest.raises(files.NotPlainError, match=r"refused: a (pipe|device|folder) stands there"):
            files.write_text(folder / name, "x")


def test_no_more_is_read_than_was_asked_for(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    with pytest.raises(files.NotPlainError, match="more than the 16 MB"):
        files.read_bytes(tmp_path / "large")


@pytest.mark.parametrize("depth", [101, 900, 200_000])
@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_json_that_is_nested_without_end(depth, begin, end):
    text = begin * depth + b"1" + end * depth
    with pytest.raises(ValueError, match="nested too deeply"):
        files.parse_json(text)


def test_json_may_be_wide_and_fairly_deep():
    wide = [{"a": [1]}] * 1000
    assert files.parse_json(json.dumps(wide).encode()) == wide
    assert files.parse_json(b"[" * 100 + b"]" * 100)


def test_no_half_of_a_surrogate_pair_comes_in():
    assert files.parse_json(b'{"caf\\udce9": ["\\ud800", "\\ud83d\\ude00"]}') == {"caf\\udce9": ["\\ud800", "😀"]}
    with pytest.raises(ValueError, match="utf-8"):
        files.parse_json(b'"\xed\xb3\xa9"')


def test_what_killed_writers_left_goes_after_an_hour(tmp_path):
    old, new, other = f".a.{'0' * 16}.partial", f".a.{'1' * 16}.partial", ".mine.partial"
    for name in (old, new, other):
        (tmp_path / name).touch()
    os.utime(tmp_path / old, (0, 0))
    files.clear_partials(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([new, other])


# -- a whole run folder --


def train(folder, kind=PlainTrainer, **options):
    trainer = make(kind.add_on(StateManagerAddon), save_path=folder, **options)
    trainer.run(1, loader(), loader())
    return trainer


def test_training_replaces_links(tmp_path, victim):
    folder, names = tmp_path / "run", ["run.json", "summary.json", "curves.png", "model.safetensors"]
    folder.mkdir()
    for name in (*names, "owner.json"):
        for link in (name, f"{name}.partial", f".{name}.partial"):
            (folder / link).symlink_to(victim)
    train(folder)
    draw_curves(folder)  # which tests leave out elsewhere
    assert [name for name in names if (folder / name).is_symlink()] == []


@pytest.mark.parametrize("name", ["history.jsonl", "checkpoints", "lock"])
def test_training_refuses_what_it_would_have_to_follow(tmp_path, victim, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(victim.parent if name == "checkpoints" else victim)
    with pytest.raises(CheckpointError, match=f"{name}' is refused: it is a link"):
        train(tmp_path / "run")
    os.unlink(tmp_path / "run" / name)
    train(tmp_path / "run")


def test_a_pipe_in_the_place_of_the_history_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "history.jsonl")
    with pytest.raises(CheckpointError, match="a pipe stands there"):
        train(tmp_path / "run")


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "other disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "other disk")
    train(tmp_path / "run")
    assert read_run(tmp_path / "other disk").status == "done"


def test_a_commit_and_a_lock_write_nothing_outside(tmp_path, victim):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoints").symlink_to(victim.parent)
    with pytest.raises(CheckpointError, match="link out of the folder"):
        Commit(folder / "checkpoints", "000001-step-1", "t").write(lambda folder: [])
    (folder / "lock").symlink_to(victim)
    with pytest.raises(CheckpointError, match="it is a link"):
        RunLock(folder).acquire()


def test_cursors_reports_and_exports_write_nothing_outside(tmp_path, victim):
    folder = write(tmp_path / "run", LINES)
    for name in ("loggers", "export"):
        (folder / name).symlink_to(victim.parent)
    for name in ("report.html", ".report.html.partial"):
        (folder / name).symlink_to(victim)
    with pytest.raises(OSError, match="link out of the folder"):
        Cursor("csv").save(folder)
    with pytest.raises(OSError, match="link out of the folder"):
        export(folder, "csv", {})
    assert not write_report([folder]).is_symlink()


def in_time(function, *arguments):
    """Call in a thread, so that what waits for a pipe fails the test instead of holding it."""
    came = []
    thread = threading.Thread(target=lambda: came.append(function(*arguments)), daemon=True)
    thread.start()
    thread.join(30)
    assert came, f"{function.__name__} waits"
    return came[0]


@pytest.mark.parametrize("kind", ["pipe", "link", "device"])
@pytest.mark.parametrize(
    "name", ["run.json", "history.jsonl", "summary.json", "lock", "owner.json", "loggers/csv.json"]
)
def test_what_is_no_file_is_passed_over(tmp_path, victim, name, kind):
    write(tmp_path / "good", LINES)
    path = write(tmp_path / "odd", LINES, [note()]) / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(victim if kind == "link" else "/dev/zero")
    rows = in_time(list_runs, tmp_path)
    assert [row["name"] for row in rows] == ["good", "odd"]
    assert rows[0]["status"] == "broken off"
    if name == "history.jsonl":
        assert "history.jsonl" in rows[1]["problem"]
    assert in_time(cursors_in, tmp_path / "odd") == []
    with pytest.raises(RunFolderError):
        sync(tmp_path / "odd")


def test_what_is_nested_is_passed_over(tmp_path):
    deep = "[" * 200_000 + "]" * 200_000
    write(tmp_path / "good", LINES)
    one, two, three = (write(tmp_path / name, LINES) for name in ("one", "two", "three"))
    (one / "run.json").write_text(deep)
    (two / "history.jsonl").write_text((two / "history.jsonl").read_text() + f"{deep}\n")
    (three / "summary.json").write_text(deep)
    assert [row["steps"] for row in list_runs(tmp_path)] == [2] * 4
    for folder in (one, two, three):
        write_report([folder])
        assert "1 records" in export(folder, "csv", {})


ELSEWHERE = {  # the places that write no file of a run: a configuration or a temporary folder
    ("launch/resolve.py", "write_text"),
    ("launch/forked_workers.py", "write_bytes"),
    ("launch/forked_workers.py", "open"),
    ("trainer/verify/resume.py", "write_text"),
}


def test_files_are_made_in_one_way():
    package = Path(zae_engine.__file__).parent
    found = set()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        for call in calls if name != "files.py" else ():
            said = ast.unparse(call.func).rpartition(".")[2]
            owner = ast.unparse(call.func).rpartition(".")[0]
            to = ast.unparse(call.args[0]) if call.args else ""
            mode = ast.unparse(call.args[1]) if len(call.args) > 1 else "'r'"
            makes = said in ("write_text", "write_bytes", "touch") and owner not in ("", "files")
            opens = said == "open" and not owner and mode.strip("'\"")[:1] in "wax"
            if (makes or opens or f"{owner}.{said}" in ("os.truncate", "os.replace")) and to not in (
                "partial",
                "beside",
            ):
                found.add((name, said))
    found -= {("checkpoint/documents.py", "write_bytes")}  # to what `replacing` has given it
    assert found == ELSEWHERE
