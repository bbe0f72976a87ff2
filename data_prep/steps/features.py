"""What the text filters share: one split of a text into words and lines, made when first asked for.

A word is what stands between white space. In scripts that are written without spaces (Han, Kana, Thai,
Lao, Khmer, Burmese) each character, with the marks on it, is a word of its own: splitting them better takes
a dictionary per language.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache

import numpy as np

_UNSPACED = (  # letters of these scripts, and the marks that stand on them
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u0edc-\u0edf"
    "\u1000-\u102a\u103f\u1050-\u1055\u1780-\u17b3"
)
_MARKS = (
    "\u3099\u309a\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece"
    "\u102b-\u103e\u1056-\u1059\u17b4-\u17d3"
)
_ALONE = re.compile(f"[{_UNSPACED}][{_MARKS}]*")
_WORD = re.compile(rf"[{_UNSPACED}][{_MARKS}]*|[^\s{_UNSPACED}]+")
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~0123456789“”‘’«»„…–—•"  # digits are no letters either
_NO_LETTERS = bytes(point for point in range(128) if not chr(point).isalpha() and point != ord(" "))


def split_words(text: str) -> list[str]:
    """The words of a text."""
    if text.isascii() or _ALONE.search(text) is None:
        return text.split()
    return _WORD.findall(text)


class Features:
    """What is known of one text. Each property is computed when it is first asked for."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        """All words, in order."""
        return split_words(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not blank, without white space at their ends."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What stands between blank lines, without white space at its ends."""
        return [part for part in map(str.strip, _BLANK_LINES.split(self.text)) if part]

    @cached_property
    def joined(self) -> str:
        """The words with one space between them."""
        return " ".join(self.words)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Characters of each word, int64."""
        if not self.words:
            return np.zeros(0, np.int64)
        points = np.frombuffer(f"{self.joined} ".encode("utf-32-le", "surrogatepass"), np.uint32)
        return np.diff(np.flatnonzero(points == ord(" ")), prepend=-1) - 1

    @cached_property
    def hashes(self) -> np.ndarray:
        """Python's hash of each word, uint64: equal for equal words, and good for this process only."""
        return np.fromiter(map(hash, self.words), np.int64, len(self.words)).view(np.uint64)

    @cached_property
    def spaced(self) -> bool:
        """Whether most words stand between white space, not in a script that is written without it."""
        if self.text.isascii():
            return True
        return 2 * len(_ALONE.findall(self.text)) <= len(self.words)

    @cached_property
    def lower(self) -> str:
        """The text in lower case."""
        return self.text.lower()


_BLANK_LINES = re.compile(r"\n\s*\n")


@lru_cache(maxsize=1)
def features_of(text: str) -> Features:
    """The features of a text. The last ones are kept: filters in a row judge one document after the other."""
    return Features(text)


def lettered(features: Features, share: float) -> bool:
    """Whether at least this share of the words has a letter.

    Most often the letters of ASCII settle it: without all else, words that have some are what is left.
    """
    words = features.words
    count = len(features.joined.encode("ascii", "ignore").translate(None, _NO_LETTERS).split())
    if count / len(words) >= share or features.joined.isascii():
        return count / len(words) >= share
    return sum(any(map(str.isalpha, word)) for word in words) / len(words) >= share


def bare(word: str) -> str:
    """A word without punctuation and digits at its ends, in lower case."""
    return word.strip(_PUNCTUATION).lower()
