"""Which DeepSpeed template a run uses: its own `deepspeed`, or what accelerate set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llmtrain.config.launcher import from_accelerate
from llmtrain.config.load import LoadedRun
from llmtrain.config.merge import merge
from llmtrain.config.template import Template, read_template
from llmtrain.errors import ConfigError, Problem


def choose_template(loaded: LoadedRun, environ: Mapping[str, str]) -> tuple[Template, list[Problem]]:
    """The template and every problem on the way to it, a contradiction of run and accelerate among them.

    A template that can't be read comes back empty, so that the rest of the run is checked as well.
    """
    problems: list[Problem] = []
    accelerate: Template | None = None
    try:
        accelerate = from_accelerate(environ)
    except ConfigError as error:
        problems += error.problems
    if accelerate is not None and "deepspeed" not in loaded.explicit:
        return accelerate, problems
    origin = loaded.origin("deepspeed")
    try:
        own = read_template(loaded.config.deepspeed)
    except ConfigError as error:
        problems += [replace(p, origin=origin) if p.origin == "run" else p for p in error.problems]
        return Template(loaded.config.deepspeed, {}), problems
    if accelerate is None:
        return own, problems
    called = f"deepspeed = {loaded.config.deepspeed!r} ({origin})"
    template, clashes = merge(own, accelerate, called)
    return template, problems + clashes
