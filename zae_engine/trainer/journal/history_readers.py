"""What reads the lines of a run: loggers, the picture, the summary. Nothing of it ends a training."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import torch

from ...logs.curves import CURVES, draw_curves
from ...logs.delivery import close
from ...logs.history_file import Line
from ...logs.listing import SUMMARY
from ...logs.logger_feed import Feed
from ...logs.loggers.logger import RunInfo
from ...logs.reading import Run, read_run
from ...logs.summary import effort_lines, write_summary
from ..compose import Seams
from ..records.recorder import Recorder
from ..records.time_and_memory import loader_facts, peak_memory

_SOON = 60.0  # seconds between two pictures of a run that goes on, at least
_SHARE = 100  # of the time may go to them: one part in so many
_PATIENCE = 10.0  # seconds that the end of `run` waits for the loggers


class Readers:
    """The readers of one run's history, on process 0.

    Parameters
    ----------
    draws : bool
        Whether a picture and a summary are made.

    Attributes
    ----------
    feeds : dict of str to Feed
        The loggers, by name.
    """

    def __init__(self, draws: bool = True) -> None:
        self.feeds: dict[str, Feed] = {}
        self.draws = draws
        self._due = time.perf_counter() + _SOON
        self._problems: list[str] = []

    def begin(
        self, folder: Path, trainer: Seams, attempt: dict[str, Any], fresh: bool, share: float | None = None
    ) -> None:
        """A run begins, or goes on; with `fresh`, it is a new one for the loggers.

        Those may take a `share` of the time, all together, and get every record with None.
        """
        config = {key: value for key, value in attempt.items() if key not in ("token", "pid")}
        info = RunInfo(folder, folder.name, config, **_monitored(trainer, config))
        for feed in self.feeds.values():
            feed.begin(info, fresh, None if share is None else share / len(self.feeds))

    def go_on(self, folder: Path, step: int = 0) -> None:
        """There are new lines, up to a step if that is known; called beside the training."""
        for feed in self.feeds.values():
            feed.wake(step)
        if self.draws and time.perf_counter() >= self._due:
            start = time.thread_time()
            self._draw(folder)
            self._due = time.perf_counter() + max(_SOON, _SHARE * (time.thread_time() - start))

    def problems(self) -> list[str]:
        """What the user should know, told once."""
        problems, self._problems = self._problems, []
        return problems + [sentence for feed in self.feeds.values() for sentence in feed.problems()]

    def tell(self, summary: dict[str, Any]) -> None:
        """Have something noted beside the curves, of an evaluation after the training say."""
        for feed in self.feeds.values():
            feed.offer(summary, None)

    def end(self, folder: Path, status: str, best: Path | None) -> list[str]:
        """A run has come to its end; return the lines that tell of it."""
        summary, lines = dict[str, Any](), list[str]()
        if self.draws:
            alone = "LOCAL_WORLD_SIZE" not in os.environ  # else a launcher ends this process soon after another failed
            summary, lines = self._summarize(folder, draws=alone or status != "failed")
        file = best if best is not None and best.is_file() else None
        # A worker of a session ends without exit handlers, and a run that failed is told as such.
        closes = status != "done" or multiprocessing.parent_process() is not None
        for feed in self.feeds.values():
            feed.offer(summary, file)
        if closes:
            close(self.feeds.values(), status, _PATIENCE)
        deadline = time.monotonic() + _PATIENCE
        for feed in () if closes else self.feeds.values():
            feed.settle(max(0.0, deadline - time.monotonic()))
        return lines

    def _summarize(self, folder: Path, draws: bool) -> tuple[dict[str, Any], list[str]]:
        """Write the summary and draw the picture, from one reading of the folder."""
        try:
            run = read_run(folder)
            summary = write_summary(run)
        except Exception as error:
            self._problems.append(f"no summary.json was written: {type(error).__name__}: {error}")
            return {}, []
        if draws:
            self._draw(run)
        there = [name for name in (SUMMARY, CURVES) if (folder / name).is_file()]
        return summary, [*effort_lines(summary), f"In {str(_near(folder))!r}: {', '.join(there)}."]

    def _draw(self, run: Run | Path) -> None:
        try:
            draw_curves(run)
        except ModuleNotFoundError:
            self._due = float("inf")  # without matplotlib there is no picture, as the documentation says
        except Exception as error:
            self._problems.append(f"no curves.png was drawn: {type(error).__name__}: {error}")


def _near(folder: Path) -> Path:
    """The folder, as it is seen from here if it lies below."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def end_line(recorder: Recorder, device: torch.device, loader: Any, status: str, reason: str) -> Line:
    """The line of ``history.jsonl`` that ends a call of `run`."""
    found, best = recorder.best, dict[str, Any]()
    if epochs := found.weights["epoch"]:
        name, mode, column = found.monitor.watched
        best = {"name": column or name, "mode": mode, "value": found.value, "epoch": epochs[-1] + 1}
    return {"kind": "end", "status": status, "reason": reason, "step": recorder.counters.get_step() - 1,
            "time": time.time(), "memory": peak_memory(device), "loader": loader_facts(loader),
            "best": best or None}  # fmt: skip


def _monitored(trainer: Seams, config: dict[str, Any]) -> dict[str, Any]:
    """What the loggers are told of the monitored value: its name there, its direction, and its column in the rows."""
    split, _, key = trainer.monitor.partition("_")
    if not key or split not in ("train", "test"):
        split, key = "test" if "valid_loader" in config.get("circumstances", {}) else "train", trainer.monitor
    # A step's mean over the epoch has that in its name, which a metric that the epoch alone has does not need.
    name = f"test/{key}" if split == "test" else f"train/{key}_epoch"
    return {"monitor": (name, trainer.monitor_mode), "column": f"{split}_{key}"}
