"""Loggers after the fact: deliver to them what they have missed, or give a whole run to another one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint.lock import RunLock
from .cursor import Cursor, cursors_in
from .logger import Logger, Record, RunInfo
from .merging import records_of
from .outcome import is_held
from .reading import RunFolderError, is_run
from .registry import logger_class, require
from .summary import SUMMARY

_CLOSED = ("done", "interrupted", "failed")
_SOME = 500  # records between two flushes


class SyncError(Exception):
    """What a logger raised while it was given records; what it has taken by then is noted."""


def sync(folder: Path, only: Iterable[str] = (), make: Callable[[Cursor], Logger] | None = None) -> list[str]:
    """Deliver to the loggers of a run what they have missed, each record once; return a sentence for each logger.

    Parameters
    ----------
    folder : Path
        The run's; no process may write into it at that time.
    only : iterable of str
        Names of loggers; none means all that the run has had.
    make : callable, optional
        Makes the logger of a cursor; by default from the settings that are noted there, and without secrets, which the
        client then takes from where it usually finds them.

    Raises
    ------
    RunFolderError
        When there is no run, or it had no such logger.
    SyncError
        When one could not take it; the others have been served.
    """
    cursors = _wanted(_run(folder), list(only))
    if is_held(folder):
        raise RunFolderError(f"{str(folder)!r} is of a run that goes on; its loggers get what is missing from it")
    records, said, failed = records_of(folder), list[str](), list[str]()
    with RunLock(folder):
        for cursor in cursors:
            try:
                said.append(_sync_one(folder, cursor, records, make or _from_settings))
            except Exception as error:
                failed.append(f"{cursor.logger} could not take it: {type(error).__name__}: {error}")
    if failed:
        raise SyncError("\n".join([*said, *failed]))
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
        A record for each step, in place of one for each point.

    Raises
    ------
    RunFolderError, ValueError, TypeError, ModuleNotFoundError
        When there is no run, no such logger, no such setting, or its client is not installed.
    """
    kind = logger_class(to)
    require(kind)
    logger = kind(settings)
    logger.check()
    records, out = records_of(_run(folder), every_step), (out or folder / "export").absolute()
    if not records:
        raise RunFolderError(f"{str(folder)!r} has no record of any step yet, so there is nothing to export")
    out.mkdir(parents=True, exist_ok=True)
    place = logger.start(replace(_info(folder), folder=out))
    _give(logger, Cursor(to), records)
    logger.summarize(_summary(folder))
    logger.finish(_status(folder))
    return " ".join([f"{len(records):,} records of {_name(folder)} are in {to} ({place}), in {out}.", *logger.notices])


def _run(folder: Path) -> Path:
    if not is_run(folder):
        raise RunFolderError(f"{str(folder)!r} is no run folder; it has neither a history.jsonl nor a run.json")
    return folder


def _wanted(folder: Path, only: list[str]) -> list[Cursor]:
    cursors = cursors_in(folder)
    names = [cursor.logger for cursor in cursors]
    if missing := [name for name in only if name not in names]:
        raise RunFolderError(f"{str(folder)!r} had no logger {missing[0]!r}; it had {', '.join(names) or 'none'}")
    if not cursors:
        raise RunFolderError(f"{str(folder)!r} had no logger; `zae logs export {folder} --to NAME` gives it to one")
    return [cursor for cursor in cursors if not only or cursor.logger in only]


def _from_settings(cursor: Cursor) -> Logger:
    kind = logger_class(cursor.logger)
    require(kind)
    logger = kind(cursor.settings)
    logger.check()
    return logger


def _sync_one(folder: Path, cursor: Cursor, records: list[Record], make: Callable[[Cursor], Logger]) -> str:
    last = records[-1].step if records else 0
    if cursor.status in _CLOSED and cursor.step >= last:
        return f"{cursor.logger} has everything up to step {last:,} ({cursor.id})"
    logger = make(cursor)
    cursor.id = logger.start(replace(_info(folder), id=cursor.id, step=cursor.step))
    seen = logger.last_step()  # of what it says itself, rather than of our note
    cursor.step = cursor.step if seen is None else seen
    missing = [record for record in records if record.step > cursor.step]
    try:
        _give(logger, cursor, missing)
        logger.summarize(_summary(folder))
        logger.finish(_status(folder))
        cursor.status = _status(folder)
    finally:
        cursor.save(folder)
    return " ".join(
        [f"{cursor.logger} got {len(missing):,} records, up to step {last:,} ({cursor.id}).", *logger.notices]
    )


def _give(logger: Logger, cursor: Cursor, records: list[Record]) -> None:
    for begin in range(0, len(records), _SOME):
        for record in records[begin : begin + _SOME]:
            logger.log(record)
            cursor.step = record.step
        logger.flush()


def _info(folder: Path) -> RunInfo:
    started = _json(folder / "run.json").get("attempts") or [{}]
    config = {key: value for key, value in started[-1].items() if key not in ("token", "pid")}
    best = _summary(folder).get("best") or {}
    name, mode = str(best.get("name", "test_loss")), str(best.get("mode", "min"))
    return RunInfo(folder.absolute(), _name(folder), config, monitor=(name.replace("_", "/", 1), mode))


def _name(folder: Path) -> str:
    return folder.absolute().name


def _status(folder: Path) -> str:
    """How the run ended; one that broke off has failed."""
    status = str(_summary(folder).get("status", "failed"))
    return status if status in _CLOSED else "failed"


def _summary(folder: Path) -> dict[str, Any]:
    return _json(folder / SUMMARY)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
