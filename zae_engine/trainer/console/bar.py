"""What is shown of a running epoch: a bar, plain lines, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TextIO

from ...terminal import printable

if TYPE_CHECKING:
    from typing_extensions import Self

Describe = Callable[[int, Any], dict[str, str]]


class SilentBar:
    """Shows nothing. The other bars override `draw`, `write` and `close`."""

    interval = float("inf")

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.due = float("inf")
        self.done, self.samples, self.first = 0, 0, 0

    def open(self, title: str, total: int | None, describe: Describe) -> Self:
        """Begin an epoch of `total` batches (None: not known); `describe` gives the values to show."""
        self.title, self.total, self.describe = title, total, describe
        self.done, self.samples, self.first = 0, 0, 0  # `first`: batches that were done before, in another run
        self.began = time.perf_counter()
        self.due = self.began + self.interval
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def advance(self, samples: int, now: float) -> None:
        """Count a batch, and draw when it is time to, by `time.perf_counter`."""
        self.done += 1
        self.samples += samples
        if now >= self.due:
            self.draw()
            self.due = time.perf_counter() + self.interval

    @contextmanager
    def standing(self) -> Iterator[None]:
        """What runs inside does not count for the speed."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.began += time.perf_counter() - start

    @property
    def speed(self) -> float:
        """Samples a second since `open`."""
        return self.samples / max(time.perf_counter() - self.began, 1e-9)

    def values(self) -> dict[str, str]:
        """What is shown beside the position."""
        shown = self.describe(self.done, self.total or "?")
        return {key: value for key, value in shown.items() if key != "Batch"} | {"samples/s": f"{self.speed:,.0f}"}

    def draw(self) -> None:
        """Show the present state."""

    def write(self, line: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """End the epoch."""


class LineBar(SilentBar):
    """Plain lines for an output that is a file: one an interval, with the time that is left."""

    interval = 10.0

    def draw(self) -> None:
        values = "  ".join(f"{key} {value}" for key, value in self.values().items())
        self.write(f"{self.title}  {self._position()}  {values}")

    def _position(self) -> str:
        if not self.total:
            return f"batch {self.done}"
        left = (time.perf_counter() - self.began) / (self.done - self.first) * (self.total - self.done)
        return f"{self.done}/{self.total} ({self.done / self.total:.0%})  ETA {timedelta(seconds=round(left))}"

    def write(self, line: str) -> None:
        with suppress(OSError, ValueError):  # an output that is gone (a closed pipe, a full disk) ends no training
            print(printable(line), file=self.stream, flush=True)


class TqdmBar(SilentBar):
    """tqdm in a terminal, its notebook form in a notebook."""

    interval = 0.1

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._bar: Any = None

    def open(self, title: str, total: int | None, describe: Describe) -> Self:
        super().open(title, total, describe)
        settings = {"desc": title, "total": total, "leave": False, "unit": "batch", "dynamic_ncols": True}
        with suppress(OSError, ValueError):  # an output that is gone ends no training
            self._bar = _tqdm()(file=self.stream, mininterval=0, **settings)
        return self

    def draw(self) -> None:
        values = self.values()
        with suppress(OSError, ValueError, AttributeError):
            self._bar.n = self.done
            self._bar.set_postfix(values, refresh=False)
            self._bar.refresh()

    def write(self, line: str) -> None:
        line = printable(line)
        with suppress(OSError, ValueError):
            if in_notebook():
                print(line, file=self.stream)
            else:
                _tqdm().write(line, file=self.stream)

    def close(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self._bar.close()
        self._bar = None


def make_bar(shown: bool, stream: TextIO | None = None) -> SilentBar:
    """Choose what suits the output: a notebook, a terminal, or a file."""
    stream = stream or sys.stderr
    if not shown or stream is None:  # a service, or pythonw, may have no standard error at all
        return SilentBar(stream)
    with suppress(ValueError, AttributeError):  # closed, or none of Python's own streams
        if in_notebook() or stream.isatty():
            return TqdmBar(stream)
    return LineBar(stream)


def in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel."""
    shell = sys.modules.get("IPython")
    instance = shell.get_ipython() if shell is not None else None
    return instance is not None and hasattr(instance, "kernel")


def _tqdm() -> Any:
    """The tqdm class for this output; the notebook's needs ipywidgets."""
    if in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook_tqdm

        return notebook_tqdm
    from tqdm import tqdm

    return tqdm
