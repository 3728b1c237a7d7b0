"""``zae report`` and ``zae runs``: show runs. Thin: `zae_engine.logs` does the work. None of them needs torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

_Runs = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Run folders, or folders with runs in them.")]


def register(app: typer.Typer) -> None:
    """Add the commands to a command line."""
    app.command()(report)
    app.command()(runs)


def report(
    paths: _Runs,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="The page to write.")] = None,
) -> None:
    """Write one HTML page of a run, or of several compared; it opens without any network.

    Without -o: report.html in the run's folder; of several runs, in the current folder.
    """
    from .logs.report import write_report
    from .logs.summary import in_units

    with _told():
        page = write_report(paths, out)
        typer.echo(f"{page} ({in_units(page.stat().st_size)}); open it in a browser")


def runs(
    path: Annotated[Path, typer.Argument(help="A folder with runs in it, at any depth, or a run's.")] = Path(),
    sort: Annotated[
        str | None, typer.Option("--sort", "-s", metavar="COLUMN", help="Any column, as test_loss or test_acc.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The greatest first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, for scripts.")] = False,
) -> None:
    """List runs, with their best values."""
    from .logs.runs import list_runs, table_of

    with _told():
        rows = list_runs(path, sort, reverse)
    if as_json:
        typer.echo(json.dumps([{name: _plain(value) for name, value in row.items()} for row in rows], indent=1))
        return
    typer.echo("\n".join(table_of(rows)))
    for row in rows:
        if problem := row.get("problem"):
            typer.echo(f"zae: {problem}", err=True)


def _plain(value: Any) -> Any:
    """What JSON has no number for is text, as in the history."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _told() -> Iterator[None]:
    """End with 2 and one line for a path without a run, a column that is none, or a package that is missing."""
    from .logs.reading import RunFolderError

    try:
        yield
    except (RunFolderError, ValueError, ModuleNotFoundError, OSError) as error:
        typer.echo(f"zae: {error}", err=True)
        raise typer.Exit(2) from error
