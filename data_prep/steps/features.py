"""What the text filters share: the words and lines of a text, found once, the words of many texts together.

A word is what stands between white space. In scripts that are written without spaces (Han, Kana, Thai,
Lao, Khmer, Burmese) each character, with the marks on it, is a word of its own: splitting them better takes
a dictionary per language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from data_prep.batches import groups_of
from data_prep.documents import Document
from data_prep.steps.shingles import mix

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
_BLANK_LINES = re.compile(r"\n\s*\n")
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~0123456789“”‘’«»„…–—•"  # digits are no letters either
_NO_LETTERS = bytes(point for point in range(128) if not chr(point).isalpha() and point != ord(" "))

# In UTF-8: white space beyond ASCII and rare Han; first bytes of all else that is written without spaces.
_ODD = tuple(
    re.compile(pattern)
    for pattern in (rb"\xc2[\x85\xa0]", rb"\xe2(?:\x80[\x80-\x8a\xa8\xa9\xaf]|\x81\x9f)", rb"\xf0[\xa0-\xbf]")
)
_NOT_ODD = bytes(set(range(256)) - {0xE0, 0xE1, *range(0xE3, 0xEA), 0xEF})
_SPACE = bytes(chr(byte).isspace() and byte < 128 for byte in range(256))
_LETTER = bytes(chr(byte).isalpha() and byte < 128 for byte in range(256))
_GROUP_CHARS = 2**17  # texts are looked at together up to so many characters
_FIRST_CHARACTERS = 8  # of a word, among which a letter is looked for
_LONG = 64  # bytes of a word that is hashed on its own
_LARGEST = 2**64 - 1
_KEPT = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)  # the first bytes of eight
_LENGTH = np.uint64(0x9E3779B97F4A7C15)


def split_words(text: str) -> list[str]:
    """The words of a text."""
    if text.isascii() or _ALONE.search(text) is None:
        return text.split()
    return _WORD.findall(text)


class Group:
    """The words of several texts, back to back, in arrays: a fraction of what lists of words cost."""

    def __init__(self, texts: Sequence[str]):
        self.texts = texts
        self._parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._plain = [
            len(part) == len(text) or not _is_odd(part) for part, text in zip(self._parts, texts, strict=True)
        ]
        for place, text in enumerate(texts):
            if not self._plain[place]:  # white space of ASCII between its words will do
                self._parts[place] = " ".join(split_words(text)).encode("utf-8", "surrogatepass")
        # white space around each; eight bytes can be read anywhere
        self._raw = b"\n".join([b"", *self._parts, bytes(8)])

    @cached_property
    def _words(self) -> tuple[np.ndarray, np.ndarray]:
        """Where in `_raw` words start, and where they end."""
        between = np.frombuffer(self._raw.translate(_SPACE), bool)[:-8]
        edges = np.flatnonzero(between[1:] != between[:-1])
        edges += 1
        return edges[::2].copy(), edges[1::2].copy()

    @cached_property
    def firsts(self) -> np.ndarray:
        """How many words lie before each text, and in all."""
        ends = np.cumsum([0, *(len(part) + 1 for part in self._parts)])
        return np.searchsorted(self._words[0], ends)

    @cached_property
    def spaced(self) -> list[bool]:
        """Of which texts most words stand between white space, not in a script that is written without it."""
        counts = np.diff(self.firsts).tolist()
        return [
            plain or 2 * len(_ALONE.findall(text)) <= count
            for text, plain, count in zip(self.texts, self._plain, counts, strict=True)
        ]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Characters of each word, int64."""
        starts, ends = self._words
        lengths = ends - starts
        if not self._raw.isascii():
            continued = np.flatnonzero(np.frombuffer(self._raw, np.int8) < -64)
            lengths -= np.bincount(
                np.searchsorted(starts, continued, side="right") - 1, minlength=lengths.size
            )
        return lengths

    @cached_property
    def before(self) -> np.ndarray:
        """Characters in the words before each word, and in all."""
        return running(self.lengths)

    @cached_property
    def hashes(self) -> np.ndarray:
        """A hash of each word, uint64, good for this process only: equal for equal words."""
        starts, ends = self._words
        sizes = ends - starts
        eights = np.ndarray((len(self._raw) - 7,), "<u8", self._raw, strides=(1,))
        hashes = eights[starts]
        hashes &= _KEPT.take(sizes, mode="clip")
        hashes += sizes.view(np.uint64) * _LENGTH
        longer = np.flatnonzero(sizes > 8)
        for done in range(8, _LONG, 8):
            longer = longer[sizes[longer] > done]
            chunks = eights[starts[longer] + done] & _KEPT.take(sizes[longer] - done, mode="clip")
            hashes[longer] = mix(hashes[longer]) + chunks
        for place in longer[sizes[longer] > _LONG].tolist():
            hashes[place] = hash(self._raw[starts[place] : ends[place]]) & _LARGEST
        return mix(hashes)

    @cached_property
    def lettered(self) -> list[int]:
        """Per text how many words have a letter of ASCII among their first characters."""
        starts, ends = self._words
        letters = np.frombuffer(self._raw.translate(_LETTER), bool)
        found = letters.take(starts)
        rest = np.flatnonzero(~found)
        for offset in range(1, _FIRST_CHARACTERS):
            rest = rest[ends[rest] - starts[rest] > offset]
            there = letters.take(starts[rest] + offset)
            found[rest[there]] = True
            rest = rest[~there]
        sums: list[int] = np.diff(running(found)[self.firsts]).tolist()
        return sums


class Features:
    """What is known of one text. Each property is computed when it is first asked for."""

    def __init__(self, text: str, group: Group | None = None, place: int = 0):
        self.text = text
        self.group = group or Group([text])
        self.place = place

    @cached_property
    def words(self) -> list[str]:
        """All words, in order: most of what is to be known of them can be had without."""
        return split_words(self.text)

    @cached_property
    def _mine(self) -> slice:
        return slice(*self.group.firsts[self.place : self.place + 2].tolist())

    @property
    def count(self) -> int:
        """How many words there are."""
        return self._mine.stop - self._mine.start

    @property
    def lengths(self) -> np.ndarray:
        """Characters of each word, int64."""
        return self.group.lengths[self._mine]

    @property
    def hashes(self) -> np.ndarray:
        """A hash of each word, uint64: equal for equal words, and good for this process only."""
        return self.group.hashes[self._mine]

    @property
    def characters(self) -> int:
        """Characters in all words."""
        first, last = self.group.before[[self._mine.start, self._mine.stop]].tolist()
        return int(last - first)

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not blank, without white space at their ends."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def repeated_lines(self) -> tuple[int, int]:
        """As `repeated`."""
        return repeated(self.lines)

    @cached_property
    def paragraphs(self) -> list[str]:
        """What stands between blank lines, without white space at its ends."""
        if len(self.lines) > self.text.count("\n"):  # no line is blank
            return [self.text.strip()]
        return [part for part in map(str.strip, _BLANK_LINES.split(self.text)) if part]

    @property
    def spaced(self) -> bool:
        """Whether most words stand between white space, not in a script that is written without it."""
        return self.group.spaced[self.place]

    @cached_property
    def lower(self) -> str:
        """The text in lower case."""
        return self.text.lower()

    def lettered(self, share: float) -> bool:
        """Whether at least this share of the words has a letter.

        Most often the first letters of ASCII settle it, else all of ASCII: without all other characters,
        words that have some are what is left.
        """
        if self.group.lettered[self.place] / self.count >= share:
            return True
        joined = " ".join(self.words)
        count = len(joined.encode("ascii", "ignore").translate(None, _NO_LETTERS).split())
        if count / self.count >= share or joined.isascii():
            return count / self.count >= share
        return sum(any(map(str.isalpha, word)) for word in self.words) / self.count >= share


def groups_with_features(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """The documents, some at a time, each with the features of its text."""
    return map(_with_features, groups_of(documents, _GROUP_CHARS))


def _with_features(documents: list[Document]) -> list[Document]:
    new = [one for one in documents if one.features is None or one.features.text is not one.text]
    group = Group([one.text for one in new])
    for place, one in enumerate(new):
        one.features = Features(one.text, group, place)
    return documents


def repeated(parts: Sequence[str]) -> tuple[int, int]:
    """How many of the parts stood there before, and the characters in them."""
    different = set(parts)
    if len(different) == len(parts):
        return 0, 0
    return len(parts) - len(different), sum(map(len, parts)) - sum(map(len, different))


def bare(word: str) -> str:
    """A word without punctuation and digits at its ends, in lower case."""
    return word.strip(_PUNCTUATION).lower()


def _is_odd(raw: bytes) -> bool:
    return any(pattern.search(raw) for pattern in _ODD) or bool(raw.translate(None, _NOT_ODD))


def running(values: np.ndarray) -> np.ndarray:
    """The sum of all values before each, and of all."""
    sums = np.zeros(values.size + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums
