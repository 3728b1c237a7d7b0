"""Whether a run that is interrupted goes on to the bit, and if not, what differs first and why: found by experiment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from shutil import rmtree
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from ...checkpoint.folder import CHECKPOINTS, committed
from ...launch.forked_workers import WorkerError, run_workers
from .. import refusals
from ..data import sample_ids
from ..data.plan import named
from ..data.random_streams import seed_host
from ..interface import Face, decide
from ..limits import Duration
from ..object_state import Root, owned_by, shake
from ..records.recorder import Recorder
from ..resume import same_data
from ..resume.checkpointer import Checkpointer
from ..step.placement import Placement
from .resume_trace import Trace, Tracer, first_difference, reason_for

_GRACE = 5.0  # seconds in which a process whose time is over may end by itself
_PARTS = ("dataset", "sampler", "collate_fn", "worker_init_fn")
_UNREPEATABLE = (
    "two runs that nobody interrupted differ there, too: the step or the data depends on the clock, on the system's"
    " random numbers, on a file that changes, or on operations whose result is another each time"
)
_WORKERS = (
    "the loader's workers draw random numbers, and their streams are in no checkpoint; seeded_samples=True, which is"
    " StateManagerAddon's default, gives each sample streams of its own"
)
SEVERAL = (
    "verify_resume compares runs of one process, but this trainer has several; call it in a script or a session of its"
    " own, with one device: what makes a run inexact shows there, too"
)
_inherited: list[Any] = []  # what a child has of its parent's loaders; if it ended here, the parent's workers would end


@dataclass(frozen=True, repr=False)
class ResumeVerification:
    """What ``trainer.verify_resume`` has found; true when the run went on to the bit.

    Attributes
    ----------
    exact : bool
        Whether every step after the checkpoint was the same in both runs.
    step : int or None
        The first optimizer step that differs; None when none does, or none was taken.
    differs : str or None
        The first thing that differs, in words.
    cause : str or None
        Why, and what helps.
    steps : int
        How many steps after the checkpoint were compared.
    """

    exact: bool
    step: int | None
    differs: str | None
    cause: str | None
    steps: int

    def __bool__(self) -> bool:
        return self.exact

    def __repr__(self) -> str:
        if self.exact:
            return f"exact: the same {self.steps} steps, interrupted and gone on with, or not"
        where = f" at step {self.step}" if self.step is not None else ""
        return f"not exact: {self.differs}{where};\n{self.cause}"


@dataclass
class Run:
    """What is tried: a trainer with a checkpointer, and the loaders of its run."""

    trainer: Face
    placement: Placement
    recorder: Recorder
    checkpointer: Checkpointer
    loader: Any
    valid_loader: Any

    @property
    def valid_sets(self) -> dict[str, Any]:
        """The validation loaders by name."""
        return named(self.valid_loader)

    @property
    def loaders(self) -> list[Any]:
        """All of them."""
        return [self.loader, *self.valid_sets.values()]


def verify_resume(run: Run, steps: int, max_time: Any) -> ResumeVerification:
    """See `StateManagerAddon.verify_resume`, which is this."""
    refusals.check_number("steps", steps, 1, whole=True)
    seconds = Duration.parse(max_time, "max_time", bare=None)
    if seconds.unit != "s":
        raise ValueError(f"max_time={max_time!r} is no time; write '10min', or a timedelta")
    for name, each in {"loader": run.loader, **{f"valid_loader {k}": v for k, v in run.valid_sets.items()}}.items():
        refusals.check_loader(each, name)
        if isinstance(each, Iterator):
            raise TypeError(
                f"{name} is a {type(each).__name__}, which can be walked once, and cannot be gone on with in another"
                " process; give an iterable that starts anew each time, such as a DataLoader or a list"
            )
    _check_place(run)
    if other := _other_data(run):
        return ResumeVerification(False, None, "the data is not what the run in the folder had", other, 0)
    with tempfile.TemporaryDirectory(prefix="verify-resume-") as name:
        return _Trial(run, steps, Path(name), seconds.count).verified()


def _other_data(run: Run) -> str | None:
    """In what the data differ from those of the run that the trainer's folder has, which would be gone on with."""
    last = committed(run.checkpointer.journal.folder / CHECKPOINTS)[-1:]
    data = last[0].manifest.get("data") if last else None
    if not isinstance(data, dict) or last[0].manifest.get("call") != run.checkpointer.finder.calls:
        return None
    seed = last[0].manifest.get("seed", run.trainer.seed)
    now = same_data.look(run.loader, run.valid_loader, seed, run.placement.processes)
    return ";\n".join(same_data.others(data, now)) or None


def _check_place(run: Run) -> None:
    """Refuse where the check cannot be made."""
    if run.checkpointer.is_running:
        raise RuntimeError("verify_resume was called within run(); call it before")
    if run.placement.processes.count > 1:
        raise ValueError(SEVERAL)
    device = run.placement.device
    if device.type != "cpu" or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        used = f"trains on {device}" if device.type != "cpu" else "is in a process that has used CUDA"
        raise ValueError(
            f"verify_resume forks this process, and forked processes cannot use GPUs, but the trainer {used}; make it"
            " with device='cpu', in a new process: what makes a run inexact shows there, too"
        )
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError(f"verify_resume forks this process, which {sys.platform} cannot do; call it on Linux or macOS")


@dataclass
class _Trial:
    run: Run
    steps: int
    folder: Path
    seconds: float
    run_folder: Path = field(init=False)
    roots: dict[str, Root] = field(init=False)
    shown_folder: str = field(init=False)

    def verified(self) -> ResumeVerification:
        """Run as often as it needs, and compare."""
        self.roots, self.shown_folder = self._roots(), str(getattr(self.run.trainer, "save_path", ""))
        whole = self._fork("whole")
        if whole.error is not None:
            return ResumeVerification(False, None, "nothing can be saved", whole.error, 0)
        self._forget_after(whole)
        resumed = self._fork("whole", resumes=True, heard=False)
        found = first_difference(whole, resumed)
        compared = len({marks.step for marks in whole.after if marks.mode == "train"})
        if found is None:
            return ResumeVerification(True, None, None, None, compared)
        cause = reason_for(found, whole, resumed)
        if cause is None and found.kind == "batch" and not self.run.trainer.seeded_samples and self._has_workers():
            cause = _WORKERS
        if cause is None and first_difference(whole, self._fork("again", heard=False)) is not None:
            cause = _UNREPEATABLE
        return ResumeVerification(False, found.step, found.words, cause or found.general, compared)

    def _has_workers(self) -> bool:
        return any(getattr(each, "num_workers", 0) for each in self.run.loaders)

    def _forget_after(self, whole: Trace) -> None:
        """Leave the run folder as a kill right after the checkpoint would."""
        if not whole.after:
            raise ValueError(
                f"the run ended after {whole.last - whole.began} steps ({whole.ended}), before there was anything to go"
                f" on with; verify_resume takes {2 * self.steps} steps here: give fewer steps="
            )
        for checkpoint in committed(self.folder / "whole" / CHECKPOINTS):
            if checkpoint.step > whole.began + self.steps:
                rmtree(checkpoint.path)

    def _fork(self, name: str, resumes: bool = False, heard: bool = True) -> Trace:
        """Run in a forked process, which is ended when its time is over."""
        self.run_folder, pid = self.folder / name, self.folder / "pid"
        killer = threading.Timer(self.seconds + _GRACE, _kill, (pid,))
        killer.start()
        try:
            trace: Trace | None = run_workers(partial(self._child, pid, resumes, heard), 1, "cpu", {})
        except WorkerError as error:
            if killer.is_alive():
                raise
            raise self._late() from error
        except RuntimeError as error:
            if "fork" not in str(error):
                raise
            raise RuntimeError(
                "verify_resume forks this process, whose threads of backward() do not survive that; call it before the"
                " first run(), or with CUDA_VISIBLE_DEVICES='' in the environment"
            ) from error
        finally:
            killer.cancel()
            pid.unlink(missing_ok=True)
        if trace is None:
            raise self._late()
        if trace.error is not None:
            trace.error = trace.error.replace(str(self.run_folder), self.shown_folder)
        return trace

    def _late(self) -> TimeoutError:
        return TimeoutError(
            f"a run of verify_resume was not done after {self.seconds:g} seconds; give fewer steps=, or a longer"
            " max_time="
        )

    # ------------------------------------------------------------------ in the child

    def _child(self, pid: Path, resumes: bool, heard: bool) -> Trace | None:
        """Train on a copy that a fork has made; None when the time was over."""
        pid.write_text(str(os.getpid()))
        signal.signal(signal.SIGALRM, _out_of_time)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        trainer, loaders = self.run.trainer, self.run.loaders
        _part_from_parent(trainer, loaders)
        decide(trainer, mode="train", log_bar=False, save_path=self.run_folder)
        self.run.checkpointer.save_elsewhere(self.run_folder)
        save = None if resumes else self.run.checkpointer.ask
        tracer = Tracer(trainer, self.steps, self.roots, save)
        warnings.filterwarnings("ignore", "a checkpoint could not be written")  # which the result tells
        vars(trainer).update(run_batch=tracer.run_batch, logging=tracer.logging)
        try:
            with nullcontext() if heard else _unheard():
                if not resumes:
                    return tracer.trace(self._train)
                _start_elsewhere(trainer, self.roots)
                return tracer.trace(partial(self._train, resume="auto"))
        except _OutOfTime:
            return None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            _end_workers(loaders)

    def _train(self, **options: Any) -> None:
        if self.run.valid_loader is not None:
            options |= {"valid_loader": self.run.valid_loader, "valid_every": f"{self.steps}st"}
        self.run.trainer.run(loader=self.run.loader, max_steps=2 * self.steps, **options)

    def _roots(self) -> dict[str, Root]:
        """Where what the user wrote can be reached from."""
        trainer = self.run.trainer
        roots = {
            "trainer": Root("trainer", trainer, owned_by(type(trainer), __name__.partition(".")[0])),
            "model": Root("model", trainer.model),
            "optimizer": Root("optimizer", trainer.optimizer),
            "scheduler": Root("scheduler", trainer.scheduler),
        }
        valid = {f"valid {name} ".replace("  ", " "): each for name, each in self.run.valid_sets.items()}
        for words, loader in {"": self.run.loader, **valid}.items():
            batches = getattr(loader, "batch_sampler", None)
            parts = [getattr(loader, name, None) for name in _PARTS] + [getattr(batches, "sampler", None)]
            for part in (loader, batches, *parts):
                if part is not None and not isinstance(part, DataLoader):
                    name = words + getattr(part, "__name__", type(part).__name__)
                    roots.setdefault(name, Root("data", part))
        return roots


class _OutOfTime(BaseException):
    """No Exception, so that nobody who handles errors keeps it to himself."""


def _out_of_time(number: int, frame: FrameType | None) -> NoReturn:
    raise _OutOfTime


def _kill(pid: Path) -> None:
    with suppress(OSError, ValueError):
        os.kill(int(pid.read_text()), signal.SIGKILL)


def _part_from_parent(trainer: Face, loaders: list[Any]) -> None:
    """Leave alone what the parent goes on with: workers that stay, and tensors in shared memory."""
    for copies in (sample_ids.copies, sample_ids.streams):
        _inherited.append(dict(copies))
        copies.clear()
    for loader in loaders:
        if getattr(loader, "_iterator", None) is not None:
            _inherited.append(loader._iterator)
            loader._iterator = None
    model, state = trainer.model, trainer.optimizer.state if trainer.optimizer is not None else {}
    kept = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    for tensor in (*kept, *(value for own in state.values() for value in own.values())):
        if isinstance(tensor, Tensor) and not is_lazy(tensor) and tensor.is_shared():  # type: ignore[no-untyped-call]
            tensor.data = tensor.data.clone()


def _end_workers(loaders: list[Any]) -> None:
    """Let workers that stay end by themselves: ended by a signal, they would leave their temporary folders."""
    copies = chain(sample_ids.copies.values(), sample_ids.streams.values())
    for loader in (*loaders, *(copied[0] for copied in copies)):
        if getattr(loader, "_iterator", None) is not None:
            loader._iterator = None


def _start_elsewhere(trainer: Face, roots: dict[str, Root]) -> None:
    """Be as different from the first run as another process, which knows nothing of it, would be."""
    shake(roots)
    chance = int.from_bytes(os.urandom(4), "little")
    seed_host(chance)
    if not trainer.seed_was_given:
        decide(trainer, seed=chance)


@contextmanager
def _unheard() -> Iterator[None]:
    """What the first run has said and printed is not repeated."""
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
