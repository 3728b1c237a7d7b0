"""What W&B notes by itself of how a run was started: without secrets, which its metadata would take to the server."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...redaction import without_secrets


@contextmanager
def clean_command(chosen: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield arguments of ``wandb.init``; a run that is opened with them, inside, notes a clean command line.

    wandb reads ``sys.argv`` in a property of its settings. In a version without it, a command line with secrets means
    that no metadata are kept.
    """
    from wandb import Settings

    if without_secrets(sys.argv) == sys.argv:
        yield dict(chosen)
        return
    before = vars(Settings).get("_args")
    if not isinstance(before, property) or before.fget is None:
        settings = chosen["settings"].model_copy(update={"x_disable_meta": True})
        yield {**chosen, "settings": settings}
        return
    read = before.fget
    setattr(Settings, "_args", property(lambda settings: without_secrets(read(settings))))  # noqa: B010 (mypy)
    try:
        yield dict(chosen)
    finally:
        setattr(Settings, "_args", before)  # noqa: B010
