"""The quality rules of Gopher: Rae et al. 2021, https://arxiv.org/abs/2112.11446, appendix A.1.1."""

from __future__ import annotations

from pydantic import Field, model_validator

from data_prep.documents import Document, Tally
from data_prep.steps.features import Features, bare
from data_prep.steps.gopher_datatrove import GopherFilter, quality_broken
from data_prep.steps.judge import judging
from data_prep.steps.step import Step
from data_prep.steps.stop_words import stop_words_of

_BULLETS = frozenset("•‣◦▪■●–-*")
_HEAD = 400  # characters in which most texts have stop words enough
_ELLIPSES = ("...", "…")


class GopherQuality(GopherFilter):
    """The thresholds, each with the paper's number. `language` is that of documents without one in `meta`.

    `words: datatrove` counts as that program does, in English alone.

    Two rules know languages. `min_stop_words` needs a list: where there is none for the language it does
    not apply. Mean word lengths say nothing about scripts without spaces and are not judged there.
    """

    min_words: int = Field(default=50, ge=0)
    max_words: int = Field(default=100_000, ge=1)
    min_mean_word_length: float = Field(default=3, ge=0)
    max_mean_word_length: float = Field(default=10, ge=0)
    max_symbol_word_ratio: float = Field(default=0.1, ge=0)
    max_bullet_lines: float = Field(default=0.9, ge=0, le=1)
    max_ellipsis_lines: float = Field(default=0.3, ge=0, le=1)
    min_alphabetic_words: float = Field(default=0.8, ge=0, le=1)
    min_stop_words: int = Field(default=2, ge=0)
    language: str = "en"

    @model_validator(mode="after")
    def _in_english(self) -> GopherQuality:
        if self.words == "datatrove" and self.language != "en":
            raise ValueError("words: datatrove is for English alone: leave language out, or say words: paper")
        return self


def make(settings: GopherQuality) -> Step:
    """The step with these settings."""

    def verdict(document: Document, tally: Tally) -> str | None:
        if settings.words == "datatrove":
            return quality_broken(document.text, settings)
        language = str(document.meta.get("language") or settings.language)
        return rule_broken(document.features, language, settings)

    return judging("gopher_quality", settings, verdict)


def rule_broken(features: Features, language: str, settings: GopherQuality) -> str | None:
    """The first rule that a text breaks, None when it keeps them all."""
    text, count = features.text, features.count
    if count < settings.min_words or count == 0:
        return "too few words"
    if count > settings.max_words:
        return "too many words"
    if features.spaced:
        mean = features.characters / count
        if mean < settings.min_mean_word_length:
            return "words too short"
        if mean > settings.max_mean_word_length:
            return "words too long"
    if text.count("#") / count > settings.max_symbol_word_ratio:
        return "too many hashes"
    ellipses = sum(map(text.count, _ELLIPSES))
    if ellipses / count > settings.max_symbol_word_ratio:
        return "too many ellipses"
    lines = features.lines
    if sum([line[0] in _BULLETS for line in lines]) / len(lines) > settings.max_bullet_lines:
        return "too many bullet lines"
    trailing = sum([line.endswith(_ELLIPSES) for line in lines]) if ellipses else 0
    if trailing / len(lines) > settings.max_ellipsis_lines:
        return "too many lines end in an ellipsis"
    if not features.lettered(settings.min_alphabetic_words):
        return "too few words with a letter"
    if not _coherent(features, language, settings.min_stop_words):
        return "too few stop words"
    return None


def _coherent(features: Features, language: str, least: int) -> bool:
    """Whether at least `least` stop words are there, in either case and next to punctuation too."""
    stop_words = stop_words_of(language)
    if stop_words is None:
        return True
    head = features.text[:_HEAD].split()[:-1]  # its last word may be cut
    if len(stop_words.intersection(head)) >= least or len(stop_words.intersection(features.words)) >= least:
        return True
    return len(stop_words.intersection(map(bare, features.words))) >= least
