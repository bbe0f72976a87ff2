"""The order of rows as arithmetic: which row comes at position i, with no shuffle array and no history."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np

_ROUNDS = 6
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the step of splitmix64
_MASK = 2**64 - 1
LONGEST_PERIOD = 2**16  # rows after which a mixture repeats its pattern


def mix(x: np.ndarray, key: int) -> np.ndarray:
    """splitmix64's finaliser of `x + key` (Steele, Lea, Flood 2014), uint64 with wrap-around."""
    x = x + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive(seed: int, *path: int) -> int:
    """A 64-bit key for one use of a seed, such as (source, epoch)."""
    key = np.array([seed & _MASK], np.uint64)
    for part in path:
        key = mix(key, ((part + 1) * _GOLDEN) & _MASK)
    return int(key[0])


class Permutation:
    """A keyed bijection of 0 … n-1: an unbalanced Feistel network of 6 rounds with cycle walking.

    (Luby & Rackoff 1988; cycle walking after Black & Rogaway 2002.) Any position is found in O(1).
    """

    def __init__(self, n: int, seed: int):
        assert n >= 1, f"a permutation of {n} elements"
        self.n = n
        self._keys = [derive(seed, number) for number in range(_ROUNDS)]
        bits = max(2, (n - 1).bit_length())
        self._left, self._right = bits // 2, bits - bits // 2

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The elements at `positions` (int64, each in 0 … n-1), as int64 of the same shape."""
        assert positions.size == 0 or (positions.min() >= 0 and positions.max() < self.n), "outside"
        result = self._scramble(positions.astype(np.uint64))
        while (outside := result >= np.uint64(self.n)).any():
            result[outside] = self._scramble(result[outside])
        return result.astype(np.int64)

    def _scramble(self, x: np.ndarray) -> np.ndarray:
        """One pass over the next power of two."""
        left_bits, right_bits = self._left, self._right
        left, right = x >> np.uint64(right_bits), x & np.uint64((1 << right_bits) - 1)
        for key in self._keys:
            mask = np.uint64((1 << left_bits) - 1)
            left, right = right, left ^ (mix(right, key) & mask)
            left_bits, right_bits = right_bits, left_bits
        return (left << np.uint64(right_bits)) | right


class Mixture:
    """Interleaves sources by weight, within one row of every source's share at every prefix.

    Shares are whole parts of a period: exact when the weights, as written, are multiples of a common
    fraction with at most 65 536 parts; else rounded to 65 536 parts. Inside a period rows are placed as a
    proportionate-fair schedule by earliest deadline (Baruah et al. 1996), which keeps
    |rows of d before i - share_d * i| < 1.
    """

    def __init__(self, weights: Sequence[float]):
        assert weights and all(weight > 0 for weight in weights), f"weights {weights}"
        self.parts = _whole_parts(weights)
        self.period = sum(self.parts)
        self._source = np.array(_schedule(self.parts), np.int64)
        self._places = [np.flatnonzero(self._source == source) for source in range(len(self.parts))]
        self._rank = np.empty(self.period, np.int64)  # how many rows of the same source came before
        for places in self._places:
            self._rank[places] = np.arange(len(places))

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each position: its source, and how many rows of that source came before (both int64)."""
        turn, offset = np.divmod(positions, self.period)
        source = self._source[offset]
        return source, turn * np.array(self.parts)[source] + self._rank[offset]

    def given(self, rows: int) -> list[int]:
        """How many of the first `rows` rows come from each source."""
        turn, offset = divmod(rows, self.period)
        return [
            turn * part + int(np.searchsorted(places, offset))
            for part, places in zip(self.parts, self._places, strict=True)
        ]

    def position(self, source: int, rank: int) -> int:
        """Where the row of a source stands that has `rank` of its own before it."""
        turn, offset = divmod(rank, self.parts[source])
        return turn * self.period + int(self._places[source][offset])


class LongMixture:
    """Interleaves sources by whole parts of a period of any length, without a table of it.

    Row j of a source with c of the C parts has the key (2j + 1) / 2c, and rows stand in the order of their
    keys (as seats are given out by Webster's method). Whole periods are exact; before, a source of share s
    among D is at most 1/2 + s·(D - 2)/2 rows off.
    """

    def __init__(self, parts: Sequence[int]):
        assert parts and all(part >= 1 for part in parts), f"parts {parts}"
        assert sum(parts) < 2**31, f"a period of {sum(parts)} rows"  # products of two parts stay in int64
        self.parts = list(parts)
        self.period = sum(self.parts)

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each position: its source, and how many rows of that source came before (both int64)."""
        turn, offset = np.divmod(positions, self.period)
        source, rank = np.zeros_like(offset), np.zeros_like(offset)
        for number, part in enumerate(self.parts):
            before = self._before(number, offset)
            mine = before < part
            mine[mine] = self._position(number, before[mine]) == offset[mine]
            source[mine] = number
            rank[mine] = turn[mine] * part + before[mine]
        return source, rank

    def given(self, rows: int) -> list[int]:
        """How many of the first `rows` rows come from each source."""
        turn, offset = divmod(rows, self.period)
        within = np.array([offset], np.int64)
        return [turn * part + int(self._before(number, within)[0]) for number, part in enumerate(self.parts)]

    def position(self, source: int, rank: int) -> int:
        """Where the row of a source stands that has `rank` of its own before it."""
        turn, within = divmod(rank, self.parts[source])
        return turn * self.period + int(self._position(source, np.array([within], np.int64))[0])

    def _before(self, source: int, offsets: np.ndarray) -> np.ndarray:
        """Rows of a source that stand before each offset of a period: a search near the even share."""
        part, sources = self.parts[source], len(self.parts)
        even = part * offsets // self.period
        low, high = np.maximum(even - sources, 0), np.minimum(even + sources + 1, part)
        while (low < high).any():
            middle = (low + high) // 2
            right = (low < high) & (self._position(source, np.minimum(middle, part - 1)) < offsets)
            low, high = np.where(right, middle + 1, low), np.where(right, high, np.minimum(high, middle))
        return low

    def _position(self, source: int, ranks: np.ndarray) -> np.ndarray:
        """Where rows of a source stand in a period: their own rank and all rows with smaller keys."""
        part = self.parts[source]
        found = ranks.copy()
        for number, other in enumerate(self.parts):
            if number != source:
                odd = ((2 * ranks + 1) * other - (number > source)) // part  # equal keys: by number
                found += (odd + 1) // 2
        return found


def _whole_parts(weights: Sequence[float]) -> list[int]:
    """Weights as the smallest whole numbers in the same ratio, at most LONGEST_PERIOD in all."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    parts = [int(weight * scale) for weight in exact]
    common = int(np.gcd.reduce(np.array(parts, object)))
    parts = [part // common for part in parts]
    if sum(parts) <= LONGEST_PERIOD:
        return parts
    quotas = [weight / sum(exact) * LONGEST_PERIOD for weight in exact]
    rounded = [max(1, int(quota)) for quota in quotas]
    spare = LONGEST_PERIOD - sum(rounded)
    by_remainder = sorted(range(len(quotas)), key=lambda k: int(quotas[k]) - quotas[k])
    for k in by_remainder[: max(spare, 0)]:
        rounded[k] += 1
    return rounded


def _schedule(parts: list[int]) -> list[int]:
    """The source at each position of one period: among those allowed a row now, the most urgent."""
    period = sum(parts)
    done = [0] * len(parts)
    order = []
    for position in range(period):
        source = min(
            (k for k in range(len(parts)) if done[k] * period < parts[k] * (position + 1)),
            key=lambda k: -(-(done[k] + 1) * period // parts[k]),
        )
        done[source] += 1
        order.append(source)
    return order
