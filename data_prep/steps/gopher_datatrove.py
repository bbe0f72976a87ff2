"""Gopher's rules as datatrove 0.10.1 counts them, with which FineWeb was made: `words: datatrove`.

Its words are those of spaCy's English tokenizer, in which each sign of punctuation is a word. So technical
text has far more words without a letter, and more repeated n-grams, than in the paper's words between white
space.
"""

from __future__ import annotations

import importlib.util
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import SerializerFunctionWrapHandler, field_validator, model_serializer

from data_prep.steps.judge import Filter
from data_prep.steps.stop_words import stop_words_of

if TYPE_CHECKING:
    from data_prep.steps.gopher_quality import GopherQuality
    from data_prep.steps.gopher_repetition import GopherRepetition

Words = Literal["paper", "datatrove"]
_PARAGRAPHS, _LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")
_ELLIPSES = ("...", "…")
_UNREADABLE = "IS_ALPHA"  # a text that has it ends spaCy's tokenizer


class GopherFilter(Filter):
    """What both steps after Gopher have in common: what a word is."""

    words: Words = "paper"

    @field_validator("words")
    @classmethod
    def _has_spacy(cls, words: Words) -> Words:
        if words == "datatrove" and importlib.util.find_spec("spacy") is None:
            raise ValueError("needs spaCy, whose words datatrove counts: pip install spacy, or say paper")
        return words

    @model_serializer(mode="wrap")
    def _without_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Nothing changes in what is written of a step that counts as before there was a choice."""
        content = dump(self)
        if self.words == "paper":
            content.pop("words", None)
        return content


def words_of(text: str) -> list[str]:
    """The words of an English text, white space left out."""
    found = _english()(text.replace(_UNREADABLE, "") if _UNREADABLE in text else text)
    return [word for token in found if (word := token.text.strip())]


@cache
def _english() -> Any:
    import spacy

    return spacy.blank("en").tokenizer


def quality_broken(text: str, rules: GopherQuality) -> str | None:
    """The first rule of quality that a text breaks."""
    words = words_of(text)
    named = [word for word in words if not all(map(_is_sign, word))]
    if not named or len(named) < rules.min_words:
        return "too few words"
    if len(named) > rules.max_words:
        return "too many words"
    mean = sum(map(len, named)) / len(named)
    if mean < rules.min_mean_word_length:
        return "words too short"
    if mean > rules.max_mean_word_length:
        return "words too long"
    if text.count("#") / len(words) > rules.max_symbol_word_ratio:
        return "too many hashes"
    if sum(map(text.count, _ELLIPSES)) / len(words) > rules.max_symbol_word_ratio:
        return "too many ellipses"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > rules.max_bullet_lines:
        return "too many bullet lines"
    if sum(line.rstrip().endswith(_ELLIPSES) for line in lines) / len(lines) > rules.max_ellipsis_lines:
        return "too many lines end in an ellipsis"
    if sum(any(map(str.isalpha, word)) for word in words) / len(words) < rules.min_alphabetic_words:
        return "too few words with a letter"
    return (
        "too few stop words"
        if len((stop_words_of("en") or set()) & set(words)) < rules.min_stop_words
        else None
    )


def repetition_broken(text: str, rules: GopherRepetition) -> str | None:
    """The first rule of repetition that a text breaks."""
    for what, parts, most, most_chars in (
        (
            "paragraphs",
            _PARAGRAPHS.split(text.strip()),
            rules.max_duplicate_paragraphs,
            rules.max_duplicate_paragraph_chars,
        ),
        ("lines", _LINES.split(text), rules.max_duplicate_lines, rules.max_duplicate_line_chars),
    ):
        seen = set(parts)
        if (len(parts) - len(seen)) / len(parts) > most:
            return f"duplicate {what}"
        if (sum(map(len, parts)) - sum(map(len, seen))) / len(text) > most_chars:
            return f"characters in duplicate {what}"
    words = words_of(text)
    for n, share in sorted(rules.max_top_ngram_chars.items()):
        if _top_characters(words, n) / len(text) > share:
            return f"characters in the top {n}-gram"
    for n, share in sorted(rules.max_duplicate_ngram_chars.items()):
        if _skipping_characters(words, n) / len(text) > share:
            return f"characters in duplicate {n}-grams"
    return None


def _top_characters(words: Sequence[str], n: int) -> int:
    """Characters in the most frequent n-gram, the first of equals, even where it stands but once."""
    counts = Counter(_grams(words, n, " "))
    (gram, times), *_ = counts.most_common(1) or [("", 0)]
    return len(gram) * times


def _skipping_characters(words: Sequence[str], n: int) -> int:
    """Characters in repeated n-grams; what follows one is looked at from its end on."""
    grams = list(_grams(words, n, ""))
    seen: set[str] = set()
    characters = at = 0
    while at < len(grams):
        if grams[at] in seen:
            characters, at = characters + len(grams[at]), at + n
        else:
            seen.add(grams[at])
            at += 1
    return characters


def _grams(words: Sequence[str], n: int, between: str) -> Iterator[str]:
    return (between.join(words[at : at + n]) for at in range(len(words) - n + 1))


@cache
def _is_sign(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character)[0] in "PC"
