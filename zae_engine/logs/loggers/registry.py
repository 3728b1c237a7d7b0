"""Which loggers there are. Each is imported when it is asked for; its client only when a run starts."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

from ...suggestions import nearest
from .logger import Logger

LOGGERS: dict[str, str] = {
    "csv": "csv_logger:CSVLogger",
    "mlflow": "mlflow_logger:MLflowLogger",
    "neptune": "neptune_logger:NeptuneLogger",
    "tensorboard": "tensorboard_logger:TensorBoardLogger",
    "tracker": "tracker_logger:TrackerLogger",
    "trackio": "trackio_logger:TrackioLogger",
    "wandb": "wandb_logger:WandBLogger",
}


def logger_class(name: str) -> type[Logger]:
    """Return the logger of a name in `LOGGERS`.

    Raises
    ------
    ValueError
        There is none of that name; the message has the nearest one.
    """
    if name not in LOGGERS:
        raise ValueError(f"there is no logger {name!r}; {hint(name, LOGGERS)}")
    module, _, attribute = LOGGERS[name].partition(":")
    found: type[Logger] = getattr(importlib.import_module(f".{module}", __package__), attribute)
    return found


def require(logger: type[Logger]) -> None:
    """Refuse a logger whose client is not installed; nothing is imported for that.

    Raises
    ------
    ModuleNotFoundError
        With the command that installs it.
    """
    if logger.module and not installed(logger.module):
        raise ModuleNotFoundError(
            f"the {logger.name} logger needs {logger.module}, which is not installed: "
            f"pip install 'zae-engine[{logger.extra}]'",
            name=logger.module,
        )


def installed(module: str) -> bool:
    """Whether a module can be imported, as far as that can be told without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its package is missing, or something half made stands in its place
        return False


def check_settings(logger: type[Logger], settings: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse settings that a logger does not have.

    Raises
    ------
    TypeError
        The message has the nearest one that there is.
    """
    for name in settings:
        if name not in (known := tuple(known)):
            raise TypeError(f"the {logger.name} logger has no setting {name!r}; {hint(name, known)}")


def hint(name: str, choices: Iterable[str]) -> str:
    """What to write in place of a name that is none of the choices."""
    there = sorted(choices)
    near = nearest(str(name), there)
    return f"did you mean {near!r}?" if near else f"there are {', '.join(map(repr, there))}"
