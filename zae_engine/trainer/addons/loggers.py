"""Loggers, as add-ons: each keeps the run's records in one place, beside the training."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from ...logs.delivery import close
from ...logs.logger_feed import Feed
from ...logs.loggers.logger import Logger
from ...logs.loggers.registry import LOGGERS, logger_class, require
from ...suggestions import nearest
from ..journal.settings import plain_settings
from ..options import fixed
from .run_folder import RunFolderAddon


class LoggerAddon(RunFolderAddon):
    """The base of loggers: feeds each of those in the stack from the run's ``history.jsonl``, by a thread of its own.

    Parameters
    ----------
    web_logger : dict of str to dict, optional
        Settings of each logger by its name: ``{"wandb": {"project": "digits"}, "tensorboard": {}}``. What a logger does
        not take itself goes to its client.

    Raises
    ------
    ModuleNotFoundError
        When a client is not installed, with the command that does it.
    TypeError, ValueError
        For a logger that is not in the stack, or a setting that it does not have.

    Notes
    -----
    Of several processes, the first one logs. A logger that raises, hangs or is not reached is set aside, with one
    message; ``zae logs sync`` delivers later what it has missed. A run that is resumed goes on in the same place,
    and no step is there twice.
    """

    logger: ClassVar[str] = ""  # its name; of this base none
    opens: ClassVar[str] = ""  # the method that opens the client, for a subclass to override

    def __init__(self, *args: Any, web_logger: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        settings = _checked(web_logger, self._names())
        makers = {name: self._maker(add_on, settings[name]) for name, add_on in self._names().items()}
        feeds = {name: Feed(make, plain_settings(settings[name])) for name, make in makers.items()}
        super().__init__(*args, **kwargs)
        self._journal.readers.feeds |= feeds
        for feed in feeds.values():
            weakref.finalize(self, feed.abandon).atexit = False  # at the exit, they are waited for

    @classmethod
    def _names(cls) -> dict[str, type[LoggerAddon]]:
        """The loggers of this stack."""
        own = [c for c in reversed(cls.__mro__) if issubclass(c, LoggerAddon) and c.__dict__.get("logger")]
        return {c.logger: c for c in own}

    def _maker(self, add_on: type[LoggerAddon], settings: dict[str, Any]) -> Callable[[], Logger]:
        kind = logger_class(add_on.logger)
        require(kind)
        # Weak, since the trainer holds the feed; and by name, so that an override of the user's is called.
        opens = partial(_call, weakref.ref(self), add_on.opens) if add_on.opens else None
        return partial(kind, settings, opens, partial(_give, weakref.ref(self)))

    @property
    def loggers(self) -> dict[str, Any]:
        """The client of each logger, by name, once the run has begun; its thread uses it at the same time."""
        with self._recorder.usage.on("logging"):  # while a client starts, it is waited for, be it in a validation
            return {name: feed.client() for name, feed in self._journal.readers.feeds.items()}

    @property
    def web_logger(self) -> Any:
        """The client of the last of the loggers, as 0.7.6 had it."""
        return next(reversed(self.loggers.values()), None)

    @web_logger.setter
    def web_logger(self, settings: Any) -> None:
        raise AttributeError(
            f"web_logger={settings!r} cannot be assigned, since the loggers are opened by what was given when the"
            f" trainer was made; write {type(self).__name__}(..., web_logger={settings!r})"
        )

    def close_loggers(self) -> None:
        """Close all loggers' runs now, as done; otherwise that happens when the program ends."""
        close(self._journal.readers.feeds.values(), "done")

    def state_dict(self) -> Any:
        """Add the runs' ids, so that a resumed run goes on in them."""
        feeds = self._journal.readers.feeds
        return {**super().state_dict(), "LoggerAddon": {name: feed.id for name, feed in feeds.items()}}

    def load_state_dict(self, state: Any) -> None:
        """Take the runs' ids back."""
        super().load_state_dict(state)
        for name, feed in self._journal.readers.feeds.items():
            feed.known_id = state.get("LoggerAddon", {}).get(name)


def _call(trainer: weakref.ref[Any], method: str, params: dict[str, Any]) -> Any:
    owner = trainer()
    if owner is None:
        raise RuntimeError("the trainer is gone")
    return getattr(owner, method)(params)


def _give(trainer: weakref.ref[Any], values: dict[str, Any]) -> None:
    owner = trainer()
    if owner is not None:
        owner.log(values)


def _checked(web_logger: Any, names: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if not isinstance(web_logger, (Mapping, type(None))):
        raise TypeError(
            f'web_logger={web_logger!r} is not accepted; give settings by logger: {{"{next(iter(names))}": {{...}}}}'
        )
    given = dict(web_logger or {})
    for name, settings in given.items():
        if name not in names:
            raise ValueError(f"web_logger has settings for {name!r}, which no add-on takes; {_meant(str(name), names)}")
        if not isinstance(settings, (Mapping, type(None))):
            raise TypeError(f"web_logger[{name!r}]={settings!r} is not accepted; give a dict of settings, or {{}}")
    return {name: dict(given.get(name) or {}) for name in names}


def _meant(name: str, names: Mapping[str, Any]) -> str:
    near = nearest(name, names, 0.66) or nearest(name, LOGGERS)  # there are few in a stack
    if near in names:
        return f"did you mean {near!r}?"
    there = f"in this stack are {', '.join(names)}"
    return f"{near!r} needs its add-on in add_on(...); {there}" if near else f"add its add-on; {there}"


class TensorBoardLoggerAddon(LoggerAddon):
    """Writes TensorBoard's event files, into ``tensorboard/`` of the run's folder unless ``log_dir`` says otherwise.

    Examples
    --------
    >>> Logged = MyTrainer.add_on(StateManagerAddon, TensorBoardLoggerAddon)
    >>> trainer = Logged(model, optimizer=optimizer, save_path="runs/first")
    """

    logger = "tensorboard"


class MLflowLoggerAddon(LoggerAddon):
    """Logs to MLflow: MLFLOW_TRACKING_URI or ``tracking_uri``, else an SQLite file in the run's folder."""

    logger = "mlflow"


class TrackioLoggerAddon(LoggerAddon):
    """Logs to Trackio's local database, which ``trackio show`` shows."""

    logger = "trackio"


class CSVLoggerAddon(LoggerAddon):
    """Writes ``metrics.csv`` into the run's folder, a line a record."""

    logger = "csv"


class TrackerAddon(LoggerAddon):
    """Logs to any other tracker of Accelerate's, or to one of your own.

    Parameters
    ----------
    log_with : str, type or object
        A name that Accelerate knows (``'aim'``, ``'clearml'``, ``'comet_ml'``, ``'dvclive'``, ``'swanlab'``), a
        subclass of ``accelerate.tracking.GeneralTracker``, or an instance of one.
    """

    logger = "tracker"
    log_with: Any = fixed()

    def __init__(self, *args: Any, log_with: Any, web_logger: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        given = dict(web_logger or {})
        given["tracker"] = {**(given.get("tracker") or {}), "log_with": log_with}
        super().__init__(*args, web_logger=given, **kwargs)
        self.log_with = log_with
