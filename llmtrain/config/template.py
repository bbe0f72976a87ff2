"""A DeepSpeed strategy as a file says it: JSON, with "auto" where the run decides."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmtrain.config import shipped
from llmtrain.config.keys import REMOVED, REMOVED_ZERO, RENAMED, TOP, Key
from llmtrain.config.secrets import secret_problems
from llmtrain.config.shipped import named, places
from llmtrain.errors import ConfigError, Problem, nearest

AUTO = "auto"


@dataclass(frozen=True)
class Template:
    """What a DeepSpeed file, or the launcher, asks for.

    `origins` refine `source` for single keys; `name` is what `deepspeed` in a run would say to get it.
    """

    source: str
    content: dict[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    def origin(self, key: str) -> str:
        """Where `zero_optimization.stage` was written."""
        return self.origins.get(key, self.source)

    def said(self, key: str) -> Any:
        """The value of a dotted key, or None when it is absent, null or "auto"."""
        place: Any = self.content
        for part in key.split("."):
            if not isinstance(place, dict) or part not in place:
                return None
            place = place[part]
        return None if place == AUTO else place


def known_templates() -> list[str]:
    """The names that `deepspeed:` takes without a path."""
    return sorted({file.stem for folder in places("ds_configs") for file in folder.glob("*.json")})


def _find(name_or_path: str) -> Path:
    is_path = name_or_path.endswith(".json") or "/" in name_or_path
    if is_path and Path(name_or_path).expanduser().is_file():
        return Path(name_or_path).expanduser()
    found = named(name_or_path, "ds_configs", ".json")
    if found is not None:
        return found
    known = known_templates()
    if is_path:
        fix = "there is no such file; give a path to a DeepSpeed JSON file, or one of "
        raise ConfigError(Problem("deepspeed", name_or_path, "run", fix + ", ".join(known)))
    fix = f"no such strategy; {nearest(name_or_path, known) or 'known: ' + ', '.join(known)}"
    raise ConfigError(Problem("deepspeed", name_or_path, "run", fix + ", or give a path to a JSON file"))


def read_template(name_or_path: str) -> Template:
    """Reads a strategy by name or path; only the file itself is judged. Raises ConfigError."""
    path = _find(name_or_path)
    shown = shipped.shown(path)

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(Problem(twice[0], None, shown, "this key stands there twice; keep one"))
        return dict(pairs)

    try:
        content = _parsed(path.read_text(encoding="utf-8"), no_repeats)
    except json.JSONDecodeError as error:
        fix = f"is not valid JSON: {error.msg}"
        raise ConfigError(Problem("file", shown, f"{shown}:{error.lineno}", fix)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem("file", shown, shown, f"can't be read ({error})")) from None
    if not isinstance(content, dict):
        fix = f"must hold a JSON object, but holds a {type(content).__name__}"
        raise ConfigError(Problem("file", shown, shown, fix))
    secrets = list(secret_problems(content, lambda _: shown))
    if secrets:
        raise ConfigError(secrets)
    return Template(shown, content, name=name_or_path)


def _parsed(text: str, hook: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    """JSON, or JSON with comments and trailing commas, which DeepSpeed reads through hjson as well."""
    try:
        return json.loads(text, object_pairs_hook=hook)
    except json.JSONDecodeError as error:
        import hjson  # type: ignore[import-untyped]  # comes with DeepSpeed; rarely needed

        try:
            return hjson.loads(text, object_pairs_hook=hook)
        except hjson.HjsonDecodeError:
            raise error from None


def sift(template: Template) -> tuple[Template, list[Problem]]:
    """The template without the keys that are wrong or ask for nothing, and what is wrong with it."""
    problems: list[Problem] = []
    content = _sift(template.content, TOP, "", template, problems)
    return replace(template, content=content), problems


def _sift(
    content: dict[str, Any], section: Key, prefix: str, template: Template, problems: list[Problem]
) -> dict[str, Any]:
    removed = {"": REMOVED, "zero_optimization.": REMOVED_ZERO}.get(prefix, {})
    kept: dict[str, Any] = {}
    for name, value in content.items():
        place = prefix + name
        origin = template.origin(place)
        if name.startswith(("_comment", "//")):
            continue
        if name in removed:
            problems.append(Problem(place, None, origin, removed[name]))
            continue
        key = section.known.get(name)
        if key is None:
            problems.append(
                Problem(place, None, origin, f"DeepSpeed has no such key; {_hint(place, section)}")
            )
        elif key.harmless and value in key.harmless:
            continue
        elif key.refused:
            if value not in (AUTO, None):
                shown = None if isinstance(value, dict) else value
                problems.append(Problem(place, shown, origin, key.refused))
        elif key.kind == "section":
            if isinstance(value, dict):
                kept[name] = _sift(value, key, f"{place}.", template, problems)
            elif value is not None:
                fix = "must be an object with keys of its own"
                if name == "zero_optimization":
                    fix += ', such as {"stage": 1}'
                problems.append(Problem(place, value, origin, fix))
        else:
            fix = _wrong(value, key)
            if fix:
                problems.append(Problem(place, value, origin, fix))
            else:
                kept[name] = value
    return kept


def _hint(place: str, section: Key) -> str:
    """Its new name, the nearest name in this section, or the place where a key of this name belongs."""
    name = place.rpartition(".")[2]
    if place in RENAMED:
        return f"it is now called '{RENAMED[place]}'"
    found = nearest(name, section.known)
    if found:
        return found
    places = list(_places(name, TOP, ""))
    return f"did you mean '{places[0]}'?" if places else f"known here: {', '.join(section.known)}"


def _places(name: str, section: Key, prefix: str) -> Iterator[str]:
    for known, key in (section.keys or {}).items():
        if known == name:
            yield prefix + known
        if key.keys is not None:
            yield from _places(name, key, f"{prefix}{known}.")


def _wrong(value: Any, key: Key) -> str:
    """What the value must be, or an empty string when it is fine."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key.choices:
        choices = [*key.choices, *([AUTO, None] if key.default is not None or key.kind == "text" else [])]
        matches = value in choices and not isinstance(value, bool)
        return "" if matches else "must be " + " or ".join(json.dumps(choice) for choice in key.choices)
    if value is None or value == AUTO or key.kind == "any":
        return ""
    if key.kind == "flag":
        return "" if isinstance(value, bool) else "must be true or false"
    if key.kind in ("whole", "number"):
        wanted = "a whole number" if key.kind == "whole" else "a number"
        right = number and math.isfinite(value) and value >= key.least
        if right and (key.kind == "number" or float(value).is_integer()):
            return ""
        return f"must be {wanted}, at least {key.least:g}"
    if key.kind == "list":
        return "" if isinstance(value, list) else "must be a list"
    return "" if isinstance(value, str) else "must be text"


def load_template(name_or_path: str) -> Template:
    """A strategy, every key checked against what DeepSpeed reads. Raises ConfigError with all problems."""
    template, problems = sift(read_template(name_or_path))
    if problems:
        raise ConfigError(problems)
    return template
