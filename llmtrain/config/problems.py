"""What pydantic found wrong, said as `Problem`s: field, value, origin, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from llmtrain.config.schema_keys import unknown_key
from llmtrain.config.yaml_lines import KeyPath, dotted
from llmtrain.errors import Problem

_COMPARISONS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (quote it)",
    "dict_type": "a mapping of `key: value`",
    "model_type": "a section with keys of its own",
    "model_attributes_type": "a section with keys of its own",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "longer",
}


def _wanted(error: Any) -> str:
    """What would be right in place of the value, as a phrase that follows `must be `."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _COMPARISONS:
        bound, words = _COMPARISONS[kind]
        return f"{words} {context[bound]:g}"
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    if kind in ("too_short", "missing_positional_only_argument") and "min_length" in context:
        return f"a list of at least {context['min_length']}"
    if kind == "too_long":
        return f"a list of at most {context['max_length']}"
    return _WANTED.get(kind, "")


def _place(location: tuple[Any, ...], content: Any) -> tuple[KeyPath, Any]:
    """The part of pydantic's location that exists in `content` (the rest are union labels), and its value."""
    path: list[str] = []
    for part in location:
        if (
            isinstance(content, dict)
            and part in content
            or isinstance(content, list)
            and isinstance(part, int)
            and part < len(content)
        ):
            content = content[part]
        else:
            break
        path.append(str(part))
    return tuple(path), content


def describe(
    error: ValidationError,
    content: dict[str, Any],
    model_class: type[BaseModel],
    origin: Callable[[KeyPath], str],
    missing_by_us: set[KeyPath],
) -> tuple[list[Problem], set[KeyPath]]:
    """Problems, one per field, and the key paths to drop so that the rest can be checked as well.

    `missing_by_us` are paths dropped in an earlier round: that they are missing is no news.
    """
    found: dict[KeyPath, tuple[list[str], Any]] = {}
    failed: set[KeyPath] = set()
    problems: list[Problem] = []
    for item in error.errors(include_url=False):
        location = item["loc"]
        path, value = _place(location, content)
        if item["type"] == "missing":
            path = (*path, str(location[-1]))
            if not any(path == gone[: len(path)] for gone in missing_by_us):
                problems.append(Problem(dotted(path), None, origin(path[:-1]), "is required; add it"))
            continue
        if item["type"] == "extra_forbidden":
            problem = unknown_key(path, model_class, value, origin(path))
            problems.append(problem or Problem(dotted(path), value, origin(path), "unknown key; remove it"))
            failed.add(path)
            continue
        if item["type"] == "value_error":
            said = str(item["msg"]).removeprefix("Value error, ")
            own_fault = any(dotted(gone) in said for gone in missing_by_us)
            if not own_fault:
                shown = None if isinstance(value, dict) else value
                problems.append(Problem(dotted(path) or "file", shown, origin(path), said))
            failed |= {path} if path and not own_fault else set()
            continue
        emptied = any(path == gone[: len(path)] for gone in missing_by_us | failed)
        failed.add(path)
        if item["type"] == "too_short" and emptied:  # by the mistakes in what was there
            continue
        wanted = _wanted(item)
        phrases, _ = found.setdefault(path, ([], value))
        phrase = f"must be {wanted}" if wanted else item["msg"][:1].lower() + item["msg"][1:]
        if phrase not in phrases:
            phrases.append(phrase)
    for path, (phrases, value) in found.items():
        fix = " or ".join([phrases[0], *(phrase.removeprefix("must be ") for phrase in phrases[1:])])
        problems.append(Problem(dotted(path), value, origin(path), fix))
    return problems, {path for path in failed if path}


def drop_failed(content: dict[str, Any], paths: set[KeyPath]) -> None:
    """Removes the values at `paths` from `content`, in place; longer paths and later items first."""
    for path in sorted(paths, key=lambda p: (len(p), p), reverse=True):
        place: Any = content
        for part in path[:-1]:
            place = place[int(part)] if isinstance(place, list) else place.get(part, {})
        if isinstance(place, dict):
            place.pop(path[-1], None)
        elif path[-1].isdigit() and int(path[-1]) < len(place):
            place.pop(int(path[-1]))
