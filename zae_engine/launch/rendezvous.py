"""How the processes of an elastic restart find each other."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from accelerate.utils import InitProcessGroupKwargs

_SCHEME = "zae"


def is_restart(environ: Mapping[str, str]) -> bool:
    """Whether torch's launcher has started this process again, in place of one that died, on one machine."""
    counted = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    with_its_store = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return counted.isdecimal() and int(counted) > 0 and with_its_store and environ.get("GROUP_WORLD_SIZE") == "1"


def with_fresh_store(handlers: Sequence[Any] | None, limit: float | None = None) -> list[Any] | None:
    """Let the processes of a restart meet apart from what those before them have left.

    The launcher keeps one store over all attempts, in which the addresses of dead processes still stand. A new process
    that reads one of them waits, or fails; in a part of the store with the attempt's own name it finds the living ones
    only. Over several machines each launcher counts its attempts alone, so nothing is changed there.

    Parameters
    ----------
    handlers : sequence of accelerate.utils.KwargsHandler, optional
        The user's; an ``InitProcessGroupKwargs`` among them keeps its other settings.
    limit : float, optional
        Seconds that they wait for each other, where the user says nothing else.
    """
    mine = list(handlers or ())
    if limit is not None and not any(isinstance(h, InitProcessGroupKwargs) for h in mine):
        mine.append(InitProcessGroupKwargs(timeout=timedelta(seconds=limit)))
    if not is_restart(os.environ):
        return mine or None
    own = next((h for h in mine if isinstance(h, InitProcessGroupKwargs)), None)
    if own is not None and own.init_method is not None:
        return mine
    _register()
    changed = InitProcessGroupKwargs() if own is None else copy.copy(own)
    changed.init_method = f"{_SCHEME}://"
    return [*(h for h in mine if h is not own), changed]


def _register() -> None:
    from torch.distributed.rendezvous import register_rendezvous_handler

    try:
        register_rendezvous_handler(_SCHEME, _meet)  # type: ignore[no-untyped-call]
    except RuntimeError:  # it is there already
        return


def _meet(url: str, timeout: timedelta = timedelta(minutes=30), **options: Any) -> Iterator[tuple[Any, int, int]]:
    """What torch's ``env://`` does, within a part of the store that belongs to this attempt."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # they are public

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, size, False, timeout)
    yield PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store), rank, size
