"""YAML with the line each value stands on, YAML 1.2 scalars, and no duplicate keys.

PyYAML follows YAML 1.1, in which `1e-3` is text, `no` is false and `12:30` is a number. Here numbers are
what they look like, only `true` and `false` are booleans, and everything else is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmtrain.config import shipped
from llmtrain.errors import ConfigError, Problem

KeyPath = tuple[str, ...]  # ("data", "train", "0", "path")


def dotted(path: KeyPath) -> str:
    """How a key path is written in messages, origins and overrides."""
    return ".".join(path)


class _Loader(yaml.SafeLoader):
    """SafeLoader that resolves scalars by YAML 1.2's core schema (plus `1_000`)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9]+|[0-9][0-9_]*\.?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        list("-+.0123456789"),
    ),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


@dataclass(frozen=True)
class Document:
    """A YAML mapping and the 1-based line of every key in it."""

    path: str
    content: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """`FILE:LINE` of a key, or of the nearest key that encloses it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.path}:{self.lines[path[:end]]}"
        return self.path


def _walk(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, yaml.Node, bool]]:
    """Every key below `node` as (path, node at which it stands, whether it repeats an earlier key)."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            yield (*path, name), key, name in seen
            seen.add(name)
            yield from _walk(value, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, str(index)), value, False
            yield from _walk(value, (*path, str(index)))


def parse_scalar(text: str) -> Any:
    """A value as it would be read from a file: number, boolean, null, list, mapping or text.

    Raises yaml.YAMLError when it is not YAML.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader


def read_yaml(path: str | Path) -> Document:
    """Reads a mapping; a file that is missing, empty, broken or something else is a ConfigError."""
    shown = shipped.shown(Path(path))

    def refuse(fix: str, line: int | None = None) -> ConfigError:
        return ConfigError(Problem("file", shown, shown if line is None else f"{shown}:{line}", fix))

    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise refuse("there is no such file; check the path") from None
    except IsADirectoryError:
        raise refuse("this is a folder; name the YAML file in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(f"can't be read as UTF-8 text ({error})") from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        content = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise refuse(f"is not valid YAML: {error.problem or error.context}", line) from None
    except yaml.YAMLError as error:
        raise refuse(f"is not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()
    if content is None:
        raise refuse("the file is empty; write `key: value` lines, recipes/ has examples")
    if not isinstance(content, dict):
        raise refuse(f"must hold `key: value` lines, but holds a {type(content).__name__}")
    lines: dict[KeyPath, int] = {}
    repeated: list[Problem] = []
    for key_path, place, again in _walk(node, ()) if node else ():
        line = place.start_mark.line + 1
        if again:
            fix = f"this key stands already in line {lines[key_path]}; keep one of the two"
            repeated.append(Problem(dotted(key_path), None, f"{shown}:{line}", fix))
        else:
            lines[key_path] = line
    if repeated:
        raise ConfigError(repeated)
    return Document(shown, content, lines)
