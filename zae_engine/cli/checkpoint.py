"""``zae checkpoint``: lists, verifies, compares and shows checkpoints. Thin: `zae_engine.checkpoint` does the work.

`ls` and `verify` need no torch; the others import it when they are called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..terminal import in_line, say

if TYPE_CHECKING:
    from ..checkpoint.folder import Checkpoint

_Place = Annotated[Path, typer.Argument(help="A run folder, its checkpoints/, or one checkpoint.")]
_Other = Annotated[Path, typer.Argument(help="As PATH; or a file of weights.")]
_LONGEST = 20  # lines of plain values that `show` prints for a part

checkpoint_app = typer.Typer(help="List, verify, compare and show checkpoints.", rich_markup_mode=None)


@checkpoint_app.command(name="ls")
def list_checkpoints(path: _Place) -> None:
    """List checkpoints. Sizes are compared with what was written; `verify` compares checksums."""
    from ..checkpoint.folder import problems_of

    with _told():
        found = _find(path)
        rows = [_row(checkpoint, problems_of(checkpoint.path, checksums=False)) for checkpoint in found]
        rows += [[name, *[""] * 6, "partial"] for name in _partial(path)]
        head = ["NAME", "STEP", "EPOCH", "METRICS", "SIZE", "AGE", "PROCESSES", "STATE"]
        say(*(_columns([head, *rows]) if rows else [f"{path} has no checkpoint yet"]))


@checkpoint_app.command()
def verify(path: _Place) -> None:
    """Compare each file with its checksum; exit with 1 when something is wrong."""
    from ..checkpoint.folder import examine, foreign_files

    with _told():
        found = _find(path)
    damaged = 0
    for checkpoint in found:
        files = examine(checkpoint.path)
        damaged += any(files.values())
        say(f"{checkpoint.path.name}: {'damaged' if any(files.values()) else 'whole'}")
        for name, problem in files.items():
            say(f"  {'BAD' if problem else 'ok '} {problem or name}")
        for name in foreign_files(checkpoint.path):
            say(f"  --  {name} is not of the checkpoint, and is never loaded")
    say(f"{len(found)} verified, {damaged} damaged")
    if damaged:
        raise typer.Exit(1)


@checkpoint_app.command()
def diff(one: _Other, other: _Other) -> None:
    """Compare two checkpoints, or files of weights, to the bit; exit with 1 when they differ."""
    with _told():
        from ..checkpoint.compare import compare

        found = compare(one, other)
    say(*found, f"{len(found)} differences" if len(found) != 1 else "1 difference")
    if found:
        raise typer.Exit(1)


@checkpoint_app.command()
def show(path: _Other) -> None:
    """Show what a checkpoint says of itself, its tensors, and its plain values."""
    with _told():
        from ..checkpoint.compare import pick, read_parts

        checkpoint = None if path.is_file() else pick(path)
        parts = read_parts(path if checkpoint is None else checkpoint.path)
        if checkpoint is not None:
            _show_manifest(checkpoint)
        for part, leaves in parts.items():
            _show_part(part, leaves)


@contextmanager
def _told() -> Iterator[None]:
    """End with 2 and one line for a checkpoint that is not there, or is damaged."""
    from ..checkpoint.errors import CheckpointError

    try:
        yield
    except (CheckpointError, OSError) as error:
        say(f"zae: {error}", err=True)
        raise typer.Exit(2) from error


def _find(path: Path) -> list[Checkpoint]:
    from ..checkpoint.folder import Checkpoint, locate

    found = locate(path)
    return [found] if isinstance(found, Checkpoint) else found


def _partial(path: Path) -> list[str]:
    inside = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    return sorted(found.name for found in inside.glob(".*-step-*.partial"))


def _row(checkpoint: Checkpoint, problems: list[str]) -> list[str]:
    unknown = "?"
    return [
        checkpoint.path.name,
        str(checkpoint.step),
        unknown if checkpoint.epoch is None else str(checkpoint.epoch),
        ", ".join(f"{name} {value:.4g}" for name, value in checkpoint.metrics.items()),
        _bytes(checkpoint.size),
        unknown if checkpoint.created is None else _age(checkpoint.created),
        unknown if checkpoint.processes is None else str(checkpoint.processes),
        f"damaged: {'; '.join(problems)}" if problems else "whole",
    ]


def _columns(rows: list[list[str]]) -> list[str]:
    rows = [list(map(in_line, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _age(created: datetime) -> str:
    seconds = max((datetime.now(timezone.utc) - created).total_seconds(), 0)
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _show_manifest(checkpoint: Checkpoint) -> None:
    say(checkpoint.path)
    for key, value in checkpoint.manifest.items():
        if key == "files":
            value = f"{len(value)}, {_bytes(checkpoint.size)}"
        if key not in ("format", "sha256", "data"):  # hashes, which are there to be compared
            say(f"  {key}: {_words(value)}")


def _show_part(part: str, leaves: dict[tuple[Any, ...], Any]) -> None:
    from ..checkpoint.compare import describe

    tensors = {path: value for path, value in leaves.items() if hasattr(value, "dtype") and hasattr(value, "numel")}
    values = [path for path in leaves if path not in tensors]
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    count = sum(math.prod(value.shape) for value in tensors.values())
    say(f"{part}: {len(tensors)} tensors, {count:,} numbers, {_bytes(size)}; {len(values)} plain values")
    for path in [*tensors, *values[:_LONGEST]]:
        say(f"  {'/'.join(map(str, path))}  {describe(leaves[path])}")
    if len(values) > _LONGEST:
        say(f"  and {len(values) - _LONGEST} more plain values")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    return str(value)
