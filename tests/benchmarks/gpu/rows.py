"""The rows of one workload: made, looked at closely once, and then timed in turn for as long as there is time."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..blocks import Block, Comparison, alternate
from .probes import Clock, Profile, Waits, wait_for
from .ways import Way, ways_of
from .workloads import Workload

WANTED = 0.99  # of the throughput of what the row is against
AGAIN = "by hand, once more"
PROFILED = 10  # steps
LEAST, MOST = 5, 30  # repetitions


@dataclass
class Found:
    """What was seen of one way, but for its time."""

    way: Way
    memory: int = 0
    waits: float | None = None
    waits_profiled: float | None = None
    places: list[str] = field(default_factory=list)
    idle: float | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)


def time_once(way: Way, workload: Workload, device: torch.device) -> float:
    """Run a block; return the seconds of a step."""
    clock = Clock(device, workload.warmup, workload.steps)
    way.block(clock)
    return clock.seconds


def look(make: Any, workload: Workload, device: torch.device) -> Found:
    """Make a way, and look at it closely: its first block compiles, the others have a probe each."""
    cuda, before = device.type == "cuda", 0
    if cuda:
        gc.collect()
        before = torch.cuda.memory_allocated(device)
    found = Found(make(device))
    clock = Clock(device, workload.warmup, workload.steps)
    found.way.block(clock)
    found.weights = found.way.weights()
    if cuda:
        lies = torch.cuda.memory_allocated(device) - before
        found.way.block(clock := Clock(device, workload.warmup, workload.steps))
        found.memory = lies + clock.memory
        waits = Waits(device, workload.warmup, workload.steps)
        found.waits, found.places = waits.found(found.way.block(waits, silent=True))
    steps = min(PROFILED, workload.steps)
    profiled = Profile(device, workload.warmup + workload.steps - steps, steps)
    found.way.block(profiled, silent=True)
    found.idle, found.waits_profiled = profiled.idle, profiled.waits if cuda else None
    return found


def rows_of(workload: Workload, compiled: bool, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    """Measure all rows of a workload, in about so many seconds; 0 is as short as can be."""
    began, ways = perf_counter(), ways_of(workload, compiled)
    seen = {name: look(make, workload, device) for name, (make, _) in ways.items()}
    timed = {name: partial(time_once, found.way, workload, device) for name, found in seen.items()}
    blocks = [Block(name, timed[name], against) for name, (_, against) in ways.items()]
    blocks.insert(1, Block(AGAIN, timed["by hand"], "by hand"))
    round_began = perf_counter()
    for block in blocks:
        block.run()
    a_round = perf_counter() - round_began
    left = seconds - (perf_counter() - began)
    repetitions = min(MOST, max(LEAST, int(left / a_round) - 1)) if seconds else 1  # one more is run, not to count
    compared = alternate(blocks, repetitions)
    wait_for(device)
    return [figures(workload, each, repetitions, seen) for each in compared]


def figures(workload: Workload, compared: Comparison, repetitions: int, seen: dict[str, Found]) -> dict[str, Any]:
    """What the table says of a row."""
    found, reference = seen.get(compared.name), seen[compared.against]
    row: dict[str, Any] = {
        **compared.as_dict(),
        "counted": workload.counted,
        "repetitions": repetitions,
        "a_second": workload.size / median(compared.seconds),
        "throughput": median(1 / ratio for ratio in compared.ratios),
    }
    if found is not None:
        same = all(torch.equal(value, reference.weights[name]) for name, value in found.weights.items())
        row |= {"memory": found.memory, "idle": found.idle, "waits": found.waits, "places": found.places}
        row |= {"waits_profiled": found.waits_profiled, "same_bits": same}
    return row


def missed(row: dict[str, Any]) -> list[str]:
    """The limits that a row of the trainer misses, in words."""
    if not row["row"].startswith("zae-engine"):
        return []
    said = []
    if row["throughput"] < WANTED:
        said.append(f"{row['throughput']:.3f} of the throughput of {row['against']} (wanted: {WANTED} or more)")
    if row["waits"]:
        said.append(f"{row['waits']:g} waits in a silent step (wanted: none), at {', '.join(row['places'])}")
    return said


def format_rows(title: str, rows: list[dict[str, Any]]) -> str:
    """Lay the rows out."""
    width = max(len(row["row"]) for row in rows)
    counted = f"{rows[0]['counted']}/s"
    head = f"{'':<{width}}  {counted:>12}  {'ms a step':>9}  {'quartiles':>17}  {'of against':>10}"
    lines = [title, "", f"{head}  {'idle':>6}  {'waits':>11}  {'MB':>8}  {'bits':>6}  against"]
    for row in rows:
        low, high = (q / 1e3 for q in row["us_quartiles"])
        lines.append(
            f"{row['row']:<{width}}  {row['a_second']:>12,.0f}  {row['us'] / 1e3:>9.3f}"
            f"  {f'{low:.3f} – {high:.3f}':>17}  {row['throughput']:>10.3f}  {_share(row.get('idle')):>6}"
            f"  {_waits(row):>11}  {_megabytes(row):>8}  {_bits(row):>6}  {row['against']}"
        )
    return "\n".join(lines)


def _megabytes(row: dict[str, Any]) -> str:
    return f"{row['memory'] / 1e6:,.0f}" if row.get("memory") else ""


def _share(idle: float | None) -> str:
    return "" if idle is None else f"{idle:.1%}"


def _waits(row: dict[str, Any]) -> str:
    """By torch's word, and by the profiler."""
    return "" if row.get("waits") is None else f"{row['waits']:g} / {row['waits_profiled']:g}"


def _bits(row: dict[str, Any]) -> str:
    return "" if "same_bits" not in row else "same" if row["same_bits"] else "differ"
