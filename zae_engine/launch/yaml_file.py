"""A YAML file whose values know their lines, and what is found in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..files import read_bytes
from ..suggestions import nearest
from .findings import ConfigError, Finding, Level

_LARGEST = 1 << 18  # bytes; parsing takes 10 s a megabyte
_DEEPEST, _MOST = 50, 10_000


@dataclass
class Document:
    """The values of a configuration, and the line of each key.

    ``lines`` goes by path: ``("fsdp_config", "fsdp_version")`` is a key within a section. ``raw`` has the text of each
    value as it stands in the file. ``repeated`` are the keys that stand there twice.
    """

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    raw: dict[tuple[str, ...], str] = field(default_factory=dict)
    repeated: list[tuple[str, ...]] = field(default_factory=list)

    def line(self, *path: str) -> int:
        """Return the line of a key; of its section, or the first, where there is no such key."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def section(self, name: str) -> dict[str, Any]:
        """Return the keys of a section; none where it is missing or no mapping."""
        values = self.values.get(name)
        return values if isinstance(values, dict) else {}

    def error(self, path: str | tuple[str, ...], problem: str, remedy: str) -> Finding:
        """Make a finding that stops a launch."""
        return self._finding(path, "error", problem, remedy)

    def warning(self, path: str | tuple[str, ...], problem: str, remedy: str) -> Finding:
        """Make a finding that only has to be known."""
        return self._finding(path, "warning", problem, remedy)

    def _finding(self, path: str | tuple[str, ...], level: Level, problem: str, remedy: str) -> Finding:
        path = (path,) if isinstance(path, str) else path
        return Finding(self.line(*path), ".".join(path), level, problem, remedy)


def read_document(path: str | Path) -> Document:
    """Read a configuration with the line numbers of its keys.

    Raises
    ------
    ConfigError
        When there is no such file (near names are given), or it is no YAML mapping.
    """
    text = _read_text(Path(path))
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if problem := _without_end(root):
            raise _refused(path, problem, "write plain 'key: value' lines")
        values = yaml.safe_load(text)
    except RecursionError:
        raise _refused(path, "it is nested too deeply", "write plain 'key: value' lines") from None
    except ConfigError:
        raise
    except Exception as error:  # a list as a key is a TypeError, a wrong tag anything from KeyError to IndexError
        raise _unreadable(path, error) from error
    if root is None:
        raise _refused(path, "the file is empty", "write at least distributed_type and num_processes")
    if not isinstance(root, yaml.MappingNode):
        kind = "list" if isinstance(root, yaml.SequenceNode) else "single value"
        raise _refused(path, f"the file is a {kind}", "write 'key: value' lines, without a leading '-'")
    document = Document(values)
    _note_lines(root, (), document)
    return document


def near(word: object, names: Iterable[str], alike: float = 0.78) -> str | None:
    """Return the one of the names that was probably meant."""
    return nearest(str(word), names, alike)


def _read_text(path: Path) -> str:
    if path.is_file():
        try:
            return read_bytes(path, _LARGEST, follow=True).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _refused(path, "the file is not UTF-8 text", "give a YAML file") from error
        except OSError as error:
            raise _refused(path, f"it cannot be read: {error.strerror}", "give a YAML file") from error
    there = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    meant = near(path.name, there)
    hint = f"did you mean {str(path.parent / meant)!r}?" if meant else "give the path of a YAML file"
    raise ConfigError(f"there is no configuration {str(path)!r}; {hint}")


def _without_end(root: yaml.Node | None) -> str:
    """What is wrong with how a document's parts hold each other; "" for a usual one.

    An anchor's alias is the same node again: one may hold itself, and ten of ten of ten hold a billion.
    """
    count, above, rest = 0, list[int](), [(root, 0)]
    while rest:
        node, depth = rest.pop()
        del above[depth:]
        if id(node) in above:
            return "it holds itself"
        count += 1
        if depth > _DEEPEST or count > _MOST:
            return "it is nested too deeply" if depth > _DEEPEST else f"it holds more than {_MOST:,} values"
        if isinstance(node, yaml.CollectionNode):
            above.append(id(node))
            pairs = [pair if isinstance(pair, tuple) else (pair,) for pair in node.value]
            rest += [(inner, depth + 1) for pair in pairs for inner in pair]
    return ""


def _unreadable(path: str | Path, error: Exception) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error) or type(error).__name__
    line = mark.line + 1 if mark else 1
    return _refused(path, f"this is no YAML ({problem})", "write 'key: value' lines, indented by spaces", line)


def _refused(path: str | Path, problem: str, remedy: str, line: int = 1) -> ConfigError:
    return ConfigError(f"{path}: {problem}; {remedy}", [Finding(line, "", "error", problem, remedy)])


def _note_lines(node: yaml.MappingNode, above: tuple[str, ...], document: Document) -> None:
    for key, value in node.value:
        path = (*above, str(key.value))
        if path in document.lines:
            document.repeated.append(path)
        document.lines[path] = key.start_mark.line + 1
        if isinstance(value, yaml.ScalarNode):
            document.raw[path] = str(value.value)
        elif isinstance(value, yaml.MappingNode):
            _note_lines(value, path, document)
