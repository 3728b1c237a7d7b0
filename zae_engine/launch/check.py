"""Finds what Accelerate would pass over or crash on, before anything starts."""

from __future__ import annotations

from pathlib import Path

from .accepted_keys import read_schema
from .findings import ConfigError, Finding
from .key_combinations import RULES, check_machine
from .key_values import check_keys, check_values
from .machine import Machine, this_machine
from .yaml_file import Document, read_document


def check_config(path: str | Path, machine: Machine | None = None) -> list[Finding]:
    """Check an Accelerate configuration.

    Parameters
    ----------
    path : str or Path
        A YAML file.
    machine : Machine, optional
        The machine that it shall run on; this one by default.

    Returns
    -------
    list of Finding
        By line; empty when there is nothing to say.

    Raises
    ------
    ConfigError
        When there is no such file.
    """
    try:
        document = read_document(path)
    except ConfigError as error:
        if error.findings:
            return error.findings
        raise
    return check_document(document, machine or this_machine())


def check_document(document: Document, machine: Machine) -> list[Finding]:
    """Check what was read; see `check_config`."""
    if document.values.get("compute_environment") == "AMAZON_SAGEMAKER":
        return [
            document.warning("compute_environment", "SageMaker files are not checked", "see Accelerate's own messages")
        ]
    schema = read_schema()
    found = [*check_keys(document, schema), *check_values(document, schema)]
    known = {f.key for f in found if f.level == "error"}
    for finding in (f for rule in RULES for f in rule(document)):
        if finding.key not in known or finding.key == "num_processes":  # a value of the wrong type says it all
            found.append(finding)
    if not any(f.level == "error" for f in found):
        found += check_machine(document, machine)
    return sorted(set(found), key=lambda f: (f.line, f.key, f.level))
