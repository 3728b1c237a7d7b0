"""Checkpoints: written beside the training, gone on from exactly, left behind when a signal ends the run."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from ...checkpoint.errors import CheckpointError
from ...checkpoint.folder import Checkpoint
from ...suggestions import nearest
from ..console.bar import make_bar
from ..journal.settings import differences
from ..limits import Duration
from ..options import fixed
from ..refusals import check_choice, check_number, read_limits
from ..resume.checkpointer import Checkpointer
from ..resume.finder import Finder
from ..resume.same_data import look, others
from ..verify.resume import SEVERAL, ResumeVerification, Run, verify_resume
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
        suffix, keep = _FORMATS[save_format], (keep_last, keep_best)
        self._journal.best = self._journal.folder / f"model{suffix}"
        self._finder = Finder(self._journal, self._place)
        parts = (self._journal, self._finder, self._place)
        self._checkpointer = Checkpointer(*parts, suffix, every, keep, save_async, save_required)
        self._companions.insert(0, self._checkpointer)  # what it saves is noted by the journal

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
        keeper = self._checkpointer
        keeper.data, self._finder.settings = {}, self._settings
        with keeper.holding():
            limits = {"n_epoch": n_epoch, **{k: options.get(k) for k in ("max_steps", "max_time")}}
            if self._taken_up(resume, limits, (loader, valid_loader)):
                return self.history
            keeper.data = keeper.data or look(loader, valid_loader, self.seed, self._place.processes)
            with keeper.keeping(self):
                return super().run(n_epoch, loader, valid_loader, **options)

    @property
    def _kept(self) -> dict[str, Any]:
        """What a session has to know of the calls of `run` that its workers made."""
        return {"journal": self._journal.memory, "checkpointer": self._checkpointer.memory}

    @_kept.setter
    def _kept(self, values: dict[str, Any]) -> None:
        self._journal.memory, self._checkpointer.memory = values["journal"], values["checkpointer"]

    def check_better(self, cur_epoch: int, cur_loss: float) -> bool:
        """Note the value for the checkpoint."""
        better: bool = super().check_better(cur_epoch, cur_loss)
        if self._checkpointer.is_running:
            self._checkpointer.monitored(self.model, cur_loss, better)
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
        if self._checkpointer.is_running:
            self._checkpointer.ask()
            return None
        if self._checkpointer.broke_off_midway:
            raise CheckpointError("the last run broke off within an epoch; load_state('last') goes back first")
        self._note_settings()
        return self._checkpointer.save_between(self)

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
        if self._checkpointer.is_running:
            raise CheckpointError("load_state() cannot go back within a run; stop('...') ends it, then call it")
        self._note_settings()
        self._finder.settings = self._settings
        found = self._finder.find(which if which in ("last", "best") else Path(which))
        if found is None:
            raise CheckpointError(f"{str(self.save_path)!r} has no whole checkpoint")
        self._finder.load(self, found)
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
        if getattr(self, "_forks", False):
            raise ValueError(SEVERAL)
        run = Run(self, self._place, self._recorder, self._checkpointer, loader, valid_loader)
        return verify_resume(run, steps, max_time)

    def _taken_up(self, resume: Any, limits: dict[str, Any], loaders: tuple[Any, Any]) -> bool:
        """Go back to where the run was; return whether nothing is left to do."""
        finder = self._finder
        if resume is None:
            finder.refuse_foreign()
            finder.refuse_to_skip()
            return False
        which = "last" if resume in ("auto", "last") else "best" if resume == "best" else Path(resume)
        found = finder.find(which)
        if isinstance(which, Path) and not which.resolve().is_relative_to(self.save_path.resolve()):
            finder.refuse_foreign()
        if found is None:
            if resume != "auto":
                raise CheckpointError(f"resume={resume!r}: {str(self.save_path)!r} has no whole checkpoint")
            finder.refuse_damaged()
            finder.refuse_broken(self.progress_checker.get_step() - 1)
            return False
        call = found.manifest.get("call", 0)
        if resume != "auto":  # that very checkpoint is wanted, whichever later call of a script it is of
            finder.calls = max(finder.calls, call)
        elif finder.has_done(call):
            return False
        if finder.calls < call:  # nothing is compared: the script has yet to change what it had changed by then
            self._tell(f"Call {finder.calls + 1} of run() was done before; {found.path.name} is of call {call + 1}.")
            finder.pass_over(self, found)
            return True
        self._compare(found, loaders if finder.calls == call else None)
        state = finder.load(self, found)
        finder.show_best()
        if finder.goes_on(state, read_limits(**limits, mode="train")):
            at = f"epoch {found.manifest['epoch'] + 1}, step {found.step + 1:,}"
            self._tell(f"Going on from {found.path.name}: {at}.")
            return False
        finder.conclude(self, *loaders)
        self._tell(f"The run is done: {found.manifest['epoch']} epochs, {found.step:,} steps; its state is loaded.")
        return True

    def _compare(self, found: Checkpoint, loaders: tuple[Any, Any] | None) -> None:
        """Refuse what would change the result, and show what else has changed since the checkpoint."""
        manifest, (settings, circumstances) = found.manifest, self._journal.facts
        then = dict(manifest.get("settings", {}))
        # The data are not in what save_state() has saved before any run.
        data_too = loaders is not None and "the dataset" in then
        now = dict(settings if data_too else self._settings)
        if self.seed_was_given:
            then["seed"], now["seed"] = manifest.get("seed"), self.seed
        other = differences({k: then.get(k) for k in now}, now)
        if loaders is not None and data_too and (data := manifest.get("data")):
            self._checkpointer.data = look(*loaders, manifest.get("seed", self.seed), self._place.processes)
            other += others(data, self._checkpointer.data)
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
