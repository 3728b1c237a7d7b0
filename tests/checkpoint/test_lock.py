"""One holder at a time, between real processes, killed ones and their heirs included."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import re
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.lock import RunLock

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
FORK = multiprocessing.get_context("fork")


def leave(seconds):
    """Start a child that holds the lock after its parent, as forked workers do, if filelock has not closed it there."""
    lock = next(fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}").endswith("/lock"))
    os.dup(int(lock))
    if child := os.fork():
        return child
    time.sleep(seconds)
    os._exit(0)


def hold(folder, heir, pipe):
    with RunLock(folder):
        pipe.send(leave(heir) if heir else None)
        pipe.recv()


@contextlib.contextmanager
def holder(folder, heir=0.0):
    """A process that holds the lock until it is sent something, and the id of the child that it leaves."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(folder, heir, theirs))
    process.start()
    theirs.close()  # so that the end of a process that failed is noticed
    process.heir, process.pipe = None, ours
    try:
        assert ours.poll(60)
        process.heir = ours.recv()
        yield process
    finally:
        process.kill()
        if process.heir:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.heir, signal.SIGKILL)
        process.join()


def await_end(process):
    """Wait until it is dead; it stays listed, as nobody has asked for its exit code."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def owner(folder):
    return json.loads((folder / "owner.json").read_text(encoding="utf-8"))


def test_a_lock_is_held_and_given_back(tmp_path):
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        with RunLock(folder) as lock:
            assert owner(folder)["pid"] == os.getpid()
            assert owner(folder)["host"] == socket.gethostname()
        lock.release()  # again is nothing
        assert os.listdir(folder) == ["lock"]


def test_another_run_of_the_same_process_is_refused(tmp_path):
    seen = []

    def other():
        with pytest.raises(CheckpointError, match="another run of this very process") as caught:
            RunLock(tmp_path, patience=0).acquire()
        seen.append(caught.value)

    lock = RunLock(tmp_path)
    with lock:
        other()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with pytest.raises(CheckpointError, match="another run of this very process"):
            lock.acquire()
        assert owner(tmp_path)["pid"] == os.getpid()
    assert len(seen) == 2
    thread = threading.Thread(target=lock.acquire)  # what one thread takes, another may give back
    thread.start()
    thread.join()
    lock.release()
    RunLock(tmp_path).acquire()


@pytest.mark.usefixtures("starts_processes")
def test_another_process_is_refused_and_told_who(tmp_path):
    with holder(tmp_path) as process:
        started = time.monotonic()
        with pytest.raises(CheckpointError) as caught:
            RunLock(tmp_path).acquire()
        assert time.monotonic() - started < 5
        host = re.escape(repr(socket.gethostname()))
        said = rf"{re.escape(repr(str(tmp_path)))} is in use by process {process.pid} on host {host}, since 20\d\d-.*;"
        assert re.match(rf"{said} wait for it, or stop it \(kill {process.pid}\), or give this run", str(caught.value))
        process.pipe.send("end")
        with RunLock(tmp_path):
            assert owner(tmp_path)["pid"] == os.getpid()


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path, how):
    with holder(tmp_path) as process:
        os.kill(process.pid, how)
        assert owner(tmp_path)["pid"] == process.pid
        started = time.monotonic()
        with RunLock(tmp_path):
            assert time.monotonic() - started < 1
            assert owner(tmp_path)["pid"] == os.getpid()


@pytest.mark.usefixtures("starts_processes")
def test_heirs_of_a_killed_process_are_waited_for(tmp_path):
    with holder(tmp_path, heir=2) as process:
        inode = (tmp_path / "lock").stat().st_ino
        process.kill()
        await_end(process)
        started = time.monotonic()
        with RunLock(tmp_path):
            assert 0.2 < time.monotonic() - started < 10
            assert owner(tmp_path)["pid"] == os.getpid()
            assert (tmp_path / "lock").stat().st_ino == inode


@pytest.mark.usefixtures("starts_processes")
def test_heirs_that_stay_lose_the_lock(tmp_path):
    with holder(tmp_path, heir=60) as process:
        inode = (tmp_path / "lock").stat().st_ino
        with pytest.raises(CheckpointError, match=f"process {process.pid}"):
            RunLock(tmp_path, patience=0.3).acquire()
        process.kill()
        await_end(process)
        started = time.monotonic()
        with RunLock(tmp_path, patience=1):
            assert 1 < time.monotonic() - started < 5
            assert (tmp_path / "lock").stat().st_ino != inode
            with pytest.raises(CheckpointError, match="this very process"):
                RunLock(tmp_path, patience=1).acquire()
        os.kill(process.heir, 0)  # lives on


@pytest.mark.usefixtures("starts_processes")
def test_of_many_who_replace_one_wins(tmp_path):
    with holder(tmp_path, heir=60) as process:
        process.kill()
        await_end(process)
        won, lost = [], []

        def replace():
            lock = RunLock(tmp_path, patience=0.5)
            try:
                lock.acquire()
                won.append(lock)
            except CheckpointError as error:
                lost.append(error)

        threads = [threading.Thread(target=replace) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)
        assert owner(tmp_path) == won[0]._own
        won[0].release()


@pytest.mark.usefixtures("starts_processes")
def test_a_forked_child_neither_has_nor_gives_back_the_lock(tmp_path):
    with RunLock(tmp_path) as lock:
        if not (child := os.fork()):
            lock.release()
            code = 1
            try:
                lock.acquire()
            except CheckpointError as error:
                code = 0 if f"process {os.getppid()} on" in str(error) else 2
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert owner(tmp_path)["pid"] == os.getpid()
        with pytest.raises(CheckpointError, match="this very process"):
            RunLock(tmp_path, patience=0).acquire()


def change(folder, **entries):
    (folder / "owner.json").write_text(json.dumps(owner(folder) | entries), encoding="utf-8")


@pytest.mark.parametrize("entry", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}, {"boot": "another"}])
def test_whether_an_owner_elsewhere_lives_is_not_guessed(tmp_path, entry):
    with RunLock(tmp_path):
        change(tmp_path, **entry, pid=2**22 + 1)  # an id that nothing here has
        with pytest.raises(CheckpointError, match=r"known to be gone, delete '.*lock' and try again") as caught:
            RunLock(tmp_path, patience=0).acquire()
        assert all(value in str(caught.value) for key, value in entry.items() if key == "host")


def test_an_attempt_of_the_same_job_before_this_one_is_known_to_be_over(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with RunLock(tmp_path):
        change(tmp_path, host="elsewhere")
        with pytest.raises(CheckpointError, match=r"\(SLURM job 7\) on host 'elsewhere'"):
            RunLock(tmp_path, patience=0).acquire()
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with RunLock(tmp_path, patience=0):
            assert owner(tmp_path)["attempt"] == 1


def test_an_id_that_another_process_has_by_now_is_not_the_owner(tmp_path):
    with RunLock(tmp_path):
        change(tmp_path, started="1")
        with RunLock(tmp_path, patience=0):
            assert owner(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": "x"}', '{"pid": -1}', "\udcff"])
def test_an_owner_that_cannot_be_read_is_not_guessed(tmp_path, content):
    with RunLock(tmp_path):
        (tmp_path / "owner.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(CheckpointError, match="has not said who it is"):
            RunLock(tmp_path, patience=0).acquire()
    RunLock(tmp_path).acquire()  # what is left of it does not matter once nobody holds the lock


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_without_flock_a_file_stands_for_it(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, "no flock here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunLock(tmp_path), pytest.raises(CheckpointError, match="this very process"):
        RunLock(tmp_path).acquire()
    with holder(tmp_path) as process:
        with pytest.raises(CheckpointError, match=f"process {process.pid}"):
            RunLock(tmp_path).acquire()
        process.kill()
        await_end(process)
        with RunLock(tmp_path, patience=0.5):
            assert owner(tmp_path)["pid"] == os.getpid()


def say(folder, pipe):
    if os.getuid() == 0:
        os.setuid(65534)  # root may write anywhere
    with pytest.raises(CheckpointError) as caught:
        RunLock(folder).acquire()
    pipe.send(str(caught.value))


@pytest.mark.usefixtures("starts_processes")
def test_a_folder_that_cannot_be_written_is_said():
    ours, theirs = FORK.Pipe()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        os.chmod(folder, 0o555)
        process = FORK.Process(target=say, args=(folder, theirs))
        process.start()
        theirs.close()
        assert ours.poll(60)
        process.join()
    assert re.match(rf"'{folder}' cannot be locked: .*Permission denied.*; give a save_path that", ours.recv())


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file' cannot be locked: .*File exists"):
        RunLock(Path(tmp_path / "file")).acquire()
