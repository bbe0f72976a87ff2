"""The repetition rules of Gopher: Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1.

A repeat is each occurrence after the first. Fractions of characters are of the whole text. The most
frequent n-gram counts with the spaces between its words, and only if it occurs more than once; repeated
n-grams count by their words' characters, each character once however many n-grams overlap there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from data_prep.documents import Document, Tally
from data_prep.steps.features import Features, features_of
from data_prep.steps.judge import Filter, judging
from data_prep.steps.step import Step

CHARACTERS_PER_WORD = 2  # where a word of the text is a single character; about what dictionaries give
_BASE = np.uint64(0xD6E8FEB86659FD93)  # odd: multiplying by it loses nothing


class GopherRepetition(Filter):
    """The thresholds, each with the paper's number; n-grams by their n."""

    max_duplicate_lines: float = Field(default=0.30, ge=0, le=1)
    max_duplicate_paragraphs: float = Field(default=0.30, ge=0, le=1)
    max_duplicate_line_chars: float = Field(default=0.20, ge=0, le=1)
    max_duplicate_paragraph_chars: float = Field(default=0.20, ge=0, le=1)
    max_top_ngram_chars: dict[int, float] = {2: 0.20, 3: 0.18, 4: 0.16}
    max_duplicate_ngram_chars: dict[int, float] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def make(settings: GopherRepetition) -> Step:
    """The step with these settings."""

    def verdict(document: Document, tally: Tally) -> str | None:
        return rule_broken(document.text, settings)

    return judging("gopher_repetition", settings, verdict)


def rule_broken(text: str, settings: GopherRepetition) -> str | None:
    """The first rule that a text breaks, None when it keeps them all."""
    features = features_of(text)
    for what, parts, most, most_chars in (
        (
            "paragraphs",
            features.paragraphs,
            settings.max_duplicate_paragraphs,
            settings.max_duplicate_paragraph_chars,
        ),
        ("lines", features.lines, settings.max_duplicate_lines, settings.max_duplicate_line_chars),
    ):
        repeats, characters = repeated(parts)
        if repeats and repeats / len(parts) > most:
            return f"duplicate {what}"
        if characters / len(text) > most_chars:
            return f"characters in duplicate {what}"
    grams = _Grams(features)
    for n, most in sorted(settings.max_top_ngram_chars.items()):
        if grams.top_exceeds(n, most):
            return f"characters in the top {n}-gram"
    return grams.duplicates_exceed(sorted(settings.max_duplicate_ngram_chars.items()))


def repeated(parts: Sequence[str]) -> tuple[int, int]:
    """How many of the parts stood there before, and the characters in them."""
    different = set(parts)
    if len(different) == len(parts):
        return 0, 0
    return len(parts) - len(different), sum(map(len, parts)) - sum(map(len, different))


class _Grams:
    """The n-grams of a text as polynomial hashes of its words' hashes, modulo 2**64.

    Most texts are far below the thresholds, which bounds show at a fraction of the cost of counting.
    """

    def __init__(self, features: Features):
        self.features = features
        self.ends = np.zeros(len(features.words) + 1, np.int64)  # characters of the first words
        self.size = len(features.text)
        self.gap = int(features.spaced)  # what stands between the words of an n-gram
        np.cumsum(features.lengths, out=self.ends[1:])
        self.characters_per_word = 1 if features.spaced else CHARACTERS_PER_WORD
        self.most_alike = len(features.words)  # no n-gram looked at so far occurs more often

    def keys(self, n: int) -> np.ndarray:
        """One hash per n-gram, in order."""
        count = max(len(self.features.words) - n + 1, 0)
        hashes = self.features.hashes
        keys = hashes[:count].copy()
        for offset in range(1, n):
            keys *= _BASE
            keys += hashes[offset : offset + count]
        return keys

    def characters(self, n: int) -> np.ndarray:
        """Characters in the words of each n-gram."""
        return self.ends[n:] - self.ends[:-n]

    def top_exceeds(self, n: int, share: float) -> bool:
        """Whether the most frequent n-gram, the longest of equals, has more than this share of characters."""
        n *= self.characters_per_word
        lengths = self.characters(n) + self.gap * (n - 1)
        if not lengths.size or self.most_alike * int(lengths.max()) / self.size <= share:
            return False
        keys = self.keys(n)
        ordered = np.sort(keys)
        last = np.flatnonzero(ordered[1:] != ordered[:-1])  # of each run of equals but the final one
        if (ordered.size - last.size) * int(lengths.max()) / self.size <= share:
            self.most_alike = ordered.size - last.size
            return False
        counts = np.diff(np.concatenate(([-1], last, [ordered.size - 1])))
        most = self.most_alike = int(
            counts.max()
        )  # a longer n-gram holds one of these: it is no more frequent
        if most < 2 or most * int(lengths.max()) / self.size <= share:
            return False
        top = np.isin(keys, ordered[np.append(last, -1)][counts == most])
        return most * int(lengths[top].max()) / self.size > share

    def duplicates_exceed(self, limits: list[tuple[int, float]]) -> str | None:
        """The rule of the smallest n whose repeated n-grams hold too many characters."""
        for place, (n, share) in enumerate(limits):
            least = min(share for _, share in limits[place:])
            found = self.repeated_characters(n, least * self.size) / self.size
            if found > share:
                return f"characters in duplicate {n}-grams"
            if found <= least:
                return None  # a longer repeated n-gram lies within repeated shorter ones
        return None

    def repeated_characters(self, n: int, harmless: float = 0) -> int:
        """Characters in the words of n-grams that occurred before, each word counted once.

        Where there are no more than `harmless`, 0 may stand for them.
        """
        n *= self.characters_per_word
        keys = self.keys(n)
        ordered = np.sort(keys)
        repeats = int(np.count_nonzero(ordered[1:] == ordered[:-1]))
        if not repeats or repeats * int(self.characters(n).max()) <= harmless:
            return 0
        order = np.argsort(keys, kind="stable")
        again = order[1:][keys[order[1:]] == keys[order[:-1]]]
        change = np.zeros(len(self.features.words) + 1, np.int64)
        change[again] += 1
        change[again + n] -= 1
        covered = np.cumsum(change[:-1]) > 0
        return int(self.features.lengths[covered].sum())
