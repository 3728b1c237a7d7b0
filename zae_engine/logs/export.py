"""Loggers after the fact: deliver to them what they have missed, or give a whole run to another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoint.lock import RunLock
from ..files import NotPlainError, check_plain, folder_in, read_json
from ..redaction import redact
from ..terminal import PrintableError, in_line
from .cursor import Cursor, cursors_in
from .listing import SUMMARY, without_entry
from .loggers.logger import Logger, Record, RunInfo
from .loggers.registry import logger_class, require
from .merging import records_of
from .outcome import is_held
from .reading import HISTORY, RunFolderError, is_run, read_run
from .summary import summarize
from .trust import ForeignError, check_places, vetted

_CLOSED = ("done", "interrupted", "failed")
_SOME = 500  # records between two flushes


class SyncError(PrintableError):
    """What a logger raised while it was given records; what it has taken by then is noted."""


def sync(
    folder: Path,
    only: Iterable[str] = (),
    make: Callable[[Cursor], Logger] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[str]:
    """Deliver to the loggers of a run what they have missed, each record once; return a sentence for each logger.

    Parameters
    ----------
    folder : Path
        The run's; no process may write into it at that time.
    only : iterable of str
        Names of loggers; none means all that the run has had.
    make : callable, optional
        Makes the logger of a cursor; by default from the settings that are noted there, as far as they are no address
        or path outside of the folder, and without secrets, which the client takes from where it usually finds them.
    settings : mapping, optional
        The user's own, over the noted ones; for one logger.

    Raises
    ------
    RunFolderError
        When there is no run, or it had no such logger.
    SyncError
        When one could not take it; the others have been served.
    """
    cursors = _wanted(_run(folder), list(only))
    if settings and len(cursors) > 1:
        names = ", ".join(cursor.logger for cursor in cursors)
        raise RunFolderError(f"settings are for one logger, and {str(folder)!r} has {names}; name one of them")
    if is_held(folder):
        raise RunFolderError(f"{str(folder)!r} is of a run that goes on; its loggers get what is missing from it")
    run, said, failed = _Whole(folder), list[str](), list[str]()
    make = make or partial(_from_settings, folder=folder, own=settings)
    with RunLock(folder):
        for cursor in cursors:
            try:
                said.append(_sync_one(run, cursor, make))
            except ForeignError as error:
                failed.append(str(error))
            except (Exception, SystemExit) as error:  # a client may even exit
                failed.append(f"{cursor.logger} could not take it: {type(error).__name__}: {redact(str(error))}")
    if failed:
        raise SyncError("\n".join(map(in_line, (*said, *failed))))
    return said


def export(
    folder: Path, to: str, settings: Mapping[str, Any], out: Path | None = None, every_step: bool = False
) -> str:
    """Give a whole run to a logger, as a new run there; return a sentence that says what and where.

    Parameters
    ----------
    folder : Path
        The run's.
    to : str
        The logger's name.
    settings : mapping
        As in ``web_logger={"wandb": {...}}``.
    out : Path, optional
        Where it writes what it writes locally; by default ``export/`` in the run's folder.
    every_step : bool
        A record for each step, however many there are, in place of those that a logger gets in the run.

    Raises
    ------
    RunFolderError, ValueError, TypeError, ModuleNotFoundError
        When there is no run, no such logger, no such setting, or its client is not installed.
    """
    kind = logger_class(to)
    require(kind)
    logger = kind(settings)
    logger.check()
    run, where = _Whole(_run(folder), every_step), out or folder / "export"
    check_places(kind, where)
    if not run.records:
        raise RunFolderError(f"{str(folder)!r} has no record of any step yet, so there is nothing to export")
    if out is None:
        folder_in(folder, where.name)
    where.mkdir(parents=True, exist_ok=True)
    place = logger.start(replace(run.info, folder=where.absolute()))
    _give(logger, Cursor(to), run.records)
    logger.summarize(run.summary)
    logger.finish(run.status)
    return " ".join(
        [f"{len(run.records):,} records of {run.info.name} are in {to} ({place}), in {where}.", *logger.notices]
    )


class _Whole:
    """A run folder, as loggers get it."""

    def __init__(self, folder: Path, every_step: bool = False) -> None:
        self.folder, self.records = folder, records_of(folder, every_step)
        run = read_run(folder)
        self._watched, self._started = run.watched, run.started
        self.summary = {**without_entry(_json(folder / SUMMARY)), **summarize(run)}  # of a run that was killed, too
        status = str(self.summary["status"])
        self.status = status if status in _CLOSED else "failed"  # one that broke off

    @property
    def info(self) -> RunInfo:
        started = self._started[-1] if self._started else {}
        config = {key: value for key, value in started.items() if key not in ("token", "pid")}
        column, mode = self._watched
        name = column.replace("_", "/", 1)
        if any(f"{name}_epoch" in record.values for record in self.records):
            name = f"{name}_epoch"  # a mean over some steps does not tell the best
        folder = self.folder.absolute()
        return RunInfo(folder, folder.name, config, monitor=(name, mode), column=column)


def _run(folder: Path) -> Path:
    if not is_run(folder):
        raise RunFolderError(f"{str(folder)!r} is no run folder; it has neither a history.jsonl nor a run.json")
    try:
        check_plain(folder / HISTORY)
    except NotPlainError as error:
        raise RunFolderError(str(error)) from error
    return folder


def _wanted(folder: Path, only: list[str]) -> list[Cursor]:
    cursors = cursors_in(folder)
    names = [cursor.logger for cursor in cursors]
    if missing := [name for name in only if name not in names]:
        raise RunFolderError(f"{str(folder)!r} had no logger {missing[0]!r}; it had {', '.join(names) or 'none'}")
    if not cursors:
        raise RunFolderError(f"{str(folder)!r} had no logger; `zae logs export {folder} --to NAME` gives it to one")
    return [cursor for cursor in cursors if not only or cursor.logger in only]


def _from_settings(cursor: Cursor, folder: Path, own: Mapping[str, Any] | None) -> Logger:
    kind = logger_class(cursor.logger)
    require(kind)
    logger = kind(vetted(kind, cursor, folder, own))
    logger.check()
    return logger


def _sync_one(run: _Whole, cursor: Cursor, make: Callable[[Cursor], Logger]) -> str:
    end = run.records[-1].place if run.records else (0, 0)
    last = end[0]
    if cursor.status in _CLOSED and cursor.place >= end:
        return f"{cursor.logger} has everything up to step {last:,} ({cursor.id})"
    logger = make(cursor)
    cursor.status = "open"
    try:
        cursor.id = logger.start(replace(run.info, id=cursor.id, step=cursor.step))
        cursor.correct(logger)
        missing = [each for each in records_of(run.folder, after=cursor.step) if each.place > cursor.place]
        _give(logger, cursor, missing)
        logger.summarize(run.summary)
        logger.finish(run.status)
        cursor.status = run.status
    except BaseException:
        with suppress(Exception):
            logger.finish("interrupted")
        raise
    finally:
        cursor.save(run.folder)
    return " ".join(
        [f"{cursor.logger} got {len(missing):,} records, up to step {last:,} ({cursor.id}).", *logger.notices]
    )


def _give(logger: Logger, cursor: Cursor, records: list[Record]) -> None:
    for begin in range(0, len(records), _SOME):
        some = records[begin : begin + _SOME]
        for record in some:
            logger.log(logger.fitting(record))
        logger.flush()
        cursor.place = some[-1].place


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
