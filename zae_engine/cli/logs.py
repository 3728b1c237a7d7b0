"""``zae report``, ``zae runs``, ``zae logs``: show runs, give them to loggers. Thin: `zae_engine.logs` does the work.

None of them needs torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..terminal import say

logs_app = typer.Typer(help="Give runs to loggers: what they have missed, or whole runs.", rich_markup_mode=None)

_Runs = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Run folders, or folders with runs in them.")]


def register(app: typer.Typer) -> None:
    """Add the commands to a command line."""
    app.command()(report)
    app.command()(runs)
    app.add_typer(logs_app, name="logs")


def report(
    paths: _Runs,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="The page to write.")] = None,
) -> None:
    """Write one HTML page of a run, or of several compared; it opens without any network.

    Without -o: report.html in the run's folder; of several runs, in the current folder.
    """
    from ..logs.report import write_report
    from ..logs.summary import in_units

    with _told():
        page = write_report(paths, out)
        say(f"{page} ({in_units(page.stat().st_size)}); open it in a browser")


def runs(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A folder with runs in it, at any depth, or a run's; the current one by default.", show_default=False
        ),
    ] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", "-s", metavar="COLUMN", help="Any column, as test_loss or test_acc.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The greatest first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, for scripts.")] = False,
) -> None:
    """List runs, with their best values."""
    from ..logs.runs import list_runs, table_of

    with _told():
        rows = list_runs(path or Path(), sort, reverse)
    if as_json:
        text = json.dumps([{name: _plain(value) for name, value in row.items()} for row in rows], indent=1)
        say(*text.split("\n"))
        return
    say(*table_of(rows))
    for row in rows:
        if problem := row.get("problem"):
            say(f"zae: {problem}", err=True)


@logs_app.command()
def sync(
    path: Annotated[Path, typer.Argument(help="A run folder.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Of loggers; all by default.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the one NAME, over what the folder says."),
    ] = None,
) -> None:
    """Deliver to a run's loggers what they have missed, each record once. Exits with 1 when one could not take it.

    Addresses, and paths outside of it, are not taken from the folder: the environment or --set has to name them.
    """
    from ..logs.export import SyncError
    from ..logs.export import sync as deliver

    with _told():
        try:
            say(*deliver(path, names or (), settings=dict(map(_setting, settings or ()))))
        except SyncError as error:
            say(*f"zae: {error}".split("\n"), err=True)
            raise typer.Exit(1) from error


@logs_app.command()
def export(
    path: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="csv, tensorboard, wandb, mlflow, trackio, neptune.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the logger; once for each.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where it writes locally; PATH/export.")] = None,
    every_step: Annotated[bool, typer.Option("--every-step", help="A record for each step.")] = False,
) -> None:
    """Give a whole run to a logger, as a new run there."""
    from ..logs.export import export as give

    with _told():
        say(give(path, to, dict(map(_setting, settings or ())), out, every_step))


def _setting(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``; a value that JSON can read is what it says (numbers, true, lists), any other is text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {text} is not understood; write KEY=VALUE, --set project=digits say")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _plain(value: Any) -> Any:
    """What JSON has no number for is text, as in the history."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _told() -> Iterator[None]:
    """End with 2 and one line for a path without a run, a column that is none, or a package that is missing."""
    from ..logs.reading import RunFolderError

    try:
        yield
    except (RunFolderError, ValueError, TypeError, ModuleNotFoundError, OSError) as error:
        say(f"zae: {error}", err=True)
        raise typer.Exit(2) from error
