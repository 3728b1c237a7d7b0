"""Where a trainer stands with the run of its folder: one value, and what may follow it."""

from __future__ import annotations

from enum import Enum


class Standing(Enum):
    """Where a run stands, between two calls of `run` and within one."""

    FRESH = "nothing of the folder's run is in this trainer"
    LOADED = "a checkpoint is loaded, from which the next call goes on"
    CONCLUDED = "what is loaded is the end of a call, from which the next one begins"
    RUNNING = "a call of run trains"
    ENDED = "the last call came to its end; the folder has this trainer's run"
    BROKEN = "the last call broke off; the trainer's state matches no checkpoint"

    def after(self, event: str) -> Standing:
        """What it is after an event, one of `TRANSITIONS`.

        Raises
        ------
        ValueError
            For an event that cannot happen here.
        """
        try:
            return TRANSITIONS[event][self]
        except KeyError:
            raise ValueError(f"{event!r} cannot happen where {self.value}") from None

    @property
    def owns(self) -> bool:
        """Whether what is in the folder comes from this trainer."""
        return self in (Standing.RUNNING, Standing.ENDED, Standing.BROKEN)


_F, _L, _C, _R, _E, _B = Standing
_AT_REST = (_F, _L, _C, _E, _B)

# By event: from which standing to which.
TRANSITIONS: dict[str, dict[Standing, Standing]] = {
    "begin": dict.fromkeys(Standing, _R),  # again, too: a `run` of the user's own may call ours several times
    "end": {_R: _E},
    "break off": {_R: _B},
    "load": dict.fromkeys(_AT_REST, _L),
    "conclude": {_L: _C},
    "pass over": {_L: _F},  # a later call of the script will load
    "save": {_F: _E, _L: _E, _C: _E, _E: _E, _B: _B},  # between two calls
}
