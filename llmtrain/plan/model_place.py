"""Where the weights and the tokenizer of a run's model lie: here, or on the Hub."""

from __future__ import annotations

from pathlib import Path

from llmtrain.config.hub_names import looks_like_a_path, no_such_path
from llmtrain.config.hub_reach import settle_reach
from llmtrain.config.load import LoadedRun
from llmtrain.errors import ConfigError, Problem


def check_places(loaded: LoadedRun) -> None:
    """Raises ConfigError when model.source or model.tokenizer is a path where nothing lies."""
    model, problems = loaded.config.model, []
    for field, place in (("model.source", model.source), ("model.tokenizer", model.tokenizer)):
        if place is None or Path(place).expanduser().exists():
            continue
        if looks_like_a_path(place):
            problems.append(Problem(field, place, loaded.origin(field), no_such_path(place)))
        else:
            settle_reach()
    if problems:
        raise ConfigError(problems)
