"""The other trainers, one module each; a module is imported only when its peer is installed."""

from __future__ import annotations

import os
import warnings
from importlib import import_module

from ..task import Row

# Keras picks its backend when it is first imported.
os.environ.setdefault("KERAS_BACKEND", "torch")

# Module here, and the name of the peer.
PEERS = {
    "ignite_rows": "pytorch-ignite",
    "torchtnt_rows": "torchtnt",
    "pytorch_accelerated_rows": "pytorch-accelerated",
    "transformers_rows": "transformers",
    "lightning_rows": "lightning",
    "composer_rows": "mosaicml",
    "keras_rows": "keras",
}


def load_rows(kind: str = "ROWS") -> tuple[list[Row], dict[str, str]]:
    """Import the peers.

    Parameters
    ----------
    kind : {'ROWS', 'CLIPPED', 'EVALUATION'}
        Which rows; a peer need not have all kinds.

    Returns
    -------
    tuple
        The rows of the peers that can be imported, and the reason for each one that cannot.
    """
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    for module, peer in PEERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows.extend(getattr(import_module(f"{__name__}.{module}"), kind, ()))
        except ImportError as error:
            skipped[peer] = str(error)
    return rows, skipped
