"""Keys and values of a configuration, one by one, against what Accelerate accepts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .accepted_keys import COMPLETED, PREFIXES, SECTIONS, Schema
from .findings import Finding
from .yaml_file import Document, near

# `accelerate config` writes the left ones; Accelerate reads the right ones.
_MISNAMED = {
    "fp8_amax_history_length": "amax_history_len",
    "fp8_amax_compute_algorithm": "amax_compute_algo",
    "fp8_optimization_level": "opt_level",
}
_OTHER_WORDS = {"ddp": "MULTI_GPU", "tpu": "XLA", "fsdp2": "FSDP", "zero": "DEEPSPEED", "none": "NO", "cpu": "NO"}
_WHOLE = ("num_processes", "num_machines", "machine_rank", "main_process_port")


def check_keys(document: Document, schema: Schema) -> Iterator[Finding]:
    """Find keys that Accelerate does not know, or knows elsewhere, or passes over."""
    for path in document.repeated:
        yield document.error(path, "the key stands here a second time, and the last one wins", "keep one of them")
    for key in map(str, document.values):
        if key not in schema.top:
            yield _unknown_top(document, schema, key)
        elif key in schema.passed_over:
            yield from _passed_over(document, schema, key)
    for section in SECTIONS:
        for key in map(str, document.section(section)):
            if schema.full(section, key) not in schema.sections[section]:
                yield _unknown_nested(document, schema, section, key)


def check_values(document: Document, schema: Schema) -> Iterator[Finding]:
    """Find values of the wrong type, and words that are none of those accepted."""
    for key, value in document.values.items():
        if value is None or key not in schema.top:
            continue
        if key in SECTIONS:
            yield from _check_section(document, schema, key, value)
        elif problem := _wrong_value(key, value, document.raw.get((key,), ""), schema):
            yield document.error(key, *problem)


def _unknown_top(document: Document, schema: Schema, key: str) -> Finding:
    prefix = next((s for s in COMPLETED if PREFIXES[s] + key in schema.sections[s]), None)
    home = schema.home(key) or prefix
    meant = near(key, schema.top)
    hint = "take it out"
    if home and not (meant and home == prefix):
        hint = f"move it under {home}:"
    elif meant:
        hint = f"did you mean {meant!r}?"
    return document.error(key, "Accelerate knows no such key and stops", hint)


def _unknown_nested(document: Document, schema: Schema, section: str, key: str) -> Finding:
    full = schema.full(section, key)
    home = schema.home(key)
    prefix = PREFIXES.get(section, "")
    known = schema.sections[section]
    meant = near(full, known) or near(prefix + key, known)
    if full in _MISNAMED:
        hint = f"write {_MISNAMED[full]!r}"
    elif home:
        hint = f"move it under {home}:"
    elif key in schema.top:
        hint = "move it to the top level"
    elif meant:
        shown = meant.removeprefix(prefix) if section in COMPLETED and not key.startswith(prefix) else meant
        hint = f"did you mean {shown!r}?"
    else:
        hint = "take it out"
    return document.error((section, key), f"Accelerate knows no such key in {section} and passes over it", hint)


def _passed_over(document: Document, schema: Schema, key: str) -> Iterator[Finding]:
    used, value = schema.passed_over[key], document.values[key]
    off = used is False and value in (False, None, "no", "NO", "false")
    alone = key == "same_network" and document.values.get("num_machines", 1) == 1  # says nothing on one machine
    if off or alone or value == used:
        return
    flag = f"--{key}" if used is False else f"--{key} {value}"
    yield document.warning(
        key,
        f"Accelerate never reads this key from a file and uses {used!r}",
        f"give it to `accelerate launch` as {flag}, or take it out",
    )


def _wrong_value(key: str, value: Any, raw: str, schema: Schema) -> tuple[str, str] | None:
    if key in _WHOLE:
        return _wrong_number(value, raw)
    if key == "gpu_ids":
        return _wrong_ids(value)
    if key in schema.choices:
        return _wrong_word(key, value, raw, schema)
    if schema.top[key] == "bool" and key not in schema.passed_over and not isinstance(value, bool):
        return f"{value!r} is not true or false", "write true or false, without quotes"
    if "str" in schema.top[key] and "list" not in schema.top[key] and not isinstance(value, str):
        return f"{raw or value!r} is not a text", f"write {str(raw or value)!r}, in quotes"
    return None


def _wrong_number(value: Any, raw: str) -> tuple[str, str] | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        return f"{value!r} is a text, not a number", f"write {value.strip()}, without quotes"
    return f"{raw or value!r} is not a whole number", "write one, such as 2, in digits and without quotes"


def _wrong_ids(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str):
        return None
    ids = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{value!r} is a {type(value).__name__}, on which Accelerate crashes", f"write it as a text: '{ids}'"


def _wrong_word(key: str, value: Any, raw: str, schema: Schema) -> tuple[str, str] | None:
    choices = schema.choices[key]
    if isinstance(value, bool) and (meant := near(raw, [c for c in choices if c.lower() == raw.lower()])):
        return f"an unquoted {raw} is a boolean in YAML", f"write '{meant}', in quotes"
    strict = key in ("distributed_type", "compute_environment")  # enumerations, where the case counts
    if str(value) in choices or (not strict and str(value).lower() in map(str.lower, choices)):
        return None
    meant = _OTHER_WORDS.get(str(value).lower()) if key == "distributed_type" else None
    meant = meant or near(value, choices, 0.66)  # there are few, and short ones
    there = ", ".join(choices)
    return f"{value!r} is not one of {there}", f"did you mean {meant!r}?" if meant else "write one of these"


def _check_section(document: Document, schema: Schema, section: str, values: Any) -> Iterator[Finding]:
    if not isinstance(values, dict):
        yield document.error(section, f"{values!r} is not a section", "write its keys below it, indented")
        return
    for key, value in values.items():
        full = schema.full(section, str(key))
        if value is None or full not in schema.sections[section]:
            continue
        path = (section, str(key))
        if full in schema.choices and not (str(value).isdigit() and "version" not in full):
            if problem := _wrong_word(full, value, document.raw.get(path, ""), schema):
                yield document.error(path, *problem)
        elif full in schema.numbers and not _is_number(value):
            yield document.error(path, f"{value!r} is not a number", "write one, in digits")


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and float(value) == float(value)
    except (TypeError, ValueError):
        return str(value).lower() in ("auto", "none")  # DeepSpeed's words
