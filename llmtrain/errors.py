"""Every exception llmtrain raises on purpose, and the exit status it ends with.

    LlmtrainError                 1   anything that went wrong while running
    ├── InputError                2   what was given is wrong; nothing was written
    │   ├── ConfigError           2   run, corpus or DeepSpeed file: one or more `Problem`s
    │   ├── DataError             2   a dataset, shard or source
    │   └── CheckpointError       2   a checkpoint or export folder that must not be loaded
    ├── EngineError               1   the engine or one of its ranks failed
    └── StopRequested            75   stopped on request, resumable (EX_TEMPFAIL)

Broken invariants of llmtrain itself are `assert`s with a message, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class LlmtrainError(Exception):
    """The root: catch this to catch everything llmtrain raises on purpose."""

    exit_status = 1


class InputError(LlmtrainError):
    """Something the user gave is wrong; the message says what, where and how to mend it."""

    exit_status = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an input: the field, its value, where it came from, the fix."""

    field: str
    value: Any
    origin: str
    fix: str

    def __str__(self) -> str:
        shown = "" if self.value is None else f" = {self.value!r}"
        return f"{self.field}{shown} ({self.origin}): {self.fix}"


class ConfigError(InputError):
    """All problems found in a configuration, reported together."""

    def __init__(self, problems: Sequence[Problem] | Problem):
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        assert self.problems, "a ConfigError without a problem"
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(InputError):
    """A dataset, shard or text source can't be used as it is."""


class CheckpointError(InputError):
    """A checkpoint is damaged, incomplete, or belongs to another run."""


class EngineError(LlmtrainError):
    """The training engine, or one of its ranks, failed."""


class StopRequested(LlmtrainError):  # noqa: N818 - no error, a way to end
    """The run was asked to stop; it saved and goes on later. `whole`: on all machines, not only on one."""

    exit_status = 75

    def __init__(self, message: str, whole: bool = False):
        super().__init__(message)
        self.whole = whole


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or an empty string when nothing known is close to `name`."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean '{found[0]}'?" if found else ""
