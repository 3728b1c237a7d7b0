"""What Accelerate accepts, asked of the installed version."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from functools import cache

# Sections whose keys Accelerate completes with a prefix when it is missing, or expects with it.
PREFIXES = {
    "fsdp_config": "fsdp_",
    "fp8_config": "fp8_",
    "dynamo_config": "dynamo_",
    "megatron_lm_config": "megatron_lm_",
    "mpirun_config": "mpirun_",
    "parallelism_config": "parallelism_config_",
}
COMPLETED = ("fsdp_config", "fp8_config", "dynamo_config")
SECTIONS = (*PREFIXES, "deepspeed_config")

# Options that Accelerate reads from the file although the parser has none for them.
_WITHOUT_FLAG = {
    "fsdp_config": {"fsdp_ignored_modules"},
    "fp8_config": {"fp8_use_mxfp8_block_scaling"},
}
# Options with a default of the parser's own that Accelerate takes from the file all the same.
_TAKEN = {"debug", "tpu_use_cluster"}


@dataclass(frozen=True)
class Schema:
    """The keys that a configuration may have, and the values of some.

    Attributes
    ----------
    top : dict of str to str
        The top-level keys, with the types of their values as ClusterConfig writes them.
    sections : dict of str to set of str
        The keys of each section, by their full names.
    choices : dict of str to tuple of str
        The values that a key may have, whatever their case.
    numbers : set of str
        The keys of sections that are numbers.
    passed_over : dict of str to object
        Top-level keys that the launcher never reads from a file, with the value that it uses instead.
    """

    top: dict[str, str]
    sections: dict[str, set[str]]
    choices: dict[str, tuple[str, ...]]
    numbers: set[str]
    passed_over: dict[str, object]

    def full(self, section: str, key: str) -> str:
        """Return a section's key with the prefix that Accelerate puts before it."""
        prefix = PREFIXES.get(section, "")
        return prefix + key if section in COMPLETED and not key.startswith(prefix) else key

    def home(self, key: str) -> str | None:
        """Return the section that a key belongs to; None for a key that no section has."""
        return next((s for s in SECTIONS if key in self.sections[s]), None)


@cache
def read_schema() -> Schema:
    """Ask the installed Accelerate for its keys.

    An option with a default other than None is not taken from a file: Accelerate fills in only what is None
    (``_validate_launch_command`` in its ``commands/launch.py``).
    """
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    actions = {a.dest: a for a in parser._actions}
    top = {f.name: _name_type(f.type) for f in dataclasses.fields(ClusterConfig)}
    top |= {"fp16": "bool", "dynamo_backend": "str"}  # of older versions, which Accelerate translates
    return Schema(
        top=top,
        sections={name: _section(name, parser, actions) for name in SECTIONS},
        choices=_choices(actions),
        numbers={dest for dest, a in actions.items() if a.type in (int, float)},
        passed_over={
            key: actions[key].default
            for key in top
            if key in actions and key not in _TAKEN and actions[key].default is not None
        },
    )


def _name_type(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _section(name: str, parser: argparse.ArgumentParser, actions: dict[str, argparse.Action]) -> set[str]:
    prefix = PREFIXES.get(name)
    if prefix is None:  # DeepSpeed's options have no common prefix, but a group of their own
        group = next(g for g in parser._action_groups if g.title == "DeepSpeed Arguments")
        return {a.dest for a in group._group_actions}
    return {dest for dest in actions if dest.startswith(prefix)} | _WITHOUT_FLAG.get(name, set())


def _choices(actions: dict[str, argparse.Action]) -> dict[str, tuple[str, ...]]:
    from accelerate.utils import ComputeEnvironment, DistributedType, constants

    found = {dest: tuple(map(str, a.choices)) for dest, a in actions.items() if a.choices}
    found["distributed_type"] = tuple(kind.value for kind in DistributedType)
    found["compute_environment"] = tuple(kind.value for kind in ComputeEnvironment)
    for name in ("SHARDING_STRATEGY", "AUTO_WRAP_POLICY", "BACKWARD_PREFETCH", "STATE_DICT_TYPE"):
        found[f"fsdp_{name.lower()}"] = tuple(getattr(constants, f"FSDP_{name}"))
    return found
