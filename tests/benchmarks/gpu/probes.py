"""What is looked at while a block of steps runs: its time, its memory, what the device does, whether the host waits."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
_WARNING = "called a synchronizing CUDA operation"


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_waits(mode: str) -> None:
    """Let torch say nothing, warn, or raise an error when the host waits for a GPU: 'default', 'warn', 'error'."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")  # which it says once a process
        torch.cuda.set_sync_debug_mode(mode)


class Probe:
    """Is told of the beginning of each step, and looks at those after the warm-up.

    Parameters
    ----------
    device : torch.device
    warmup, steps : int
    """

    def __init__(self, device: torch.device, warmup: int, steps: int) -> None:
        self.device, self.steps = device, steps
        self._first, self._last, self._count = warmup, warmup + steps, 0

    def step(self) -> None:
        """A step begins."""
        if self._count == self._first:
            self.begin()
        elif self._count == self._last:
            self.end()
        self._count += 1

    def check(self) -> None:
        """After the block: it had as many steps as it should have."""
        if self._count != self._last + 1:
            raise RuntimeError(f"{self._count} steps were made instead of {self._last + 1}")

    def begin(self) -> None:
        """The first step that counts begins."""

    def end(self) -> None:
        """The last one is over."""


class Clock(Probe):
    """The seconds that a step takes, and the most memory meanwhile."""

    def begin(self) -> None:
        """Start with nothing left to do."""
        wait_for(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        self._began = perf_counter()

    def end(self) -> None:
        """Stop when all of it is done."""
        wait_for(self.device)
        self.seconds = (perf_counter() - self._began) / self.steps
        cuda = self.device.type == "cuda"
        self.memory = torch.cuda.max_memory_allocated(self.device) - self._before if cuda else 0


class Waits(Probe):
    """Where the host waits for the device, by torch's own word; the block has to run inside of `heard`."""

    def begin(self) -> None:
        """Listen from here on."""
        if self.device.type == "cuda":
            wait_for(self.device)
            on_waits("warn")

    def end(self) -> None:
        """Listen no more."""
        if self.device.type == "cuda":
            on_waits("default")

    def found(self, said: Iterable[warnings.WarningMessage]) -> tuple[float, list[str]]:
        """How often in a step, and where: the most frequent places first."""
        places = Counter(f"{w.filename}:{w.lineno}" for w in said if _WARNING in str(w.message))
        return sum(places.values()) / self.steps, [f"{place} ({n}×)" for place, n in places.most_common(3)]


class Profile(Probe):
    """The share of the time in which the device has nothing to do, and how often the host waits, by the profiler."""

    def begin(self) -> None:
        """Look from here on."""
        wait_for(self.device)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        self._profile = profile(activities=activities)
        self._profile.start()

    def end(self) -> None:
        """Look no more."""
        wait_for(self.device)
        self._profile.stop()
        events: list[Any] = list(self._profile.events() or ())
        self.waits = sum(event.name in WAITS for event in events) / self.steps
        # Kernels and copies; what the host has named is shown on the device, too, from its first kernel to its last.
        on_device = [
            e.time_range
            for e in events
            if e.device_type == torch.autograd.DeviceType.CUDA and not getattr(e, "is_user_annotation", False)
        ]
        self.idle = idle_share([(r.start, r.end) for r in on_device])


def idle_share(spans: Iterable[tuple[float, float]]) -> float | None:
    """The share of the time from the first begin to the last end in which none of these spans is; None without any."""
    ordered = sorted(spans)
    if not ordered or ordered[0][0] == (last := max(end for _, end in ordered)):
        return None
    idle, until = 0.0, ordered[0][0]
    for begin, end in ordered:
        idle += max(0.0, begin - until)
        until = max(until, end)
    return idle / (last - ordered[0][0])
