"""Which checkpoint of a run's folder is gone on from, whether a run may begin there, and what the trainer gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...checkpoint.errors import CheckpointError
from ...checkpoint.folder import CHECKPOINTS, Checkpoint, choose, committed
from ..interface import Face
from ..journal.journal import Journal
from ..limits import Budget, Duration
from ..loop.open_epoch import Loaded
from ..loop.run_status import Standing
from ..step.placement import Placement
from ..warn import warn
from .best_in_checkpoints import BestInCheckpoints, is_inside
from .position import conclude
from .trainer_state import TrainerState, fitting

Put = Callable[[TrainerState, Checkpoint, dict[str, Any]], tuple[dict[str, Any], Loaded]]


class Finder:
    """Finds the checkpoint that a run goes on from, and loads it; every process calls the same methods.

    Parameters
    ----------
    journal : Journal
        The run's, with its folder.
    placement : Placement

    Attributes
    ----------
    calls : int
        Calls of `run` that this trainer has brought to their end.
    loaded : Loaded or None
        What the next one goes on from, when something was loaded.
    settings : dict
        What the result depends on, as the trainer was made.
    kept : BestInCheckpoints
        Where the best weights are.
    """

    def __init__(self, journal: Journal, placement: Placement) -> None:
        self._journal, self._recorder, self._place = journal, journal.recorder, placement
        self.calls, self.settings, self.kept = 0, dict[str, Any](), BestInCheckpoints(journal.recorder.best)
        self.loaded: Loaded | None = None

    def names(self) -> list[str]:
        """The checkpoints of the folder, as process 0 sees them."""
        folder = self._journal.folder / CHECKPOINTS
        return self._journal.processes.on_first(lambda: [c.path.name for c in committed(folder)])

    def find(self, which: str | Path) -> Checkpoint | None:
        """The checkpoint to go on from, verified; the same one on every process.

        Raises
        ------
        CheckpointError
            When there are checkpoints, none of which is the best that is wanted.
        """
        processes, folder = self._journal.processes, self._journal.folder
        found, said = processes.on_first(lambda: choose(folder / CHECKPOINTS, which))
        if found is None and which == "best" and self.names():
            raise CheckpointError(f"{str(folder)!r}: {'; '.join(said)}")
        for sentence in said if processes.first else ():
            warn(sentence)
        return found

    def refuse_foreign(self) -> None:
        """Refuse to begin a run in the folder of another one."""
        last, journal = self.names()[-1:], self._journal
        if last and not journal.standing.owns and journal.after is None:
            raise CheckpointError(
                f"save_path={str(journal.folder)!r} has the checkpoints of an earlier run (the last: {last[0]}); write"
                " run(..., resume='auto') to go on with it, or give another save_path="
            )

    def refuse_to_skip(self) -> None:
        """Refuse to go on from within a run that broke off, whose last steps are in no checkpoint and no history."""
        last = self.names()[-1:]
        if self._journal.standing is Standing.BROKEN and last:
            raise CheckpointError(
                f"the last run broke off, and {last[0]} was saved before; write run(..., resume='auto') to go on from"
                " it, or load_state('last') and run(...) to begin a run there"
            )

    def refuse_broken(self, done: int) -> None:
        """Refuse to begin a run from somewhere within one that broke off before anything was saved.

        Parameters
        ----------
        done : int
            Optimizer steps.
        """
        if self._journal.standing is Standing.BROKEN and done:
            raise CheckpointError(
                f"the last run broke off after step {done} with nothing saved, so there is nothing to go back to; make"
                " model, optimizer and trainer anew, or call run(...) without resume= to go on from where they are"
            )

    def refuse_damaged(self) -> None:
        """Refuse to begin anew where there are checkpoints, if only damaged ones."""
        if there := self.names():
            raise CheckpointError(
                f"none of the checkpoints in {str(self._journal.folder / CHECKPOINTS)!r} is whole"
                f" ({', '.join(there)}); `zae checkpoint verify` says why. To begin anew, move the folder away"
            )

    # ------------------------------------------------------------------ going on

    def has_done(self, call: int) -> bool:
        """Whether this trainer, as it is, has done that call of `run`, so that there is nothing to load."""
        journal = self._journal
        own = journal.standing is Standing.ENDED and journal.after is None
        return (own or journal.standing is Standing.CONCLUDED) and call < self.calls

    def load(self, trainer: Face, checkpoint: Checkpoint) -> dict[str, Any]:
        """Give the trainer a checkpoint's state; return the document of process 0."""
        return self._take(trainer, checkpoint, TrainerState.put)

    def pass_over(self, trainer: Face, checkpoint: Checkpoint) -> None:
        """A call of `run` was done before, and the checkpoint is of a later one, which has to load it."""
        self._take(trainer, checkpoint, TrainerState.put_passed)
        self._journal.after = None  # so that a later call which does not is refused
        self._journal.standing = self._journal.standing.after("pass over")
        self.calls += 1

    def goes_on(self, state: dict[str, Any], limits: list[Duration]) -> bool:
        """Whether the call of `run` that was loaded has something left to do; then it is finished by the next one.

        Parameters
        ----------
        state : dict
            The document of process 0.
        limits : list of Duration
            Of the call, counted from where it began.
        """
        assert self.loaded is not None  # a checkpoint was loaded
        if self.calls != state["call"] or (not state["begun"] and not state["complete"]):  # saved between two calls
            return True
        position, counters = state["position"], self._recorder.counters
        budget = self._recorder.training.budget = Budget(limits, *position["began"])
        over = counters.get_epoch() > budget.last_epoch or counters.get_step() > budget.last_step
        if not position["midway"] and (over or (state["complete"] and position["stop"])):
            return False
        self.loaded.finishes = True
        return True

    def conclude(self, trainer: Face, loader: Any, valid_loader: Any) -> None:
        """Count a call of `run` whose end, as it was left, is what was loaded: the next call begins from there."""
        assert self.loaded is not None  # a checkpoint was loaded
        conclude(trainer, self._recorder, self.loaded, loader, valid_loader)
        self.loaded = None
        self._journal.standing = self._journal.standing.after("conclude")
        self.calls += 1

    def _take(self, trainer: Face, checkpoint: Checkpoint, put: Put) -> dict[str, Any]:
        journal = self._journal
        journal.standing, journal.after = journal.standing.after("load"), None  # also when it is put in partly only
        state, self.loaded = put(TrainerState(trainer, self._place, self._recorder), checkpoint, self.settings)
        inside = is_inside(checkpoint, journal.folder)
        after = checkpoint.manifest.get("history", 0) if inside else 0
        journal.go_on_from(after, str(checkpoint.path.name if inside else checkpoint.path), inside)
        with fitting(checkpoint):
            self.kept.load(trainer, self._place.processes, checkpoint, state, inside)
        return dict(state)

    def show_best(self) -> None:
        """Let the run folder have the best weights of the run that goes on."""
        if self._place.processes.first:
            self.kept.show(self._journal.folder)
