"""A trainer's waits: who is told what it is at, how long it may wait, and what a run that waits too long ends with."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate.utils import InitProcessGroupKwargs

from ...launch.child_processes import has_workers
from ..hangs.loader_workers import let_tell
from ..hangs.peer_store import Peers, address
from ..hangs.waits import Waits
from ..hangs.watchdog import Watch
from ..interface import Face
from ..limits import Duration
from .group import Processes


def check_wait(value: Any) -> float | None:
    """Return ``max_wait=`` in seconds."""
    if value is None:
        return None
    seconds = Duration.parse(value, "max_wait", bare=None)
    if seconds.unit != "s":
        raise ValueError(f"max_wait={value!r} is no time; write '10min' or a timedelta, or None for no end")
    return seconds.count


class Guard:
    """What a trainer keeps for its waits.

    Parameters
    ----------
    trainer : Trainer
        Is not kept alive by this.
    processes : Processes
        Among which it trains; are told how long to wait.
    limit : float or None
        In seconds.

    Attributes
    ----------
    plans : mapping
        What is walked over at present, by mode: that its position moves tells slowness from a stand-still.
    """

    def __init__(self, trainer: Face, processes: Processes, limit: float | None) -> None:
        self._trainer = weakref.ref(trainer)
        self.plans: Mapping[str, Any] = {}
        self._waits = processes.waits = Waits(limit, processes.index, processes.count, self._where)
        theirs = any(isinstance(handler, InitProcessGroupKwargs) for handler in trainer.kwargs_handlers or ())
        if processes.count > 1 and not theirs:
            _limit_group(limit)
        peers = Peers(processes.gather(address()), processes.index)
        self._watch = Watch(self._waits, peers, self._counted)
        if processes.count > 1:
            self._waits.explain = self._explain
            self._watch.start()

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        """For a copy of the trainer, which is looked at by itself."""
        like = memo[id(self)] = copy.copy(self)
        trainer = self._trainer()
        assert trainer is not None  # it is being copied
        like._trainer, like.plans = weakref.ref(copy.deepcopy(trainer, memo)), {}
        like._waits = copy.deepcopy(self._waits, memo)
        like._watch = Watch(like._waits, self._watch.peers, like._counted)
        return like

    def _explain(self, error: Exception) -> str:
        return self._watch.explain(error)

    def _counted(self) -> Any:
        trainer, plans = self._trainer(), self.plans
        if trainer is None or not plans:
            return None
        plan, checker = plans.get(trainer.mode), trainer.progress_checker
        return trainer.mode, checker.get_step(), checker.get_epoch(), plan and plan.position, len(trainer.history)

    def _where(self) -> str:
        trainer = self._trainer()
        if trainer is None:
            return "no run"
        step = trainer.progress_checker.get_step()
        return f"step {step}" if trainer.mode == "train" else f"the evaluation after step {step - 1}"

    @contextmanager
    def run(self, loaders: Iterable[Any]) -> Iterator[None]:
        """Around a run: whoever waits says for whom, and an exchange that fails names the process that is the cause."""
        if self._waits.count == 1 and not any(map(has_workers, loaders)):
            yield  # nobody is there to be waited for
            return
        let_tell()
        self._waits.running = True
        self._watch.start()
        try:
            yield
        except Exception as error:
            text = self._waits.explain(error)
            self._watch.fail(error)
            if text:
                raise RuntimeError(text) from error
            raise
        finally:
            self._waits.running = False
            if self._waits.count == 1:
                self._watch.end()


def _limit_group(limit: float | None) -> None:
    """Let an exchange of the process group end with an error after so many seconds."""
    setter = getattr(torch.distributed.distributed_c10d, "_set_pg_timeout", None)
    if limit is not None and setter is not None:
        setter(timedelta(seconds=limit))
