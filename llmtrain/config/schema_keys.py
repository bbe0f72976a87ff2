"""Which keys a pydantic schema knows, at any depth: for unknown-key messages with the nearest name."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel

from llmtrain.config.foreign_names import pointer
from llmtrain.config.schema import RunConfig
from llmtrain.config.yaml_lines import KeyPath, dotted
from llmtrain.errors import Problem, nearest


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models an annotation may hold, looked for in unions, lists and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [model for part in typing.get_args(annotation) for model in _models_in(part)]
    return []


def section_at(path: KeyPath, model_class: type[BaseModel]) -> type[BaseModel] | None:
    """The schema of the section at `path` (list indices skipped), or None when it is not a section."""
    model: type[BaseModel] | None = model_class
    for part in path:
        if part.isdigit():
            continue
        if model is None or part not in model.model_fields:
            return None
        found = _models_in(model.model_fields[part].annotation)
        model = found[0] if len(found) == 1 else None
    return model


def _free_form(path: KeyPath, model_class: type[BaseModel]) -> bool:
    """Whether `path` lies inside a field that takes any keys (such as model.config), or in a union."""
    model: type[BaseModel] | None = model_class
    for part in path:
        if part.isdigit():
            continue
        if model is None:
            return True
        if part not in model.model_fields:
            return model.model_config.get("extra") == "allow"
        found = _models_in(model.model_fields[part].annotation)
        model = found[0] if len(found) == 1 else None
    return True


def _elsewhere(name: str, model_class: type[BaseModel], prefix: KeyPath = ()) -> list[str]:
    """Every place below `model_class` where a key of this name is known."""
    places = []
    for field, info in model_class.model_fields.items():
        if field == name and prefix:
            places.append(dotted((*prefix, field)))
        for model in _models_in(info.annotation):
            if len(prefix) < 4:
                places += _elsewhere(name, model, (*prefix, field))
    return places


def unknown_key(path: KeyPath, model_class: type[BaseModel], value: Any, origin: str) -> Problem | None:
    """A Problem when some part of `path` is not a key the schema knows, with the nearest name."""
    if _free_form(path, model_class):
        return None
    for end in range(1, len(path) + 1):
        if path[end - 1].isdigit() or _free_form(path[:end], model_class):
            continue
        section = section_at(path[: end - 1], model_class)
        known = list(section.model_fields) if section else []
        hint = pointer(path[end - 1]) if model_class is RunConfig else ""
        hint = hint or nearest(path[end - 1], known)
        if not hint:
            places = _elsewhere(path[end - 1], model_class)
            hint = f"did you mean '{places[0]}'?" if len(places) == 1 else f"known: {', '.join(known)}"
        shown = value if end == len(path) and not isinstance(value, dict | list) else None
        return Problem(dotted(path[:end]), shown, origin, f"unknown key; {hint}")
    return None
