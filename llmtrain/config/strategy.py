"""Which DeepSpeed template a run uses: its own `deepspeed`, or what accelerate set."""

from __future__ import annotations

from collections.abc import Mapping

from llmtrain.config.launcher import from_accelerate
from llmtrain.config.load import LoadedRun
from llmtrain.config.template import Template, read_template
from llmtrain.errors import ConfigError, Problem


def choose_template(loaded: LoadedRun, environ: Mapping[str, str]) -> tuple[Template, list[Problem]]:
    """The template, and where the run and accelerate contradict each other. Raises ConfigError."""
    accelerate = from_accelerate(environ)
    said = "deepspeed" in loaded.explicit
    if accelerate is not None and not said:
        return accelerate, []
    try:
        own = read_template(loaded.config.deepspeed)
    except ConfigError as error:
        origin = loaded.origin("deepspeed")
        raise ConfigError(
            [Problem(p.field, p.value, origin if p.origin == "run" else p.origin, p.fix) for p in error.problems]
        ) from None
    if accelerate is None:
        return own, []
    origin = f"deepspeed = {loaded.config.deepspeed!r} ({loaded.origin('deepspeed')})"
    return _agreed(own, accelerate, origin)


def _agreed(own: Template, accelerate: Template, origin: str) -> tuple[Template, list[Problem]]:
    problems = []
    for key, value in _leaves(accelerate.content):
        mine = own.said(key)
        if value in ("auto", None) or mine == value:
            continue
        if mine is None and value in (False, "none"):
            continue
        if mine is None and not key.startswith("zero_optimization."):
            continue
        fix = f"{origin} says {mine!r}; say it in one place: drop `deepspeed` from the run, or accelerate's setting"
        problems.append(Problem(key, value, accelerate.origin(key), fix))
    return _merged(own, accelerate), problems


def _leaves(content: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in content.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found


def _merged(own: Template, accelerate: Template) -> Template:
    """`own`, with what accelerate says where `own` leaves it open."""

    def merge(mine: dict[str, object], theirs: dict[str, object]) -> dict[str, object]:
        merged = dict(mine)
        for name, value in theirs.items():
            here = merged.get(name)
            if isinstance(here, dict) and isinstance(value, dict):
                merged[name] = merge(here, value)
            elif here in (None, "auto"):
                merged[name] = value
        return merged

    open_keys = {key for key, _ in _leaves(accelerate.content) if own.said(key) is None}
    origins = {key: accelerate.origin(key) for key in open_keys} | dict(own.origins)
    return Template(own.source, merge(own.content, accelerate.content), origins)
