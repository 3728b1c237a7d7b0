"""``zae report``: runs as one HTML page that needs nothing else: no network, no server, no file beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..checkpoint.best_rule import first_best
from ..files import write_text
from ..terminal import printable
from .history_file import Line
from .reading import Run, find_runs, is_run, read_run
from .report_figures import COLOURS, colour_of, figures_of
from .run_tables import NOTHING, clock, environment_of, settings_of, short, table_of
from .summary import PARTS, duration, in_units, summarize

REPORT = "report.html"
_SMOOTH = (
    "Bold: the mean over about a fiftieth of the steps. Faint: the steps, of very many the lowest and the highest."
)
_METRICS = 20  # of a checkpoint that its line shows
_PARTS = tuple(PARTS)
_PART_NAMES = {"data": "waiting for data", "saving": "saving checkpoints"}
_PART_COLOURS = dict(zip(_PARTS, (COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[4], COLOURS[3]), strict=True))


def write_report(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None) -> Path:
    """Write a report of runs; return where it is.

    Parameters
    ----------
    paths : sequence of path-like
        Run folders, or folders with run folders in them.
    out : path-like, optional
        The page, or a folder for it. If not given, ``report.html`` in the folder of the run, or of several in the
        current one.

    Raises
    ------
    RunFolderError
        For a path at which there is no run.
    ModuleNotFoundError
        Without plotly, with the command that installs it.
    """
    folders = [folder for path in paths for folder in ([Path(path)] if is_run(Path(path)) else find_runs(path))]
    runs = [read_run(folder) for folder in dict.fromkeys(folders)]
    page = render(runs)
    path = Path(out) if out is not None else runs[0].folder if len(runs) == 1 else Path()
    path = path / REPORT if path.is_dir() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page, sync=False)  # a browser that loads the page again never meets half of it
    return path


def render(runs: Sequence[Run]) -> str:
    """Return the page of one run, or of several that are compared.

    Raises
    ------
    ModuleNotFoundError
        Without plotly, with the command that installs it.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        need = f"a report needs {str(error.name).partition('.')[0]}; install it: pip install 'zae-engine[report]'"
        raise ModuleNotFoundError(need, name=error.name) from error
    own = files(__package__)
    texts = {name: (own / f"report.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    page = template.from_string(texts["html"])
    return page.render(css=texts["css"], js=texts["js"], plotly=get_plotlyjs(), **_content(runs))


def _content(runs: Sequence[Run]) -> dict[str, Any]:
    names = names_of([run.folder for run in runs])
    figures, left = figures_of(runs, names)
    settings, leading = [settings_of(run) for run in runs], _leading(runs)
    return {
        "title": names[0] if len(runs) == 1 else f"{len(runs)} runs compared",
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "runs": [
            _run(run, name, i) | {"leads": any(run is one for one in leading)}
            for i, (run, name) in enumerate(zip(runs, names, strict=True))
        ],
        "figures": figures,
        "left_out": left,
        "smooth": _SMOOTH if any(figure.is_smooth for figure in figures) else "",
        "drawn": [{"data": figure.data, "layout": figure.layout} for figure in figures],
        "settings": table_of(settings),
        "differences": table_of(settings, differing=True),
        "environment": table_of([environment_of(run) for run in runs]),
        "parts": [(_PART_NAMES.get(part, part), _PART_COLOURS[part]) for part in _PARTS],
        "colours": _PART_COLOURS,
    }


def _finalize(value: Any) -> Any:
    """Text of a folder without control characters; what is HTML already (`Markup`) is ours."""
    return printable(value) if type(value) is str else value


def names_of(folders: Sequence[Path]) -> list[str]:
    """Names of runs: their folders', and as much of the path as tells them apart."""
    paths = [folder.absolute() for folder in folders]
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


# ---------------------------------------------------------------------- one run


def _run(run: Run, name: str, number: int) -> dict[str, Any]:
    summary = summarize(run)
    shares = summary["shares"]
    return {
        "name": name,
        "number": number,
        "colour": colour_of(number),
        "status": run.status,
        "reason": str((run.end or {}).get("reason") or ""),
        "best": _best(run),
        "never_finite": run.never_finite,
        "cards": _cards(run, summary),
        "row": _row(run),
        "advice": summary["advice"],
        "spent": [(part, _PART_NAMES.get(part, part), duration(run.spent[part]), shares[part]) for part in _PARTS]
        if shares
        else [],
        "checkpoints": _checkpoints(run),
        "attempts": _attempts(run),
        "gone": len(run.checkpoints) - len(run.saved),
    }


def _leading(runs: Sequence[Run]) -> list[Run]:
    """The runs with the best value of all, if all watch the same one."""
    known = [(run, run.best) for run in runs if run.best]
    if len(known) < 2 or len({(found.name, found.mode) for _, found in known}) > 1:
        return []
    first = first_best((found for _, found in known), lambda found: found.value, known[0][1].mode)
    return [run for run, found in known if first and found.value == first.value]


def _best(run: Run) -> dict[str, str] | None:
    if (found := run.best) is None:
        return None
    places = (("epoch", found.epoch), ("step", found.step))
    return {
        "name": found.name,
        "value": short(found.value),
        "when": ", ".join(f"{what} {number:,}" for what, number in places if number is not None),
        "saved": found.saved or "",
        "mode": "lowest" if found.mode == "min" else "highest",
    }


def _cards(run: Run, summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value, and what there is to say of it."""
    attempts, shares, memory = len(run.attempts), summary["shares"], summary["memory"]
    cards = [("duration", duration(run.seconds), f"{attempts} attempts" if attempts > 1 else ""),
             ("steps", f"{run.step:,}", f"{run.epoch:,} epochs" if run.epoch != 1 else "1 epoch")]  # fmt: skip
    if rate := run.samples_per_second:
        cards.append(("samples a second", f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}", "of the whole time"))
    if shares:
        cards.append(("waiting for data", f"{shares['data']:.0%}", duration(run.spent["data"])))
    for key, name in (("device", "peak device memory"), ("host", "peak memory")):
        if memory[key]:
            cards.append((name, in_units(memory[key]), ""))
    return cards


def _row(run: Run) -> list[str]:
    """Of a table that compares runs."""
    rate = run.samples_per_second
    return [f"{run.epoch:,}", f"{run.step:,}", duration(run.seconds), f"{rate:,.0f}" if rate else NOTHING]


def _checkpoints(run: Run) -> list[dict[str, str | bool]]:
    """Those that are there, the newest first."""
    best: Line = next((c.manifest["best"] for c in reversed(run.saved) if isinstance(c.manifest.get("best"), dict)), {})
    return [
        {
            "name": checkpoint.path.name,
            "step": f"{checkpoint.step:,}",
            "epoch": NOTHING if checkpoint.epoch is None else f"{checkpoint.epoch:,}",
            "metrics": _metrics(checkpoint.metrics),
            "size": in_units(checkpoint.size),
            "created": checkpoint.created.strftime("%Y-%m-%d %H:%M:%S") if checkpoint.created else NOTHING,
            "is_best": checkpoint.serial == best.get("serial"),
        }
        for checkpoint in reversed(run.saved)
    ]


def _metrics(metrics: Mapping[str, float]) -> str:
    said = [f"{name} {value:.4g}" for name, value in metrics.items() if not math.isnan(value)]
    more = [f"and {len(said) - _METRICS:,} more"] if len(said) > _METRICS else []
    return ", ".join([*said[:_METRICS], *more]) or NOTHING


def _attempts(run: Run) -> list[list[str]]:
    """When the run was started, and gone on with."""
    rows = []
    for line in run.attempts:
        started = next((note for note in run.started if note.get("attempt") == line.get("attempt")), {})
        when = clock(line.get("time"))
        rows.append([short(line.get("attempt")), when.strftime("%Y-%m-%d %H:%M:%S") if when else NOTHING,
                     short(line.get("step")), str(line.get("from") or NOTHING), str(started.get("host") or NOTHING),
                     short(started.get("processes"))])  # fmt: skip
    return rows
