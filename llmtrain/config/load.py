"""From a YAML file and `key.sub=value` overrides to one frozen, typed value that knows its origins.

Every problem that can be found is found in one go: bad overrides, unknown keys (with the nearest name),
wrong values, and contradictions between fields that are each fine.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from llmtrain.config.problems import describe, drop_failed
from llmtrain.config.schema import RunConfig
from llmtrain.config.schema_keys import section_at, unknown_key
from llmtrain.config.secrets import secret_problems
from llmtrain.config.shipped import recipe
from llmtrain.config.yaml_lines import Document, KeyPath, dotted, parse_scalar, read_yaml
from llmtrain.errors import ConfigError, Problem

COMMAND_LINE = "command line"
DEFAULT = "default"

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Loaded(Generic[Model]):
    """A validated value and, for each of its leaves (`optimizer.lr`), where it came from."""

    config: Model
    origins: Mapping[str, str]
    path: str
    explicit: frozenset[str]  # the leaves somebody wrote down: not defaults, not derived

    def origin(self, field: str) -> str:
        """Where `field`, or the section it stands in, came from."""
        while field not in self.origins and "." in field:
            field = field.rpartition(".")[0]
        return self.origins.get(field, DEFAULT)


LoadedRun = Loaded[RunConfig]


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRun:
    """The run that `path`, or a recipe's name, describes. Raises ConfigError with every problem found."""
    return load_yaml_model(path, RunConfig, overrides)


def load_yaml_model(
    path: str | Path, model_class: type[Model], overrides: Sequence[str] = ()
) -> Loaded[Model]:
    """Any pydantic model from YAML and overrides, as strictly as a run. Raises ConfigError."""
    document = read_yaml(recipe(path))
    content: dict[str, Any] = copy.deepcopy(document.content)
    problems: list[Problem] = []
    from_command_line: set[KeyPath] = set()
    for override in overrides:
        problem = _apply(override, content, model_class, from_command_line)
        if problem is not None:
            problems.append(problem)
    _empty_sections(content, model_class)

    def origin(key_path: KeyPath) -> str:
        for end in range(len(key_path), 0, -1):
            if key_path[:end] in from_command_line:
                return COMMAND_LINE
        return document.origin(key_path)

    refused = dict(override.split("=", 1) for override in overrides if "=" in override)
    for taken in from_command_line:  # those that are in `content` by now
        refused.pop(dotted(taken), None)
    secrets = [*secret_problems(content, origin), *secret_problems(refused, lambda _: COMMAND_LINE)]
    if secrets:  # alone: any other problem might repeat the value
        raise ConfigError(secrets)
    config, found = _validate(content, model_class, origin)
    problems += found
    if problems or config is None:
        raise ConfigError(problems)
    return _with_origins(config, content, document, origin)


def _validate(
    content: dict[str, Any], model_class: type[Model], origin: Any
) -> tuple[Model | None, list[Problem]]:
    """Validates, drops what failed and validates again, so that one mistake does not hide another."""
    problems: list[Problem] = []
    missing_by_us: set[KeyPath] = set()
    for _ in range(8):  # each round drops at least one key; eight layers of hidden mistakes are enough
        try:
            config = model_class.model_validate(content)
        except ValidationError as error:
            new, failed = describe(error, content, model_class, origin, missing_by_us)
            problems += new
            if not failed:
                break
            content = copy.deepcopy(content)
            drop_failed(content, failed)
            missing_by_us |= failed
        else:
            return (None if problems else config), problems
    return None, problems


def _apply(
    override: str, content: dict[str, Any], model_class: type[BaseModel], seen: set[KeyPath]
) -> Problem | None:
    """Writes one `key.sub=value` into `content`; list items are addressed by index."""
    name, equals, text = override.partition("=")
    path = tuple(part for part in name.strip().split("."))
    if not equals or not all(path):
        return Problem(override, None, COMMAND_LINE, "write it as key=value or section.key=value")
    try:
        value = parse_scalar(text) if text.strip() else ""
    except Exception:  # any YAML error says the same to the user
        return Problem(dotted(path), text, COMMAND_LINE, "the value is not valid YAML; quote it")
    problem = unknown_key(path, model_class, value, COMMAND_LINE)
    if problem is not None:
        return problem
    place: Any = content
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                fix = f"'{dotted(path[:depth])}' is a list of {len(place)}; use an index below {len(place)}"
                return Problem(dotted(path), value, COMMAND_LINE, fix)
            key: Any = int(part)
        elif isinstance(place, dict):
            key = part
        else:
            fix = f"'{dotted(path[:depth])}' is {place!r}, not a section with keys of its own"
            return Problem(dotted(path), value, COMMAND_LINE, fix)
        if last:
            place[key] = value
            break
        if isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place = place[key]
    seen.add(path)
    return None


def _empty_sections(content: dict[str, Any], model_class: type[BaseModel]) -> None:
    """`eval:` with nothing under it means a section left at its defaults."""
    for name, value in content.items():
        if value is None and section_at((name,), model_class) is not None:
            content[name] = {}


def _leaves(value: Any, path: KeyPath = ()) -> Iterable[KeyPath]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), (*path, name))
    elif isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, (*path, str(name)))
    elif isinstance(value, list | tuple) and any(isinstance(item, BaseModel | dict) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)))
    else:
        yield path


def _present(content: Any, path: KeyPath) -> bool:
    for part in path:
        if isinstance(content, dict) and part in content:
            content = content[part]
        elif isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        else:
            return False
    return True


def _with_origins(config: Model, content: dict[str, Any], document: Document, origin: Any) -> Loaded[Model]:
    explicit = frozenset(dotted(path) for path in _leaves(config) if _present(content, path))
    origins = {
        dotted(path): origin(path) if dotted(path) in explicit else DEFAULT for path in _leaves(config)
    }
    return Loaded(config, origins, document.path, explicit)
