"""What holds for all tests: one thread, which of them may start processes, how many run at once, and where."""

import gc
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from zae_engine.trainer.journal import history_readers


def _without_matplotlib(*_):
    raise ModuleNotFoundError("in the tests' own process, a run draws no picture: it takes longer than most runs here")


history_readers.draw_curves = _without_matplotlib

os.environ["GIT_DIR"] = os.devnull  # each run asks git for its script's commit, which takes long in a repository

# Who starts the suite in the background has it, and all that it starts, ignore Ctrl-C; some tests send one.
signal.signal(signal.SIGINT, signal.default_int_handler)

HARMLESS = {"git", "uname"}  # of a run folder's circumstances, and of Python's own platform.processor()
STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"}
MOST_AT_ONCE = 4
TOGETHER = {"distributed", "recovery"}  # folders whose files share what was started once; else each file is for itself
# Begun first, so that no worker is left with one of them alone at the end.
LONGEST = (
    *("distributed", "recovery", "test_multi_gpu", "test_configs", "test_state_manager_exact", "test_faults"),
    *("test_typing", "test_family", "test_examples", "test_notebook", "test_trust", "test_logger_feed"),
)


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread, as the figures in the documentation."""
    torch.set_num_threads(1)


@pytest.fixture
def with_git(monkeypatch):
    """For tests of what git says of a run."""
    monkeypatch.delenv("GIT_DIR")


# ---------------------------------------------------------------------- which tests start processes


class Starts:
    """Refuses the start of a process in a test that has not asked for the fixture ``starts_processes``."""

    allowed = True  # between the tests

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.allowed or event not in STARTS or (event == "subprocess.Popen" and arguments[0] in HARMLESS):
            return
        raise AssertionError(
            f"a test starts a process ({event} {arguments[:2]}): let it use the fixture 'starts_processes'"
        )


STARTED = Starts()
sys.addaudithook(STARTED)


@pytest.fixture(scope="session")
def starts_processes():
    """For whoever starts processes; the marker ``process`` comes from it."""


@pytest.fixture(scope="session")
def nursery(starts_processes):
    """Forks of a process that has imported everything: for whoever tests what a process does, not how it begins."""
    from tests.nurse import Nursery

    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the fixtures of a module or of the session, too
def pytest_runtest_protocol(item, nextitem):
    STARTED.allowed = "starts_processes" in item.fixturenames
    try:
        return (yield)
    finally:
        STARTED.allowed = True
        if nextitem is None or nextitem.path != item.path:
            KEPT.keep()


@pytest.hookimpl(tryfirst=True)  # before the marker is asked for
def pytest_collection_modifyitems(items):
    for item in items:
        if "starts_processes" in getattr(item, "fixturenames", ()):
            item.add_marker("process")
    places = {group: place for place, group in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(group_of(item.path), len(places)))


# ---------------------------------------------------------------------- which tests run, how many at once, and where


def group_of(path):
    """The tests that one worker runs: they share what a fixture has made."""
    return path.parent.name if path.parent.name in TOGETHER else path.stem


def pytest_xdist_make_scheduler(config, log):
    """By group. The marks that xdist has for this are lost on the way since pytest 9.2, without a word."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(Path(nodeid.partition("::")[0]))

    return ByGroup(config, log) if config.getvalue("dist") == "loadscope" else None


def pytest_configure(config):
    """Leave out what takes minutes or needs a GPU, unless ``-m`` speaks of it."""
    asked = config.option.markexpr
    left_out = [f"not {name}" for name in ("slow", "gpu") if name not in asked]
    config.option.markexpr = " and ".join([f"({asked})"] * bool(asked) + left_out)


def pytest_xdist_auto_num_workers(config):
    """As many as there are cores, but for files and tests that were named: these are quicker without."""
    named = any(Path(word.split("::")[0]).suffix == ".py" for word in config.args)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if named or cores == 1 else min(cores, MOST_AT_ONCE)


# ---------------------------------------------------------------------- what collections of garbage need not look at


class Kept:
    """What imported modules hold stays; a collection that looks at all of it takes longer than most tests."""

    modules = 0
    enough = 100  # modules

    def keep(self):
        if len(sys.modules) >= self.modules + self.enough:
            self.modules = len(sys.modules)
            gc.collect()
            gc.freeze()


KEPT = Kept()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    KEPT.keep()


# ---------------------------------------------------------------------- where their files are

MEMORY = Path("/dev/shm")
ROOM = 2**31  # bytes; far more than all tests together write


def pytest_sessionstart(session):
    """In memory, where there is room and nothing else was asked for: a disk waits longer than most tests compute."""
    if session.config.option.basetemp or {"TMPDIR", "PYTEST_DEBUG_TEMPROOT"} & os.environ.keys():
        return
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM and not _refuses_programs(MEMORY):
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)


def _refuses_programs(folder):
    return os.statvfs(folder).f_flag & os.ST_NOEXEC
