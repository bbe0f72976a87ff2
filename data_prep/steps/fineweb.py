"""The rules that FineWeb adds: Penedo et al. 2024, https://arxiv.org/abs/2406.17557, section 3.6.

Characters in duplicate lines are of all characters but line ends. The last rule is datatrove's own.
"""

from __future__ import annotations

from pydantic import Field

from data_prep.documents import Document, Tally
from data_prep.steps.features import Features
from data_prep.steps.judge import Filter, judging
from data_prep.steps.step import Step

_TERMINAL = frozenset(".!?。．！？｡؟۔।॥‼‽⁇⁈⁉։።፧။៕")


class FineWeb(Filter):
    """The thresholds, each with the paper's number."""

    min_line_punctuation: float = Field(default=0.12, ge=0, le=1)
    max_short_lines: float = Field(default=0.67, ge=0, le=1)
    short_line_length: int = Field(default=30, ge=0)
    max_duplicate_line_chars: float = Field(default=0.01, ge=0, le=1)
    max_line_word_ratio: float = Field(default=0.3, ge=0)


def make(settings: FineWeb) -> Step:
    """The step with these settings."""

    def verdict(document: Document, tally: Tally) -> str | None:
        return rule_broken(document.features, settings)

    return judging("fineweb", settings, verdict)


def rule_broken(features: Features, settings: FineWeb) -> str | None:
    """The first rule that a text breaks, None when it keeps them all."""
    text, lines = features.text, features.lines
    if not lines:
        return "empty"
    if sum([line[-1] in _TERMINAL for line in lines]) / len(lines) < settings.min_line_punctuation:
        return "too few lines end in punctuation"
    short = settings.short_line_length
    if sum([length <= short for length in map(len, lines)]) / len(lines) > settings.max_short_lines:
        return "too many short lines"
    ends = text.count("\n")
    if features.repeated_lines[1] / (len(text) - ends) > settings.max_duplicate_line_chars:
        return "characters in duplicate lines"
    if ends / features.count > settings.max_line_word_ratio:
        return "too many lines for its words"
    return None
