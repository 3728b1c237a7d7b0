"""One run at a time writes to a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from ..files import check_plain, read_json, write_text
from .errors import CheckpointError

LOCK, OWNER = "lock", "owner.json"
PATIENCE = 15.0  # seconds that workers of a killed process have to notice that it is gone
_GRACE = 0.5  # seconds that one needs to say that it has the lock, to give it back, or to be dead after a kill
_POLL = 0.1
_WITHOUT_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class RunLock:
    """The right to write to a folder, which one holder has at a time: process, thread or host.

    Parameters
    ----------
    folder : path-like
        It is made if it is not there. In it are then ``lock``, and while it is held ``owner.json``.
    patience : float
        Seconds to wait for what a killed process has left: forked workers of its loaders may hold its lock until they
        notice that it is gone. After that the lock is replaced.

    Notes
    -----
    The lock is flock's: the system gives it back when the holder ends, however it ends. Between hosts it holds where
    the file system carries flock to its server (NFS of Linux, CephFS, GPFS, Lustre mounted with ``flock``); not where
    each host has flocks of its own (Lustre with ``localflock``, some FUSE mounts). Where there is no flock at all, a
    file that must not exist yet stands for it (``lock.soft``): a killed holder on the same host is noticed; one that
    was killed on another host leaves a file that has to be deleted by hand, as the error says.

    Only an owner that is known to be dead is replaced: one of the same host, the same boot and the same space of
    process ids (containers may share a host's name), whose id is gone or taken by a later process; or the attempt
    before this one of the same SLURM job.
    """

    def __init__(self, folder: str | os.PathLike[str], patience: float = PATIENCE) -> None:
        self.folder, self.patience = Path(folder), patience
        self._lock: BaseFileLock | None = None
        self._own: dict[str, Any] = {}

    def acquire(self) -> None:
        """Take the lock, or say who has it.

        Raises
        ------
        CheckpointError
            Who holds it, on which host and since when, and what to do; or that the folder cannot be written.
        """
        if self._held():
            raise self._refusal(self._own)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._try() or self._outlive():
                self._sign()
            else:
                self._replace()
        except OSError as error:
            self.release()
            raise CheckpointError(
                f"{str(self.folder)!r} cannot be locked: {error}; give a save_path that this process may write to"
            ) from error

    def release(self) -> None:
        """Give the lock back, if this process has it; a forked child has not."""
        lock, held, self._lock = self._lock, self._held(), None
        if lock is None or not held:
            return
        if self._owner() == self._own:
            with contextlib.suppress(OSError):
                (self.folder / OWNER).unlink()
        lock.release()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _held(self) -> bool:
        return self._lock is not None and self._own.get("pid") == os.getpid()

    def _try(self) -> bool:
        """Take the lock if nobody has it."""
        lock = _take(self.folder / LOCK)
        if lock is not None:
            self._lock, self._own = lock, _myself()
        return lock is not None

    def _outlive(self) -> bool:
        """Wait while the holder may be dead: true with the lock, false when its heirs stay too long."""
        started = time.monotonic()
        while True:
            owner, waited = self._owner(), time.monotonic() - started
            dead = owner is not None and _dead(owner)
            if not dead and waited >= min(_GRACE, self.patience):
                raise self._refusal(owner)
            if self._try():
                return True
            if dead and waited >= self.patience:
                return False
            time.sleep(_POLL)

    def _replace(self) -> None:
        """Put a new lock in the place of a dead owner's; of several who want to, one at a time."""
        seen, guard = _inode(self.folder / LOCK), _take(self.folder / f"{LOCK}.replace", self.patience)
        if guard is None:
            raise self._refusal(self._owner())
        try:
            if not self._try():
                owner = self._owner()
                time.sleep(_GRACE)  # whoever has just got it may have yet to sign
                if owner != (now := self._owner()) or owner is None or not _dead(owner):
                    raise self._refusal(now)  # another was quicker
                if _inode(self.folder / LOCK) != seen:
                    raise self._refusal(owner)
                for name in (LOCK, f"{LOCK}.soft"):
                    (self.folder / name).unlink(missing_ok=True)
                if not self._try():
                    raise self._refusal(None)
            self._sign()
        finally:
            guard.release()

    def _sign(self) -> None:
        write_text(self.folder / OWNER, json.dumps(self._own, indent=1) + "\n", sync=False)

    def _owner(self) -> dict[str, Any] | None:
        """Who holds the lock, or held it last and was killed; None if that cannot be read."""
        try:
            owner = read_json(self.folder / OWNER)
        except (OSError, ValueError):
            return None
        known = isinstance(owner, dict) and isinstance(owner.get("pid"), int) and owner["pid"] > 0
        return owner if known else None

    def _refusal(self, owner: dict[str, Any] | None) -> CheckpointError:
        place = str(self.folder)
        if owner is None:
            return CheckpointError(
                f"{place!r} is in use by a process that has not said who it is; give this run another save_path"
            )
        job = f" (SLURM job {owner['job']})" if owner.get("job") else ""
        who = f"process {owner['pid']}{job} on host {owner.get('host')!r}, since {owner.get('since')}"
        if not _here(owner):
            remedy = (
                f"wait for it or stop it; if it is known to be gone, delete {str(self.folder / LOCK)!r} and try again"
            )
        elif owner["pid"] == os.getpid():
            who, remedy = f"another run of this very process ({who})", "let that one end first"
        else:
            remedy = f"wait for it, or stop it (kill {owner['pid']})"
        return CheckpointError(f"{place!r} is in use by {who}; {remedy}, or give this run another save_path")


def _take(path: Path, timeout: float = 0.0) -> BaseFileLock | None:
    """A lock, if nobody has it or gives it back in time: flock's, or a file where the file system has none."""
    check_plain(path)
    with contextlib.suppress(Timeout):
        lock: BaseFileLock = FileLock(path, timeout=timeout, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except OSError as error:
            if error.errno not in _WITHOUT_FLOCK:
                raise
            lock = SoftFileLock(f"{path}.soft", timeout=timeout, thread_local=False)
            lock.acquire()
        return lock
    return None


def _myself() -> dict[str, Any]:
    return {
        **_place(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "attempt": _attempt(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    }


def _place() -> dict[str, str | None]:
    """What a process id is one of: the same host, boot and space of process ids."""
    boot = namespace = None
    with contextlib.suppress(OSError):  # only Linux has them
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "namespace": namespace}


def _here(owner: dict[str, Any]) -> bool:
    return all(owner.get(key) == value for key, value in _place().items())


def _dead(owner: dict[str, Any]) -> bool:
    """Whether the owner is known to have ended."""
    if not _here(owner):
        attempt, job = owner.get("attempt"), os.environ.get("SLURM_JOB_ID")
        return job is not None and owner.get("job") == job and isinstance(attempt, int) and attempt < _attempt()
    now, then = _started(owner["pid"]), owner.get("started")
    return now is None or (bool(now and then) and now != then)


def _attempt() -> int:
    """How often SLURM has put this job back into the queue; it ends an attempt before it starts the next."""
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdecimal() else 0


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the boot; None if it has ended, '' if it runs and that is not known."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if _exists(pid) else None  # no /proc, or one that hides the processes of others
    return None if state in "ZX" else fields[18]  # a killed one that its parent has not asked about holds nothing


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
