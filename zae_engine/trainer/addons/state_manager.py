"""Checkpoints: written beside the training, gone on from exactly, left behind when a signal ends the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from ...checkpoint.errors import CheckpointError
from ...checkpoint.folder import CHECKPOINTS, Checkpoint
from ...launch.start import interactive
from ...near import nearest
from ..checks import check_choice, check_number, read_limits
from ..console.bar import make_bar
from ..journal.settings import differences
from ..limits import Budget, Duration, Interval
from ..options import fixed
from ..processes.signals import Interrupted, signals_noted
from ..resume.checkpointer import Keeper
from ..resume.same_data import look, others
from ..verify.resume import ResumeVerification, verify_resume
from .run_folder import RunFolderAddon

_FORMATS = {"safetensors": ".safetensors", "safetensor": ".safetensors", "ckpt": ".ckpt"}


class StateManagerAddon(RunFolderAddon):
    """Saves everything that a run needs to go on exactly, and goes on from it.

    Parameters
    ----------
    save_path : path-like
        The run's folder, of one run only. Its best weights lie there as ``model.safetensors`` (or ``.ckpt``).
    save_format : {'safetensors', 'ckpt'}
        Of the tensors. A ``.ckpt`` loads with ``torch.load(path, weights_only=True)``.
    save_every : int, str or timedelta
        ``'1ep'``, ``'500st'``, ``'10min'``; an integer counts epochs. The end of a run is always saved.
    keep_last : int or None
        How many of the newest checkpoints are kept; None keeps all.
    keep_best : int
        How many of the best ones, by ``monitor=``, are kept beside them. What a kept one needs is kept, too.
    save_async : bool
        Write beside the training, which then waits only for a copy to be made in memory.
    save_required : bool
        End the run when a checkpoint could not be written. Otherwise it is told, and the run goes on.

    Raises
    ------
    TypeError, ValueError
        For a missing ``save_path``, or an option that means nothing.

    Notes
    -----
    `run` gets a further option, ``resume``: ``'auto'`` starts, goes on from the newest whole checkpoint, or says that
    the run is done; ``'last'``, ``'best'`` or a path want a checkpoint to be there. What was saved elsewhere is
    continued here. Each sample gets random streams of its own (``seeded_samples=True``) unless told otherwise, since
    nothing else can be gone on with in the middle of an epoch.

    During a run, SIGTERM, SIGUSR1, Ctrl-C and the end of ``max_time`` (beside another limit) let all processes save at
    one step and exit with code 75.

    Examples
    --------
    >>> trainer = MyTrainer.add_on(StateManagerAddon)(model, optimizer=optimizer, save_path="runs/first")
    >>> trainer.run(n_epoch=50, loader=loader, valid_loader=valid_loader, resume="auto")
    """

    save_format: str = fixed()
    save_every: Any = fixed()
    keep_last: int | None = fixed()
    keep_best: int = fixed()
    save_async: bool = fixed()
    save_required: bool = fixed()

    # The trainer's.
    _resumable = True
    _finish_call: Callable[[], None]
    _resumed: Any
    log_bar: bool
    seed: int
    seed_was_given: bool
    is_main_process: bool
    _save_due: bool
    _leaves: bool
    _called: str | None
    _saving: Interval | None
    _conclude: Callable[..., None]

    def __init__(
        self,
        *args: Any,
        save_path: str | os.PathLike[str] | None = None,
        save_format: str = "safetensors",
        save_every: int | str | timedelta = "1ep",
        keep_last: int | None = 2,
        keep_best: int = 1,
        save_async: bool = True,
        save_required: bool = False,
        **kwargs: Any,
    ) -> None:
        if not isinstance(save_path, (str, os.PathLike)) or not str(save_path):
            near = nearest("save_path", kwargs) if save_path is None else None
            hint = f"write save_path= for {near}=" if near else "give the folder of this run: save_path='runs/first'"
            raise TypeError(f"StateManagerAddon got save_path={save_path!r}; {hint}")
        check_choice("save_format", save_format, tuple(_FORMATS))
        if keep_last is not None:
            check_number("keep_last", keep_last, 1, whole=True)
        check_number("keep_best", keep_best, 0, whole=True)
        for name, value in (("save_async", save_async), ("save_required", save_required)):
            if not isinstance(value, bool):
                raise TypeError(f"{name}={value!r} is not accepted; write True or False")
        every = Duration.parse(save_every, "save_every")
        if kwargs.get("seeded_samples") is None:
            kwargs["seeded_samples"] = True
        super().__init__(*args, save_path=save_path, **kwargs)
        self.save_format, self.save_every = save_format, save_every
        self.keep_last, self.keep_best = keep_last, keep_best
        self.save_async, self.save_required = save_async, save_required
        how = (every, (keep_last, keep_best), save_async, save_required)
        self._keeper = Keeper(self._run_log, _FORMATS[save_format], *how)
        self._run_log.best = self._run_log.folder / f"model{_FORMATS[save_format]}"
        self._saving = Interval(every) if every.unit == "s" else None
        self._keeps = False

    # ------------------------------------------------------------------ running

    def run(
        self,
        n_epoch: Any = None,
        loader: Any = None,
        valid_loader: Any = None,
        *,
        resume: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Any:
        """Run, and save meanwhile; with `resume`, first go back to where the run was.

        Raises
        ------
        CheckpointError
            When the folder has a run of before and `resume` does not say what to do with it, another job writes into
            it, its run had other settings or data, or with ``save_required`` a checkpoint could not be written.
        Interrupted
            A SystemExit with code 75: the run was asked to end, and has saved. In a session, Ctrl-C raises
            KeyboardInterrupt instead.
        """
        if not isinstance(resume, (str, os.PathLike, type(None))) or resume == "":
            raise TypeError(f"resume={resume!r} is not accepted; write 'auto', 'last', 'best' or a checkpoint's path")
        words = () if resume is None or Path(resume).exists() else ("auto", "last", "best")
        if resume not in words and (near := nearest(str(resume), words, 0.7)):
            raise ValueError(f"resume={resume!r} is no checkpoint; did you mean {near!r}?")
        if self.mode == "test":
            if resume is not None:
                raise ValueError("resume= goes on with a training; in mode 'test', load_state('best') loads a state")
            return super().run(n_epoch, loader, valid_loader, **options)
        self._refuse_session()
        self._check_call(loader, valid_loader, options)
        self._note_settings()
        self._note_facts(loader, valid_loader, {"n_epoch": n_epoch, **options})
        self._keeper.data = {}
        with self._keeper.holding():
            limits = {k: options.get(k) for k in ("max_steps", "max_time")}
            if self._taken_up(resume, n_epoch, limits, (loader, valid_loader)):
                return self.history
            self._keeper.data = self._keeper.data or look(loader, valid_loader, self.seed, self._processes)
            with self._keeping():
                return super().run(n_epoch, loader, valid_loader, **options)

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        with self._keeper.running(), signals_noted(self._call_away):
            self._keeps = self._leaves = True
            try:
                yield
                self._keeper.finish()  # here, since a signal must not end the process while the run's end is written
                if called := self._keeper.called_away():
                    self._go(called, "The run had come to its end, and is saved.")
            finally:
                self._keeps = self._leaves = False
                self._called = None

    @property
    def _kept(self) -> dict[str, Any]:
        """What a session has to know of the calls of `run` that its workers made."""
        return {"log": self._run_log.memory, "keeper": self._keeper.memory}

    @_kept.setter
    def _kept(self, values: dict[str, Any]) -> None:
        self._run_log.memory, self._keeper.memory = values["log"], values["keeper"]

    def _call_away(self, reason: str) -> None:
        self._called = self._called or reason

    def _at_rest(self) -> None:
        if self._keeps:
            self._keeper.at_rest()
        super()._at_rest()

    def _leave(self, reason: str) -> NoReturn:
        """Save, wait until it is written on every process, and go."""
        self._go(reason, self._keeper.leave(reason))

    def _go(self, reason: str, where: str) -> NoReturn:
        step, epoch = self.progress_checker.get_step() - 1, self.progress_checker.get_epoch()
        if self.is_main_process:
            said = f"Ended by {reason} at step {step:,} (epoch {epoch}). {where}"
            print(said, file=sys.stderr, flush=True)
        if reason == "SIGINT" and interactive():
            raise KeyboardInterrupt(where)
        raise Interrupted(f"{reason} at step {step}: {where}")

    def check_better(self, cur_epoch: int, cur_loss: float) -> bool:
        """Note the value for the checkpoint."""
        better: bool = super().check_better(cur_epoch, cur_loss)
        if self._keeps:
            self._keeper.monitored(cur_loss, better)
        return better

    # ------------------------------------------------------------------ states

    def save_state(self) -> Path | None:
        """Save now; within a run as soon as no step is half done, which is then None's meaning.

        Every process calls it.

        Returns
        -------
        Path or None
            The checkpoint's folder.
        """
        if self._keeps:
            self._save_due = True
            return None
        if self._open is not None:
            raise CheckpointError("the last run broke off within an epoch; load_state('last') goes back first")
        self._note_settings()
        with self._keeper.holding(), self._keeper.running(counts=False):
            name = self._keeper.save(complete=self._keeper.calls > 0 and self._resumed is None)
            self._keeper.finish()
        return self.save_path / CHECKPOINTS / name

    def load_state(self, which: str | os.PathLike[str] = "last") -> Path:
        """Load model, optimizer, scheduler, counters, history, best weights, add-ons; `run` goes on from there.

        Nothing is compared with the settings of then, except what has to fit. Every process calls it.

        Parameters
        ----------
        which : str or path-like
            ``'last'`` (the newest whole one), ``'best'`` (by the monitored value), a checkpoint, or a run's folder.

        Returns
        -------
        Path
            The checkpoint's folder.

        Raises
        ------
        CheckpointError
            When there is none, it is damaged, or does not fit this trainer; and within a run.
        """
        if self._keeps:
            raise CheckpointError("load_state() cannot go back within a run; stop('...') ends it, then call it")
        self._note_settings()
        found = self._keeper.find(which if which in ("last", "best") else Path(which))
        if found is None:
            raise CheckpointError(f"{str(self.save_path)!r} has no whole checkpoint")
        self._keeper.load(found)
        return found.path

    def verify_resume(
        self, loader: Any, steps: int = 3, valid_loader: Any = None, *, max_time: str | timedelta = "10min"
    ) -> ResumeVerification:
        """Try whether a run that is interrupted goes on to the bit, and name the first thing that differs.

        A fork of this process trains ``2 * steps`` steps, and saves in the middle. Another one goes on from there with
        other random streams, as a new process has them. Batches, values, streams, gradients, weights, optimizer and
        history are compared. This process, its trainer and its run folder stay as they are.

        Parameters
        ----------
        loader : DataLoader or iterable of batches
        steps : int
            How many before the checkpoint, and after it. To see the end of an epoch, take more than it has.
        valid_loader : loader, or dict of named loaders, optional
            Evaluated every ``steps`` steps.
        max_time : str or timedelta
            Of each of the forks.

        Returns
        -------
        ResumeVerification
            True when the runs are equal; its ``cause`` says why they are not.

        Raises
        ------
        ValueError
            On a GPU, on several processes, or where a process cannot be forked.
        TimeoutError
            When a fork is not done in time.

        Notes
        -----
        An error of the user's code is raised as it is. A fork has what this process has built, so what a new process
        would build otherwise is not seen: a tensor outside of ``state_dict()`` that is drawn when the model is made,
        or the order of a set of strings, which PYTHONHASHSEED decides.

        Examples
        --------
        >>> found = trainer.verify_resume(loader)
        >>> assert found, found.cause
        """
        return verify_resume(self, loader, steps, valid_loader, max_time)

    def _taken_up(self, resume: Any, n_epoch: Any, limits: dict[str, Any], loaders: tuple[Any, Any]) -> bool:
        """Go back to where the run was; return whether nothing is left to do."""
        keeper = self._keeper
        if resume is None:
            keeper.refuse_foreign()
            keeper.refuse_to_skip()
            return False
        which = "last" if resume in ("auto", "last") else "best" if resume == "best" else Path(resume)
        found = keeper.find(which)
        if isinstance(which, Path) and not which.resolve().is_relative_to(self.save_path.resolve()):
            keeper.refuse_foreign()
        if found is None:
            if resume != "auto":
                raise CheckpointError(f"resume={resume!r}: {str(self.save_path)!r} has no whole checkpoint")
            keeper.refuse_damaged()
            keeper.refuse_broken()
            return False
        call = found.manifest.get("call", 0)
        if resume != "auto":  # that very checkpoint is wanted, whichever later call of a script it is of
            keeper.calls = max(keeper.calls, call)
        if resume == "auto" and keeper.has_done(call):
            return False
        if keeper.calls < call:  # nothing is compared: the script has yet to change what it had changed by then
            self._tell(f"Call {keeper.calls + 1} of run() was done before; {found.path.name} is of call {call + 1}.")
            keeper.pass_over(found)
            return True
        self._compare(found, loaders if keeper.calls == call else None)
        state = keeper.load(found)
        keeper.show_best()
        if self._is_done(state, n_epoch, limits):
            self._conclude(*loaders)
            keeper.has_loaded_its_end()
            self._tell(f"The run is done: {found.manifest['epoch']} epochs, {found.step:,} steps; its state is loaded.")
            keeper.calls += 1
            return True
        self._tell(f"Going on from {found.path.name}: epoch {found.manifest['epoch'] + 1}, step {found.step + 1:,}.")
        return False

    def _is_done(self, state: dict[str, Any], n_epoch: Any, limits: dict[str, Any]) -> bool:
        """Whether this call of `run` was brought to its end before; if it was interrupted, it is to be finished."""
        if self._keeper.calls != state["call"]:
            return False
        if not state["begun"] and not state["complete"]:  # save_state() has saved it between two calls
            return False
        position = state["position"]
        self._budget = budget = Budget(read_limits(n_epoch, **limits, mode="train"), *position["began"])
        epochs, steps = self.progress_checker.get_epoch() - 1, self.progress_checker.get_step() - 1
        over = epochs >= budget.last_epoch or steps >= budget.last_step
        if not position["midway"] and (over or (state["complete"] and position["stop"])):
            return True
        self._finish_call()
        return False

    def _compare(self, found: Checkpoint, loaders: tuple[Any, Any] | None) -> None:
        """Refuse what would change the result, and show what else has changed since the checkpoint."""
        manifest, (settings, circumstances) = found.manifest, self._run_log.facts
        then = dict(manifest.get("settings", {}))
        data_too = (
            loaders is not None and "the dataset" in then
        )  # it is not in what save_state() has saved before any run
        now = dict(settings if data_too else self._settings)
        if self.seed_was_given:
            then["seed"], now["seed"] = manifest.get("seed"), self.seed
        other = differences({k: then.get(k) for k in now}, now)
        if loaders is not None and data_too and (data := manifest.get("data")):
            self._keeper.data = look(*loaders, manifest.get("seed", self.seed), self._processes)
            other += others(data, self._keeper.data)
        if other:
            raise CheckpointError(
                f"{str(found.path)!r} is of a run with other settings, and going on would make another model:\n  "
                + "\n  ".join(other)
                + "\nPut them back; or give another save_path= for a new run; or, to go on in the new way, call"
                " load_state('last'), set anew what was loaded (the learning rate, say), and run(...) without resume="
            )
        if data_too and (shown := differences(manifest.get("circumstances", {}), circumstances)):
            self._tell("Since the checkpoint:\n  " + "\n  ".join(shown))

    def _tell(self, words: str) -> None:
        if self.log_bar and self.is_main_process:
            make_bar(True).write(words)
