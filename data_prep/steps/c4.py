"""The rules of C4: Raffel et al. 2020, https://jmlr.org/papers/v21/20-074.html, section 2.2.

Page rules look at the whole page, as the paper says it; C4's own program looks only at lines that it keeps.
The word list, the 3-sentence deduplication and the language of the paper are no part of this step.
"""

from __future__ import annotations

import re

from pydantic import Field

from data_prep.documents import Document, Tally
from data_prep.steps.features import split_words
from data_prep.steps.judge import Filter, judging
from data_prep.steps.step import Step

_TERMINAL = (".", "!", "?", '"', "'", "”", "’", "。", "！", "？", "」", "؟", "।")
_ELLIPSES = ("...", "…")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
# A sentence ends at its mark, before white space that no small letter follows, or at once in Chinese.
_SENTENCE_END = re.compile(r"[.!?…؟।]+[\"'”’»)\]]*(?=\s+[^a-z\s]|\s*$)|[。！？]+[」』”’]*")


class C4(Filter):
    """The rules. Lines go by `terminal_punctuation`, `min_words_per_line`, `max_word_length`, `javascript`
    and `policy`, citations from lines; pages by `curly_bracket`, `lorem_ipsum` and `min_sentences`.

    FineWeb sets `terminal_punctuation: false`, for it alone drops about 30 % of all tokens.
    """

    terminal_punctuation: bool = True
    min_words_per_line: int = Field(default=3, ge=0)
    max_word_length: int = Field(default=1000, ge=1)
    javascript: bool = True
    policy: bool = True
    citations: bool = True
    curly_bracket: bool = True
    lorem_ipsum: bool = True
    min_sentences: int = Field(default=5, ge=0)


def make(settings: C4) -> Step:
    """The step with these settings. What it takes out of a document that stays is found, by line and rule."""
    return judging("c4", settings, _Cleaner(settings))


class _Cleaner:
    """Takes lines out of a document, and says which rule its page breaks."""

    def __init__(self, settings: C4):
        self.settings = settings
        rules = {"javascript": ("javascript",) * settings.javascript, "policy": _POLICIES * settings.policy}
        self.phrases = [(phrase, rule) for rule, phrases in rules.items() for phrase in phrases]

    def __call__(self, document: Document, tally: Tally) -> str | None:
        settings = self.settings
        features = document.features
        if settings.curly_bracket and "{" in document.text:
            return "curly bracket"
        if settings.lorem_ipsum and "lorem ipsum" in features.lower:
            return "lorem ipsum"
        lines = features.lines
        if settings.citations and "[" in document.text:
            lines = [_CITATION.sub("", line).strip() if "[" in line else line for line in lines]
            lines = [line for line in lines if line]
        lower = features.lower
        cookies = "cookie" in lower  # in most phrases, and seldom in a text
        phrases = [
            (phrase, rule)
            for phrase, rule in self.phrases
            if (cookies or "cookie" not in phrase) and phrase in lower
        ]
        kept, gone = [], []
        for line in lines:
            rule = self._line_rule(line) or (_phrase_rule(line, phrases) if phrases else None)
            if rule is None:
                kept.append(line)
            else:
                gone.append(rule)
        if sentences(kept, settings.min_sentences) < settings.min_sentences:
            return "too few sentences"
        if not kept:
            return "no line left"
        for rule in gone:
            tally.find(f"c4: line left out, {rule}")
        if kept != features.lines:
            document.text = "\n".join(kept)
        return None

    def _line_rule(self, line: str) -> str | None:
        settings = self.settings
        longest = settings.max_word_length
        if len(line) > longest and max(map(len, split_words(line))) > longest:
            return "word too long"
        if settings.terminal_punctuation and (not line.endswith(_TERMINAL) or line.endswith(_ELLIPSES)):
            return "no terminal punctuation"
        least = settings.min_words_per_line
        if len(line.split(None, least)) < least and len(split_words(line)) < least:
            return "too few words"
        return None


def _phrase_rule(line: str, phrases: list[tuple[str, str]]) -> str | None:
    """The rule of the first phrase that stands in a line."""
    lower = line.lower()
    for phrase, rule in phrases:
        if phrase in lower:
            return rule
    return None


def sentences(lines: list[str], enough: int) -> int:
    """Sentences in these lines, counted up to `enough`; a line's end without a mark ends one too."""
    if len(lines) >= enough:  # each is at least one
        return len(lines)
    count = 0
    for line in lines:
        if count >= enough:
            break
        ends = _SENTENCE_END.findall(line)
        count += len(ends) + (not ends or not line.endswith(ends[-1]))
    return count
