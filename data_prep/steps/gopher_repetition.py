"""The repetition rules of Gopher: Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1.

A repeat is each occurrence after the first. Fractions of characters are of the whole text. The most
frequent n-gram counts with the spaces between its words, and only if it occurs more than once; repeated
n-grams count by their words' characters, each character once however many n-grams overlap there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from data_prep.documents import Document, Tally
from data_prep.steps.features import Features, Group, repeated, running
from data_prep.steps.gopher_datatrove import GopherFilter, repetition_broken
from data_prep.steps.judge import judging
from data_prep.steps.step import Step

CHARACTERS_PER_WORD = 2  # where a word of the text is a single character; about what dictionaries give
_BASE = np.uint64(0xD6E8FEB86659FD93)  # odd: multiplying by it loses nothing


class GopherRepetition(GopherFilter):
    """The thresholds, each with the paper's number; n-grams by their n."""

    max_duplicate_lines: float = Field(default=0.30, ge=0, le=1)
    max_duplicate_paragraphs: float = Field(default=0.30, ge=0, le=1)
    max_duplicate_line_chars: float = Field(default=0.20, ge=0, le=1)
    max_duplicate_paragraph_chars: float = Field(default=0.20, ge=0, le=1)
    max_top_ngram_chars: dict[int, float] = {2: 0.20, 3: 0.18, 4: 0.16}
    max_duplicate_ngram_chars: dict[int, float] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def make(settings: GopherRepetition) -> Step:
    """The step with these settings."""
    known: list[Any] = [None, []]  # the group that was looked at last, and what was found

    def verdict(document: Document, tally: Tally) -> str | None:
        if settings.words == "datatrove":
            return repetition_broken(document.text, settings)
        features: Features = document.features
        rule = _repeated_parts(features, settings)
        if rule is None:
            if known[0] is not features.group:
                known[:] = features.group, repeated_grams(features.group, settings)
            rule = known[1][features.place]
        return rule

    return judging("gopher_repetition", settings, verdict)


def _repeated_parts(features: Features, settings: GopherRepetition) -> str | None:
    """The first rule of paragraphs and lines that a text breaks."""
    for what, parts, (repeats, characters), most, most_chars in (
        (
            "paragraphs",
            features.paragraphs,
            repeated(features.paragraphs),
            settings.max_duplicate_paragraphs,
            settings.max_duplicate_paragraph_chars,
        ),
        (
            "lines",
            features.lines,
            features.repeated_lines,
            settings.max_duplicate_lines,
            settings.max_duplicate_line_chars,
        ),
    ):
        if repeats and repeats / len(parts) > most:
            return f"duplicate {what}"
        if characters / len(features.text) > most_chars:
            return f"characters in duplicate {what}"
    return None


def repeated_grams(group: Group, settings: GopherRepetition) -> list[str | None]:
    """Per text of a group the first rule of n-grams that it breaks, None when it keeps them all."""
    found: list[str | None] = [None] * len(group.texts)
    spaced, counts = np.array(group.spaced), np.diff(group.firsts)
    sizes = np.array([len(text) for text in group.texts])
    every = Grams(np.arange(counts.size), sizes, counts, group.hashes, group.lengths)
    for gap, per_word, chosen in ((1, 1, spaced), (0, CHARACTERS_PER_WORD, ~spaced)):
        broken: dict[int, str] = {}
        grams = every.of(chosen & (counts > 0))
        for n, share in sorted(settings.max_top_ngram_chars.items()):
            exceeding = grams.top_exceeds(n * per_word, gap, share)
            broken |= dict.fromkeys(grams.texts[exceeding].tolist(), f"characters in the top {n}-gram")
            grams = grams.of(~exceeding)
        limits = sorted(settings.max_duplicate_ngram_chars.items())
        for place, (n, share) in enumerate(limits):
            least = min(share for _, share in limits[place:])
            shares = grams.repeated_characters(n * per_word, least) / grams.sizes
            exceeding = shares > share
            broken |= dict.fromkeys(grams.texts[exceeding].tolist(), f"characters in duplicate {n}-grams")
            # where there are few, a longer repeated n-gram lies within repeated shorter ones
            grams = grams.of(~exceeding & (shares > least))
        for text, rule in broken.items():
            found[text] = rule
    return found


class Grams:
    """The n-grams of some texts, each of which has words, as polynomial hashes of their words' hashes.

    Most texts are far below the thresholds. Bounds show it, for which it is enough to know how often n-grams
    occur; those that reach from one text into the next make them looser, not wrong.
    """

    def __init__(
        self,
        texts: np.ndarray,
        sizes: np.ndarray,
        counts: np.ndarray,
        hashes: np.ndarray,
        lengths: np.ndarray,
    ):
        self.texts, self.sizes, self.counts = texts, sizes, counts
        self.hashes, self.lengths = hashes, lengths
        self.before = running(lengths)
        self.firsts = np.cumsum(counts) - counts
        self.owners = np.repeat(np.arange(counts.size, dtype=np.uint64), counts)
        self.mask = np.uint64((1 << max(counts.size - 1, 0).bit_length()) - 1)
        self.most = counts.copy()  # no n-gram looked at so far occurs more often

    def of(self, chosen: np.ndarray) -> Grams:
        """Those of a part of the texts."""
        if chosen.all():
            return self
        words = np.repeat(chosen, self.counts)
        facts = self.texts[chosen], self.sizes[chosen], self.counts[chosen]
        part = Grams(*facts, self.hashes[words], self.lengths[words])
        part.most = self.most[chosen]
        return part

    def keys(self, n: int) -> np.ndarray:
        """Of the n-gram that begins at each word, with the text's place in the last bits."""
        keys = self.hashes.copy()
        for offset in range(1, n):
            keys *= _BASE
            keys[:-offset] += self.hashes[offset:]
        keys &= ~self.mask
        keys |= self.owners
        return keys

    def longest(self, n: int) -> np.ndarray:
        """Per text the most characters in the words of an n-gram."""
        if not self.texts.size:
            return self.texts
        ends = np.append(self.before[n:], np.full(min(n, self.before.size) - 1, self.before[-1]))
        return np.maximum.reduceat(ends - self.before[:-1], self.firsts)

    def within(self, n: int) -> np.ndarray:
        """The words at which an n-gram of one text begins."""
        rest = np.repeat(self.firsts + self.counts - n, self.counts)
        return np.flatnonzero(np.arange(rest.size) <= rest)

    def top_exceeds(self, n: int, gap: int, share: float) -> np.ndarray:
        """In which texts the most frequent n-gram, the longest of equals, has more than this share of
        characters, with a `gap` between words.
        """
        exceeding = np.zeros(self.texts.size, bool)
        gaps = gap * (n - 1)
        open_ = self.most * (self.longest(n) + gaps) / self.sizes > share
        if open_.any():
            part = self.of(open_)
            _, times, owners = part._runs(np.sort(part.keys(n)))
            part.most = np.zeros_like(part.counts)
            np.maximum.at(part.most, owners, times)
            self.most[open_] = part.most  # a longer n-gram holds one of these: it is no more frequent
            open_[open_] = (part.most > 1) & (part.most * (part.longest(n) + gaps) / part.sizes > share)
        if open_.any():
            part = self.of(open_)
            exceeding[open_] = part._top_characters(n, gaps) / part.sizes > share
        return exceeding

    def _top_characters(self, n: int, gaps: int) -> np.ndarray:
        starts = self.within(n)
        if not starts.size:
            return np.zeros_like(self.counts)
        keys = self.keys(n)[starts]
        order = np.argsort(keys)
        last, times, owners = self._runs(keys[order])
        most, longest = np.zeros_like(self.counts), np.zeros_like(self.counts)
        np.maximum.at(most, owners, times)
        top = np.flatnonzero(times == most[owners])
        start = starts[order[last[top]]]
        np.maximum.at(longest, owners[top], self.before[start + n] - self.before[start])
        return np.where(most > 1, most * (longest + gaps), 0)

    def _runs(self, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each run of equals among ordered keys where it ends, how long it is, and whose it is."""
        last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), ordered.size - 1)
        return last, np.diff(last, prepend=-1), (ordered[last] & self.mask).view(np.int64)

    def repeated_characters(self, n: int, harmless: float = 0) -> np.ndarray:
        """Per text the characters in the words of n-grams that occurred before, each word counted once.

        Where they are no more than the share `harmless`, 0 may stand for them.
        """
        found = np.zeros(self.texts.size, np.int64)
        if not found.size:
            return found
        ordered = np.sort(self.keys(n))
        again = ordered[1:][ordered[1:] == ordered[:-1]] & self.mask
        repeats = np.bincount(again.view(np.int64), minlength=found.size)
        open_ = repeats * self.longest(n) > harmless * self.sizes
        if open_.any():
            found[open_] = self.of(open_)._covered(n)
        return found

    def _covered(self, n: int) -> np.ndarray:
        starts = self.within(n)
        if not starts.size:
            return np.zeros_like(self.counts)
        keys = self.keys(n)[starts]
        order = np.argsort(keys)
        last, times, _ = self._runs(keys[order])
        later = np.ones(order.size, bool)
        later[np.minimum.reduceat(order, last - times + 1)] = False  # the first of each run
        again = starts[later]
        change = np.zeros(self.hashes.size + 1, np.int64)
        change[again] += 1
        change[again + n] -= 1
        covered = self.lengths * (np.cumsum(change[:-1]) > 0)
        return np.add.reduceat(covered, self.firsts)
