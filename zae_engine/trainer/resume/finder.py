"""How a run is taken up again: which checkpoint, whether that may be, and what the trainer gets from it.

The trainer is passed as Any, since its module is above this one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...checkpoint.disk import digest
from ...checkpoint.documents import read_tensors
from ...checkpoint.errors import CheckpointError
from ...checkpoint.folder import CHECKPOINTS, Checkpoint, choose, committed, problems_of
from ..journal.journal import RunLog
from ..processes.group import Processes
from ..warn import warn
from .trainer_state import best_of, fitting, put_passed, put_whole, with_twins
from .writer import MODEL, publish

_MEMORY = ("calls", "_at_an_end", "_best")


class TakingUp:
    """Finds and loads the checkpoints of one run folder.

    Parameters
    ----------
    log : RunLog
        The run's, with its folder.

    Attributes
    ----------
    calls : int
        Calls of `run` that this trainer has brought to their end.
    """

    def __init__(self, log: RunLog) -> None:
        self.log, self.calls = log, 0
        self._monitored: tuple[int, float, bool] | None = None  # step, value, whether it was the best
        self._best: dict[str, Any] | None = None  # where the best weights are: epoch, serial
        self._best_file: Path | None = None  # of a checkpoint that was loaded
        self._best_weights: Any = None  # the very dict of the trainer's weight_buffer that is there
        self._at_an_end = False  # whether the end of the last call was loaded, and nothing since
        self._broken = False  # whether the last call broke off, so that the trainer stands where no checkpoint does

    @property
    def trainer(self) -> Any:
        """Whose run it is."""
        return self.log.trainer

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.log.folder

    @property
    def _processes(self) -> Processes:
        return self.log.processes

    @property
    def memory(self) -> dict[str, Any]:
        """What the next call of `run` has to know, as plain values; to be set in another process."""
        return {name: getattr(self, name) for name in _MEMORY}

    @memory.setter
    def memory(self, values: dict[str, Any]) -> None:
        vars(self).update(values)

    def refuse_foreign(self) -> None:
        """Refuse to begin a run in the folder of another one."""
        last = self._names()[-1:]
        if last and not self.log.mine and self.log.after is None:
            raise CheckpointError(
                f"save_path={str(self.folder)!r} has the checkpoints of an earlier run (the last: {last[0]}); write"
                " run(..., resume='auto') to go on with it, or give another save_path="
            )

    def refuse_broken(self) -> None:
        """Refuse to begin a run from somewhere within one that broke off before anything was saved."""
        done = self.trainer.progress_checker.get_step() - 1
        if self._broken and done:
            raise CheckpointError(
                f"the last run broke off after step {done} with nothing saved, so there is nothing to go back to; make"
                " model, optimizer and trainer anew, or call run(...) without resume= to go on from where they are"
            )

    def refuse_to_skip(self) -> None:
        """Refuse to go on from within a run that broke off, whose last steps are in no checkpoint and no history."""
        last = self._names()[-1:]
        if self._broken and last:
            raise CheckpointError(
                f"the last run broke off, and {last[0]} was saved before; write run(..., resume='auto') to go on from"
                " it, or load_state('last') and run(...) to begin a run there"
            )

    def refuse_damaged(self) -> None:
        """Refuse to begin anew where there are checkpoints, if only damaged ones."""
        if there := self._names():
            raise CheckpointError(
                f"none of the checkpoints in {str(self.folder / CHECKPOINTS)!r} is whole ({', '.join(there)}); `zae"
                " checkpoint verify` says why. To begin anew, move the folder away"
            )

    def _names(self) -> list[str]:
        """The checkpoints of the folder, as process 0 sees them."""
        return self._processes.on_first(lambda: [c.path.name for c in committed(self.folder / CHECKPOINTS)])

    def has_done(self, call: int) -> bool:
        """Whether this trainer, as it is, has done that call of `run`, so that there is nothing to load."""
        own = self.log.mine and self.log.after is None
        return not self._broken and (own or self._at_an_end) and call < self.calls

    def has_loaded_its_end(self) -> None:
        """Count a call of `run` whose end, as it was left, is what was loaded: the next call begins from there."""
        self._at_an_end = True

    def find(self, which: str | Path) -> Checkpoint | None:
        """The checkpoint to go on from, verified; the same one on every process.

        Raises
        ------
        CheckpointError
            When there are checkpoints, none of which is the best that is wanted.
        """
        found, said = self._processes.on_first(lambda: choose(self.folder / CHECKPOINTS, which))
        if found is None and which == "best" and self._names():
            raise CheckpointError(f"{str(self.folder)!r}: {'; '.join(said)}")
        for sentence in said if self._processes.first else ():
            warn(sentence)
        return found

    def load(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Give the trainer a checkpoint's state; return the document of process 0."""
        return self._taken(checkpoint, put_whole)

    def pass_over(self, checkpoint: Checkpoint) -> None:
        """A call of `run` was done before, and the checkpoint is of a later one, which has to load it."""
        self._taken(checkpoint, put_passed)
        self.log.after = None  # so that a later call which does not is refused
        self.calls += 1

    def _taken(self, checkpoint: Checkpoint, put: Callable[[Any, Checkpoint], dict[str, Any]]) -> dict[str, Any]:
        self._at_an_end, self.log.mine = False, False  # also when it is put in partly only
        state = put(self.trainer, checkpoint)
        self._broken = False
        with fitting(checkpoint):
            self._best = state["best"] if self._is_comparable(state) else None
        self._best_weights, self._monitored = None, None
        inside = checkpoint.path.parent.resolve() == (self.folder / CHECKPOINTS).resolve()
        self.log.after = checkpoint.manifest.get("history", 0) if inside else 0
        self.log.origin = str(checkpoint.path.name if inside else checkpoint.path)
        self.log.begins = not inside
        with fitting(checkpoint):
            self._load_best(checkpoint, inside, state["best_extra"])
        return state

    def _is_comparable(self, state: dict[str, Any]) -> bool:
        """Whether the best of a checkpoint was told by what tells it now."""
        then, now = state["stack"]["Trainer"].get("monitor"), self.trainer._monitor.watched
        if not then or [*then[:2]] == now[:2]:
            return True
        if state["best"] is not None:
            was, is_now = (f"{name} ({mode})" for name, mode, _ in (then, now))
            warn(f"the best weights so far are the best by {was}; by {is_now} they are looked for anew from here on")
        return False

    def _load_best(self, checkpoint: Checkpoint, inside: bool, extra: dict[str, Any]) -> None:
        buffer: dict[str, list[Any]] = {"epoch": [], "weight": []}
        self._best_file = None
        if self._best is not None:
            holder = self._holder(checkpoint, self._best["serial"])
            if holder is None:
                epoch, serial = self._best["epoch"] + 1, self._best["serial"]
                warn(
                    f"the best weights (epoch {epoch}) are gone: checkpoint {serial:06d}, which held them, is not there"
                    " or is damaged; apply_weights() knows those that come from now on"
                )
                self._best = None
            else:
                file = best_of(holder)
                self._best_file = file if inside else None
                weights = with_twins(self.trainer.model, read_tensors(file) | extra)
                buffer = {"epoch": [self._best["epoch"]], "weight": [weights]}
                self._best_weights = weights if inside else None
        self.trainer.weight_buffer = buffer

    def show_best(self) -> None:
        """Let the run folder have the best weights of the run that goes on, if a crash came before they were there."""
        source = self._best_file
        if source is None or not self._processes.first:
            return
        there = self.folder / f"{MODEL}{source.suffix}"
        try:
            if there.is_file() and (there.samefile(source) or digest(there) == digest(source)):
                return
        except OSError:  # it is made anew
            pass
        for sentence in publish(source, self.folder):
            warn(sentence)

    def _holder(self, checkpoint: Checkpoint, serial: int) -> Checkpoint | None:
        if serial == checkpoint.serial:
            return checkpoint
        return self._processes.on_first(lambda: _whole_one(checkpoint.path.parent, serial))


def _whole_one(folder: Path, serial: int) -> Checkpoint | None:
    found = next((c for c in committed(folder) if c.serial == serial), None)
    return found if found is not None and not problems_of(found.path) else None
