"""Records, a run that is killed, and what a logger costs: shared by the tests of the loggers."""

from __future__ import annotations

import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.nurse import Nursery
from zae_engine.logs.loggers.logger import Logger, Record, RunInfo
from zae_engine.logs.loggers.registry import logger_class

CONFIG = {
    "settings": {"lr": 0.1, "gradient_clip": 0.0, "the optimizer": {"name": "SGD", "nesterov": False}},
    "seed": 7,
    "command": ["train.py", "--lr", "0.1"],
    "note": None,
}

START = 1_764_000_000.0


def record(step: int, **further: float) -> Record:
    values = {"train/loss": 1.0 / step, "lr": 0.1, "samples/s": 100.5, "epoch": float(step // 10)}
    return Record(step, START + step, values | {name.replace("__", "/"): value for name, value in further.items()})


def odd_record(step: int) -> Record:
    """One with what is no number."""
    return record(step, grad_norm=math.nan, test__loss=math.inf, test__gain=-math.inf)


def with_own(folder: Path, step: int) -> Record:
    """One with a text and a picture of the user's."""
    from zae_engine.trainer.records.images import png  # it needs torch, which these helpers do not

    path = folder / "weights.png"
    path.write_bytes(png(np.full((2, 3, 1), 100, np.uint8)))
    return Record(step, START + step, {"mine": float(step)}, {"note": f"step {step}"}, {"weights": path})


def info(folder: Path, id: str | None = None, step: int = 0, config: dict[str, Any] | None = None) -> RunInfo:
    folder.mkdir(parents=True, exist_ok=True)
    return RunInfo(folder, "digits", config or CONFIG, id, step)


def in_thread(work: Any, *args: Any) -> Any:
    """Call a function as a run does: from a thread that is not the main one."""
    kept: list[Any] = []

    def call() -> None:
        try:
            kept.append((work(*args), None))
        except BaseException as error:
            kept.append((None, error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(60)
    result, error = kept[0]
    if error is not None:
        raise error
    return result


def attempt(logger: Logger, run: RunInfo, records: list[Record], status: str = "done") -> tuple[str, int | None]:
    """One attempt from start to finish; what `start` and, before the records, `last_step` said."""
    id = logger.start(run)
    last = logger.last_step()
    for each in records:
        logger.log(each)
    logger.flush()
    logger.finish(status)
    return id, last


def run_attempt(logger: Logger, run: RunInfo, records: list[Record], status: str = "done") -> tuple[str, int | None]:
    logger.check()
    return in_thread(attempt, logger, run, records, status)


def log_until_killed(name: str, folder: str, settings: dict[str, Any]) -> None:
    """Start a run, log ten records, flush, say so, and go on until somebody kills this process."""
    logger = logger_class(name)(settings)
    id = logger.start(info(Path(folder)))
    for step in range(1, 11):
        logger.log(record(step))
    logger.flush()
    print(id, flush=True)
    step = 11
    while True:
        logger.log(record(step))
        step += 1
        time.sleep(0.01)


def killed_run(
    nursery: Nursery, name: str, folder: Path, settings: dict[str, Any] | None = None, setup: str = ""
) -> str:
    """The id of a run whose process was killed (kill -9) while it logged."""
    code = (
        f"{setup}\n"
        "from tests.logs.logging_helpers import in_thread, log_until_killed\n"
        f"in_thread(log_until_killed, {name!r}, {str(folder)!r}, {settings or {}!r})"
    )
    process = nursery.begin("-c", code, env=os.environ)

    def said() -> list[str]:
        whole = process.out.read_text().rpartition("\n")[0].splitlines()
        return [line for line in whole if not line.startswith("*")]  # what a client prints

    try:
        process.until(lambda: said() != [])
        time.sleep(0.3)  # so that it logs more than it has flushed
    finally:
        process.kill()
    return said()[0].strip()


def resume_after_kill(
    nursery: Nursery, name: str, folder: Path, settings: dict[str, Any] | None = None, setup: str = ""
) -> tuple[str, int]:
    """Kill a run, go on with it as the feed does, up to step 60; its id and the step it had got to."""
    id = killed_run(nursery, name, folder, settings, setup)
    logger = logger_class(name)(settings)

    def go_on() -> int:
        assert logger.start(info(folder, id, 10)) == id
        last = logger.last_step()
        assert last is not None
        assert last >= 10
        for step in range(last + 1, 61):
            logger.log(record(step))
        logger.flush()
        logger.finish("done")
        return last

    return id, in_thread(go_on)
