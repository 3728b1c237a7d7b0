"""Writing that fails or is killed anywhere, and damage of every kind: what was there stays, and no damage is loaded."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.checkpoint.making import FILES, begin, ended, fork, make, names, summary, writer
from zae_engine.checkpoint.commit import clear_leftovers
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.folder import choose, committed, problems_of, seal
from zae_engine.checkpoint.retention import retain

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes to kill them"),
    pytest.mark.usefixtures("starts_processes"),
]
SEED = int(os.environ.get("ZAE_FAULT_SEED", time.time_ns() % 10**6))
tried: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="module")
def _count(request):
    """Say at the end how much was tried, and with which seed."""
    yield
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(tried.items()))
    said = f"{sum(tried.values())} faults ({counts}); damaged checkpoints loaded: 0; seed {SEED}"
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        reporter.write(f"\n{said}\n")


@pytest.fixture
def folder(tmp_path):
    make(tmp_path / "checkpoints", 1)
    return tmp_path / "checkpoints"


@pytest.fixture
def quick_folder():
    """In memory where there is such a place: what a kill leaves is the same there, and hundreds take seconds."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="zae-", dir=memory if os.access(memory, os.W_OK) else None) as root:
        make(Path(root) / "checkpoints", 1)
        yield Path(root) / "checkpoints"


def replace(folder, serial):
    """What a run does: a commit, then the removal of old ones."""
    make(folder, serial)
    retain(folder, keep_last=2)


class Hook:
    """Acts right before call number `call` of Python to the disk that creates, opens, lists, renames or removes."""

    events = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")

    def __init__(self, action):
        self.calls, self.action, self.call = 0, action, 0
        sys.addaudithook(self.watch)  # it cannot be taken away: only for a child

    def watch(self, event, arguments):
        if event in self.events:
            self.calls += 1
            if self.calls == self.call:
                self.action(arguments)


def assert_safe(folder, serials):
    """The last whole one is one of `serials`; what is committed is whole; the next commit and removal work."""
    assert [problems_of(c.path) for c in committed(folder)] == [[]] * len(committed(folder))
    chosen, skipped = choose(folder)
    assert chosen.serial in serials
    assert not skipped
    assert clear_leftovers(folder) == []
    assert choose(folder)[0].serial in serials
    assert not [name for name in names(folder) if name.startswith(".")]
    make(folder, 90)
    assert choose(folder)[0].serial == 90
    shutil.rmtree(folder / "000090-step-900")


# -- killed --


def kill_before(call, function, *arguments):
    Hook(lambda _: os.kill(os.getpid(), signal.SIGKILL)).call = call
    function(*arguments)


@pytest.mark.parametrize("same", [False, True], ids=["new", "replaced"])
def test_a_kill_before_each_call_to_the_disk(quick_folder, same):
    make(quick_folder, 2)
    for call in range(1, 1000):
        code = ended(fork(kill_before, call, replace, quick_folder, 2 if same else 3))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        tried["kills before a call"] += 1
        if same and not (quick_folder / "000002-step-20").exists():
            clear_leftovers(quick_folder)  # between two renames: put back
            assert (quick_folder / "000002-step-20").exists()
        assert_safe(quick_folder, {2} if same else {2, 3})
        shutil.rmtree(quick_folder / "000003-step-30", ignore_errors=True)
        for serial in {1, 2} - {c.serial for c in committed(quick_folder)}:
            make(quick_folder, serial)
    assert call > 30  # there are that many of them


def test_kills_at_random_moments(quick_folder):
    rng = random.Random(SEED)
    length, serial, cut = min(timed(quick_folder, serial) for serial in (2, 3, 4)), 4, 0
    while cut < 50:
        child = fork(replace, quick_folder, serial + 1)
        time.sleep(rng.uniform(0, length))
        os.kill(child, signal.SIGKILL)
        killed = ended(child) == -signal.SIGKILL
        cut += killed
        length *= 1.05 if killed else 0.9  # a busy machine is slower than it was, or quicker
        assert_safe(quick_folder, {serial, serial + 1})
        serial = choose(quick_folder)[0].serial
    tried["kills at random moments"] += cut


def timed(folder, serial):
    child = fork(replace, folder, serial)
    began = time.perf_counter()
    assert ended(child) == 0
    return time.perf_counter() - began


def test_kills_of_one_process_of_three(quick_folder):
    rng = random.Random(SEED)
    turn = killed = 0
    while killed < 20:
        victim, turn = rng.randrange(3), turn + 1
        children = [fork(take_part, quick_folder, f"t{turn}", index, index == victim) for index in range(3)]
        codes = [ended(child) for child in children]
        assert codes[victim] in (3, -signal.SIGKILL)  # on a busy machine process 0 may have given up before it came
        assert codes[0] in (3, -signal.SIGKILL)
        killed += codes[victim] == -signal.SIGKILL
        assert_safe(quick_folder, {1})
    tried["kills of one process of three"] += killed


def take_part(folder, token, index, dies, timeout=0.1):
    commit = begin(folder, 2, token, index, 3)
    write = writer(2, {f"process-{index}.json": 70, f"sharded/{index}.safetensors": 3000})
    commit.write(lambda partial: (write(partial), os.kill(os.getpid(), signal.SIGKILL))[0] if dies else write(partial))
    if index == 0:
        commit.finish(summary(2), timeout)


# -- the disk refuses --


def assert_refused(folder, match="", serial=2):
    """A commit ends in a sentence with `match`, and nothing of it is left."""
    before = names(folder)
    with pytest.raises(CheckpointError, match=match) as error:
        make(folder, serial)
    assert str(folder) in str(error.value)
    assert names(folder) == before
    assert choose(folder)[0].serial == 1
    assert not problems_of(folder / "000001-step-10")


def test_a_limit_at_random_bytes_of_the_files(folder):
    limits = [*FILES.values(), 0, 1, *random.Random(SEED).sample(range(max(FILES.values())), 100)]
    assert ended(fork(limited, folder, limits)) == 0
    tried["limits of a file's size"] += len(limits) - 1


def limited(folder, limits):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that write() says EFBIG
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        if limit < max(FILES.values()):
            assert_refused(folder, "ulimit -f")
        else:
            shutil.rmtree(make(folder, 2))


def test_a_limit_of_one_process_of_three(quick_folder):
    for turn, victim in enumerate([0, 1, 2] * 3):
        children = [fork(take_limited_part, quick_folder, f"t{turn}", index, victim) for index in range(3)]
        codes = [ended(child) for child in children]
        assert codes[0] == codes[victim] == 3
        assert set(codes) <= {0, 3}  # another one may have been done before
        tried["limits of one process of three"] += 1
        assert_safe(quick_folder, {1})


def take_limited_part(folder, token, index, victim):
    if index == victim:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    try:
        take_part(folder, token, index, False, timeout=20)
    except CheckpointError as error:
        assert f"process {victim}: a file is larger" in str(error) or index == victim  # noqa: PT017
        raise


def test_an_error_of_each_call_to_the_disk(quick_folder):
    assert ended(fork(fail_each_call, quick_folder)) == 0
    tried["errors of a call"] += int((quick_folder.parent / "tried").read_text(encoding="utf-8"))


def fail_each_call(folder):
    def refuse(arguments, number):
        if not (folder / "000002-step-20").exists():  # what comes after its last name is no part of the commit
            raise OSError(number, os.strerror(number), str(arguments[0]))

    hook, refused = Hook(print), 0
    make(folder, 2)
    calls = hook.calls
    shutil.rmtree(folder / "000002-step-20")
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
        for call in range(1, calls):
            hook.calls, hook.call, hook.action = 0, call, partial(refuse, number=number)
            try:
                make(folder, 2)
            except CheckpointError as error:
                refused += 1
                assert str(folder) in str(error)  # noqa: PT017
                assert names(folder) == ["000001-step-10"]
            hook.call = 0
            assert_safe(folder, {1, 2})
            shutil.rmtree(folder / "000002-step-20", ignore_errors=True)
    assert refused > 4 * 20
    (folder.parent / "tried").write_text(str(refused), encoding="utf-8")


@pytest.fixture
def mount():
    """Mounts small file systems in memory, where this user may."""
    mounted = []

    def new(options):
        point = tempfile.mkdtemp(prefix="zae-")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", point], capture_output=True, check=False)
        if done.returncode:
            os.rmdir(point)
            pytest.skip("this user may not mount a file system in memory")
        mounted.append(point)
        return Path(point)

    yield new
    for point in mounted:
        subprocess.run(["umount", point], check=True)
        os.rmdir(point)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("mount"), reason="mounts tmpfs")
@pytest.mark.parametrize("kind", ["pages", "files"])
def test_a_full_disk(mount, kind):
    point = mount("size=160k" if kind == "pages" else "size=1m,nr_inodes=24")
    make(point / "checkpoints", 1)
    refused = []
    for used in range(40):
        if kind == "pages":
            (point / "other").write_bytes(bytes(4096 * used))
        else:
            (point / f"other-{used}").touch()
        try:
            make(point / "checkpoints", 2)
        except CheckpointError as error:
            refused.append(str(error))
        assert [problems_of(c.path) for c in committed(point / "checkpoints")] == [[]] * (1 if refused else 2)
        assert names(point / "checkpoints")[0] == "000001-step-10"
        shutil.rmtree(point / "checkpoints" / "000002-step-20", ignore_errors=True)
        if kind == "files" and refused and not os.statvfs(point).f_ffree:
            break
        if kind == "pages" and not os.statvfs(point).f_bfree:
            break
    tried[f"disks with too few {kind}"] += len(refused)
    assert len(refused) >= 6
    assert all("no space left" in words for words in refused)
    for path in point.glob("other*"):
        path.unlink()
    assert_safe(point / "checkpoints", {1})


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("mount"), reason="mounts tmpfs")
def test_a_read_only_disk(mount):
    point = mount("size=1m")
    make(point / "checkpoints", 1)
    subprocess.run(["mount", "-o", "remount,ro", point], check=True)
    assert_refused(point / "checkpoints", "read-only")
    assert retain(point / "checkpoints", 1) == []
    tried["read-only disks"] += 1


def without_rights(function, *arguments):
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    function(*arguments)


@pytest.fixture
def open_folder():
    """A folder that other users can reach, which pytest's own cannot be."""
    root = Path(tempfile.mkdtemp(prefix="zae-"))
    root.chmod(0o755)
    make(root / "checkpoints", 1)
    yield root / "checkpoints"
    shutil.rmtree(root)


def test_a_folder_without_the_right_to_write(open_folder):
    open_folder.chmod(0o555)
    assert ended(fork(without_rights, assert_refused, open_folder, "no permission")) == 0
    open_folder.chmod(0o755)
    tried["folders without rights"] += 1


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_file_that_cannot_be_read(open_folder, name):
    make(open_folder, 2)
    (open_folder / "000002-step-20" / name).chmod(0)
    assert ended(fork(without_rights, assert_passed_over, open_folder, f"{name} cannot be read")) == 0
    tried["files without rights"] += 1


# -- damage --


def assert_passed_over(folder, match=""):
    """The newer one of two is refused in a sentence, and the older one is taken."""
    path = folder / "000002-step-20"
    assert problems_of(path)
    chosen, skipped = choose(folder)
    assert chosen.serial == 1
    assert len(skipped) == 1
    assert re.search(f"000002-step-20 is passed over: .*{match}", skipped[0]), skipped[0]
    with pytest.raises(CheckpointError, match="is damaged"):
        choose(folder, path)


def cut(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def empty(path, rng):
    path.write_bytes(b"")


def lengthen(path, rng):
    path.write_bytes(path.read_bytes() + b"}")


def lose(path, rng):
    path.unlink()


def make_folder(path, rng):
    path.unlink()
    path.mkdir()


def make_pipe(path, rng):
    path.unlink()
    os.mkfifo(path)


def link_out(path, rng):
    outside = path.parents[3] / "outside"
    shutil.copy(path, outside)
    path.unlink()
    path.symlink_to(outside)


def link_to_itself(path, rng):
    path.unlink()
    path.symlink_to(path.name)


def swap(path, rng):
    other = next(path.parent.parent.rglob("state.json" if path.name != "state.json" else "model.safetensors"))
    data = other.read_bytes()
    other.write_bytes(path.read_bytes())
    path.write_bytes(data)


def take_from_older(path, rng):
    path.write_bytes(Path(str(path).replace("000002-step-20", "000001-step-10")).read_bytes())


KINDS = [cut, flip, empty, lengthen, lose, make_folder, make_pipe, link_out, link_to_itself, swap, take_from_older]


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damage_of_each_file(folder, kind, name):
    if (kind, name) == (link_out, "manifest.json"):
        return  # its own checksum says that it is the one that was written
    make(folder, 2)
    kind(folder / "000002-step-20" / name, random.Random(SEED))
    assert_passed_over(folder)
    tried["damaged files"] += 1


def test_a_flipped_byte_at_any_place_of_the_manifest(folder):
    path = make(folder, 2) / "manifest.json"
    data, rng, harmless = path.read_bytes(), random.Random(SEED), 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        if problems_of(path.parent):
            tried["flipped bits of a manifest"] += 1
        else:
            harmless += 1
            assert json.loads(path.read_bytes()) == json.loads(data)  # 1e-05 as 1E-05, say
    assert harmless < 5


MANIFESTS = {
    "no text": (b"\xff\xfe", "not JSON"),
    "no JSON": (b"{", "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "a long number": (b'{"format": ' + b"1" * 10_000 + b"}", "not JSON"),
    "a list": (b"[]", "no manifest"),
    "null": (b"null", "no manifest"),
    "without a format": ({"format": None}, "no manifest"),
    "an odd format": ({"format": True}, "no manifest"),
    "no format": ({"format": 0}, "unknown format 0"),
    "a newer format": ({"format": 2}, "newer zae-engine .format 2.; upgrade"),
    "no files": ({"files": {}}, "lists no files"),
    "files as a list": ({"files": ["a"]}, "lists no files"),
    "a file without anything": ({"files": {"a": None}}, "lists 'a' without"),
    "a negative size": ({"files": {"a": {"size": -1, "sha256": "0" * 64}}}, "without its size"),
    "a size in words": ({"files": {"a": {"size": "1", "sha256": "0" * 64}}}, "without its size"),
    "a broken size": ({"files": {"a": {"size": 1.5, "sha256": "0" * 64}}}, "without its size"),
    "a short checksum": ({"files": {"a": {"size": 1, "sha256": "0" * 63}}}, "SHA-256"),
    "no checksum": ({"files": {"a": {"size": 1}}}, "SHA-256"),
    "a serial in words": ({"serial": "2"}, "serial"),
    "a negative step": ({"step": -20}, "step"),
    "no processes": ({"processes": None}, "processes"),
    "another step": ({"step": 21}, "is of '000002-step-21'"),
}
ESCAPES = ["../../outside", "/etc/hostname", "a/../../../outside", "..", ".", "", "a//b", "\0", "a\\b", "\ud800", "a/"]


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_that_say_what_cannot_be(folder, case):
    said, match = MANIFESTS[case]
    path = make(folder, 2) / "manifest.json"
    if isinstance(said, dict):
        changed = json.loads(path.read_bytes()) | said
        said = json.dumps(changed | {"sha256": seal(changed)}).encode()
    path.write_bytes(said)
    assert_passed_over(folder, match)
    tried["odd manifests"] += 1


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_out_of_the_folder(folder, name):
    (folder.parent / "outside").write_bytes(b"secret")
    path = make(folder, 2) / "manifest.json"
    changed = json.loads(path.read_bytes())
    changed["files"][name] = {"size": 6, "sha256": "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"}
    path.write_text(json.dumps(changed | {"sha256": seal(changed)}), encoding="utf-8")
    assert_passed_over(folder, "no file within the checkpoint")
    tried["names that lead out"] += 1


def test_a_checkpoint_under_another_s_name(folder):
    os.rename(folder / "000001-step-10", folder / "000002-step-20")
    assert "is of '000001-step-10'" in problems_of(folder / "000002-step-20")[0]
    assert choose(folder)[0] is None
    tried["names of others"] += 1


def test_damage_of_all_leaves_none(folder):
    make(folder, 2)
    for path in folder.glob("*/model.safetensors"):
        flip(path, random.Random(SEED))
    chosen, skipped = choose(folder)
    assert chosen is None
    assert [words.split()[0] for words in skipped] == ["000002-step-20", "000001-step-10"]
    assert len(retain(folder, 1)) == 3
    assert len(committed(folder)) == 2
