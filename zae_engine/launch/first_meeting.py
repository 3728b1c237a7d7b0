"""While the processes of a training meet for the first time: whoever waits for the others says so."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .environment import REQUIRED, LaunchError, World, origins

SLOW = 10.0  # seconds after which a process says that it waits

_MORE = ("LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE")


@contextmanager
def meeting(world: World, env: Mapping[str, str]) -> Iterator[None]:
    """Inside, several processes meet: one that waits long for the others says so, and an error names the likely cause.

    Parameters
    ----------
    world : World
        What the launcher says.
    env : mapping
        ``os.environ``.

    Raises
    ------
    LaunchError
        When they have not met in the time that torch gives them.
    """
    import torch.distributed as dist

    if world.size == 1 or dist.is_initialized():
        yield
        return
    text = _whom(world, env)
    timer = threading.Timer(SLOW, _say, [f"zae-engine: for {SLOW:g} s, {text}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise LaunchError(f"the processes have not met: {text}") from error
    finally:
        timer.cancel()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _whom(world: World, env: Mapping[str, str]) -> str:
    others = [str(rank) for rank in range(world.size) if rank != world.rank]
    names = f"process {others[0]}" if len(others) == 1 else f"processes {', '.join(others[:4])}"
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    left = [*(name for name in (*REQUIRED, *_MORE) if name in env), *origins(env)]
    where = f"{env.get('MASTER_ADDR', '?')}:{env.get('MASTER_PORT', '?')}"
    return (
        f"process {world.rank} of {world.size} has waited for {names}{more} at {where}. See that all are started. Where"
        f" a launcher that is gone has left its variables behind, unset them: unset {' '.join(left)}"
    )
