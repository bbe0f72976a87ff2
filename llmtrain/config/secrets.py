"""Secrets stay in the environment: refused in what people write, taken out of what is said.

A file, an override or a DeepSpeed JSON that holds a token would be copied into the run folder, every
checkpoint and the process list. The patterns are those of the services that this project's people use.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llmtrain.errors import Problem

HIDDEN = "[secret]"
_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|sk-[A-Za-z0-9_-]{20,}"  # OpenAI and those who follow it
    r"|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"  # user:password in an address
)
_NAMES = re.compile(r"(?:^|[_.-])(?:api_?key|(?:auth|access|hub)_?token|secret|password|passwd)$", re.I)
_VARIABLES = re.compile(r"(?:TOKEN|API_?KEY|SECRET|SECRET_KEY|SECRET_ACCESS_KEY|PASSWORD)$")
_SHORTEST = 8  # a variable's value shorter than this may be any word


def secret_problems(
    content: Any, origin: Callable[[tuple[str, ...]], str], path: tuple[str, ...] = ()
) -> Iterator[Problem]:
    """A problem for each value that is, or is named as, a secret; the value itself is not repeated."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from secret_problems(value, origin, (*path, str(name)))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from secret_problems(value, origin, (*path, str(number)))
    elif isinstance(content, str) and content:
        named = bool(path) and bool(_NAMES.search(path[-1])) and content != "auto"
        if named or _SHAPES.search(content):
            fix = "looks like a secret, which would be copied into the run folder and every checkpoint; "
            fix += "give it by an environment variable (HF_TOKEN) or `hf auth login`"
            yield Problem(".".join(path), None, origin(path), fix)


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """`text` with every token, and every value of a variable that is named as a secret, taken out."""
    for name, value in (os.environ if environ is None else environ).items():
        if len(value) >= _SHORTEST and _VARIABLES.search(name):
            text = text.replace(value, HIDDEN)
    return _SHAPES.sub(HIDDEN, text)


class RedactingFormatter(logging.Formatter):
    """A log formatter whose lines, tracebacks included, hold no secret."""

    def format(self, record: logging.LogRecord) -> str:
        """The finished line."""
        return redact(super().format(record))
