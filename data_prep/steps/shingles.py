"""Texts as sets of hashed word n-grams, whole batches at once in numpy.

A word is a run of letters, marks and digits, in lower case; what stands between words does not count. A
character of a script that writes without spaces (Han, Kana, Thai, Lao, Khmer, Burmese, Tibetan) is a word
of its own, so that there an n-gram is one of characters. A text of fewer words than `n` has one n-gram.

Every word is hashed once, as the polynomial sum of a random value per character, taken out of one running
sum over the batch; an n-gram's hash is the polynomial of its words' hashes. All sums are modulo 2**64.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

_BLOCK = 2**17  # characters worked on at once: the arrays stay near the processor's cache
_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses
_WORD_BASE = 0xD6E8FEB86659FD93
_INVERSE = pow(_BASE, -1, 2**64)
_APART, _LETTER, _ALONE = 0, 1, 2
# Where scripts without spaces lie: Thai, Lao; Tibetan; Burmese; Khmer; Kana to Bopomofo; Han; more Kana.
_ALONE_RANGES = (
    (0x0E00, 0x0EFF),
    (0x0F00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x312F),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F),
)
_RARE_HAN, _TABLE_END = 0x20000, 0x40000  # beyond there are no letters


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of the result depends on every bit of the value."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def shingle(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n-grams of each text as 64-bit hashes, back to back, and how many each text has.

    A repeated n-gram comes as often as it stands in the text. A text without a word has none.
    """
    counts, words = _words(texts)
    room = counts + (n - 1)  # zeros after each text, so that no n-gram reaches into the next one
    first = np.cumsum(room) - room
    places = np.arange(words.size) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    spread = np.zeros(int(room.sum()), np.uint64)
    spread[places] = words
    hashes = np.zeros(max(spread.size - n + 1, 0), np.uint64)
    for offset in range(n):
        hashes *= np.uint64(_WORD_BASE)
        hashes += spread[offset : offset + hashes.size]
    grams = np.where(counts > 0, np.maximum(counts - n + 1, 1), 0)
    keep = np.arange(int(grams.sum())) + np.repeat(first - (np.cumsum(grams) - grams), grams)
    return mix(hashes[keep]), grams


def words_of(text: str) -> list[str]:
    """The words of one text as they are shingled, in plain Python: for what is shown to people."""
    kinds = _tables()[0]
    words, word = [], ""
    for character in text:
        kind = kinds[min(ord(character), _TABLE_END - 1)]
        if kind == _LETTER:
            word += character
            continue
        words += [word.lower()] * bool(word) + [character] * int(kind == _ALONE)
        word = ""
    return words + [word.lower()] * bool(word)


def _words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """How many words each text has, and the hashes of all of them."""
    joined = "\n".join(texts)  # a line end is no letter: words end with their text
    ends = np.cumsum([len(text) + 1 for text in texts]) if texts else np.zeros(0, np.int64)
    if joined.isascii():
        points = np.frombuffer(joined.encode("ascii"), np.uint8)
    else:
        points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    starts, hashes = [], []
    for begin, end in _blocks(points):
        start, hashed = _hashed_words(points[begin:end])
        starts.append(start + begin)
        hashes.append(hashed)
    if not starts:
        return np.zeros(len(texts), np.int64), np.zeros(0, np.uint64)
    before = np.searchsorted(np.concatenate(starts), ends)
    return np.diff(before, prepend=0), np.concatenate(hashes)


def _blocks(points: np.ndarray) -> Iterator[tuple[int, int]]:
    """Parts of about `_BLOCK` characters, never cut within a word, however long it is."""
    kinds = _tables()[0]
    begin = 0
    while begin < points.size:
        end, reach = begin + _BLOCK, 0
        while end < points.size:
            reach += 2**10
            gaps = np.flatnonzero(kinds.take(points[end : end + reach], mode="clip") == _APART)
            if gaps.size:
                end += int(gaps[0])
                break
            end += reach
        yield begin, min(end, points.size)
        begin = end


def _hashed_words(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words start in a block, and their hashes."""
    kinds, values = _tables()
    kind = kinds.take(points, mode="clip")  # what lies beyond the table is, as its last place, no letter
    letter = np.zeros(points.size + 2, bool)
    np.equal(kind, _LETTER, out=letter[1:-1])
    edges = np.flatnonzero(letter[1:] != letter[:-1])
    start, end = edges[::2], edges[1::2]
    if kind.size and kind.max() == _ALONE:
        alone = np.flatnonzero(kind == _ALONE)
        start, end = np.sort(np.append(start, alone)), np.sort(np.append(end, alone + 1))
    powers, inverses = _powers(1 << max(points.size, _BLOCK).bit_length())
    sums = np.zeros(points.size + 1, np.uint64)
    terms = values.take(points, mode="clip")
    terms *= powers[: points.size]
    np.cumsum(terms, out=sums[1:])
    return start, mix((sums.take(end) - sums.take(start)) * inverses.take(start))


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """By code point: what it is to a word, and its random value, the same for both cases of a letter."""
    kinds = np.zeros(_TABLE_END, np.uint8)
    folded = np.arange(_TABLE_END, dtype=np.uint64)
    for point in range(_RARE_HAN):
        if unicodedata.category(chr(point))[0] in "LMN":
            kinds[point] = _LETTER
            lower = chr(point).lower()
            if len(lower) == 1:
                folded[point] = ord(lower)
    for first, last in _ALONE_RANGES:
        kinds[first : last + 1][kinds[first : last + 1] == _LETTER] = _ALONE
    kinds[_RARE_HAN:-1] = _ALONE
    return kinds, mix(folded + np.uint64(1))


@lru_cache(maxsize=2)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of the base and of its inverse, from the 0th."""

    def of(base: int) -> np.ndarray:
        powers = np.full(count, base, np.uint64)
        powers[0] = 1
        return np.multiply.accumulate(powers)

    return of(_BASE), of(_INVERSE)
