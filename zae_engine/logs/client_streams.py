"""Clients of loggers, kept apart from the random streams of the training that they stand beside."""

from __future__ import annotations

import importlib
import random
import sys
from contextlib import suppress
from typing import Any

import numpy as np

# Clients, and what they make requests with: a retry waits a random time.
_PACKAGES = {"wandb", "neptune", "mlflow", "databricks", "trackio", "gradio_client", "huggingface_hub", "urllib3",
             "botocore", "bravado", "backoff", "tenacity", "websocket", "websockets", "httpx", "httpcore"}  # fmt: skip


class _Apart:
    """Stands for the module ``random``, and draws from the system."""

    def __init__(self) -> None:
        self._system = random.SystemRandom()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("Random", "SystemRandom", "seed", "getstate", "setstate"):
            return getattr(random, name)
        return getattr(self._system, name)


_APART = _Apart()


def import_apart(module: str) -> None:
    """Import a client here, and leave the random streams as they are.

    Some packages draw while they are imported; from a thread beside the training, that would change what it draws.
    """
    if module and module not in sys.modules:
        streams = random.getstate(), np.random.get_state()
        with suppress(Exception, SystemExit):  # the thread finds the same, and tells it
            importlib.import_module(module)
        random.setstate(streams[0])
        np.random.set_state(streams[1])
    keep_apart()


def keep_apart() -> None:
    """Let the clients' modules that are there by now draw from the system, in place of the training's stream."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _PACKAGES and getattr(module, "__dict__", {}).get("random") is random:
            vars(module)["random"] = _APART
