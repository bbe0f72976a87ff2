"""A floor for a language model: what a model that only counts n-grams pays for the same text."""

from __future__ import annotations

import numpy as np

MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads the bits of a running product


def ngram_bits(train: np.ndarray, test: np.ndarray, vocab: int, order: int = 5) -> float:
    """Bits that an interpolated n-gram model of `train` pays for all tokens of `test`.

    Modified Kneser-Ney smoothing (Chen & Goodman, 1998, equations 26 to 28) over token ids; n-grams are told
    apart by a 64-bit hash. Contexts run over document ends, whose token is in the stream.
    """
    start = np.zeros(order - 1, train.dtype)  # as if a document had ended before the first one
    known, asked = np.concatenate([start, train]), np.concatenate([start, test])
    ends = {order: np.arange(len(train)) + order - 1}  # in `known`: the last token of each n-gram that counts
    for n in range(order, 1, -1):  # lower orders count in how many different contexts an n-gram stands
        ends[n - 1] = ends[n][np.unique(_grams(known, n, ends[n]), return_index=True)[1]]
    here = np.arange(len(test)) + order - 1
    probability = np.full(len(test), 1 / vocab)
    for n in range(1, order + 1):
        grams, first, counts = np.unique(_grams(known, n, ends[n]), return_index=True, return_counts=True)
        discount = _discounts(counts)[np.minimum(counts, 3)]
        contexts, owner = np.unique(_grams(known, n - 1, ends[n][first] - 1), return_inverse=True)
        total = np.bincount(owner, counts)
        spared = np.bincount(owner, discount)
        seen, gram = _find(grams, _grams(asked, n, here))
        met, context = _find(contexts, _grams(asked, n - 1, here - 1))
        own = np.where(seen, counts[gram] - discount[gram], 0.0)
        better = (own + spared[context] * probability) / total[context]
        probability = np.where(met, better, probability)
    return float(-np.log2(probability).sum())


def _grams(tokens: np.ndarray, n: int, ends: np.ndarray) -> np.ndarray:
    """A hash for the n tokens that end at each of `ends`."""
    found = np.zeros(len(ends), np.uint64)
    for back in range(n):
        found = (found ^ (tokens[ends - back].astype(np.uint64) + np.uint64(1))) * MIX
        found ^= found >> np.uint64(29)
    return found


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from counts of 0, 1, 2, and 3 or more."""
    once, twice, thrice, more = (max(int((counts == n).sum()), 1) for n in (1, 2, 3, 4))
    share = once / (once + 2 * twice)
    taken = 1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * more / thrice
    return np.array([0.0, *(min(max(value, 0.0), n) for n, value in enumerate(taken, 1))])


def _find(known: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `asked` whether it stands in the sorted `known`, and where (anywhere when it doesn't)."""
    place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return known[place] == asked, place
