"""Two sources of a DeepSpeed strategy made one: each fills what the other leaves open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmtrain.config.template import AUTO, Template
from llmtrain.errors import Problem

# What it means when a file leaves these out: a second source that says more contradicts it.
_MEANT_BY_SILENCE = {
    "zero_optimization.stage": 0,
    "zero_optimization.offload_optimizer.device": "none",
    "zero_optimization.offload_param.device": "none",
}


def leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested dict with its dotted key."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def merge(first: Template, second: Template, called: str) -> tuple[Template, list[Problem]]:
    """Both as one template, and where they contradict each other; `called`: how messages name `first`."""
    problems: list[Problem] = []
    keys = dict.fromkeys([key for key, _ in leaves(second.content)])
    for key in dict.fromkeys([*_MEANT_BY_SILENCE, *keys]):
        mine, theirs = first.said(key), second.said(key)
        if key in _MEANT_BY_SILENCE:
            mine = _MEANT_BY_SILENCE[key] if mine is None else mine
            theirs = _MEANT_BY_SILENCE[key] if theirs is None else theirs
        if mine is None or theirs is None or mine == theirs:
            continue
        fix = f"{called} says {mine!r}; say it in one place only"
        problems.append(Problem(key, theirs, second.origin(key), fix))
    taken = {key: second.origin(key) for key in keys if first.said(key) is None}
    content = _filled(first.content, second.content)
    return Template(first.source, content, {**taken, **first.origins}, first.name), problems


def _filled(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """`mine`, with what `theirs` says where `mine` says nothing or "auto"."""
    filled = dict(mine)
    for name, value in theirs.items():
        here = filled.get(name)
        if isinstance(here, dict) and isinstance(value, dict):
            filled[name] = _filled(here, value)
        elif here is None or here == AUTO:
            filled[name] = value
    return filled
