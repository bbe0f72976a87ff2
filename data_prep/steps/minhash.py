"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997). The earliest document stays.

A document is the set of its word n-grams. For each of `bands` x `rows` random orders of all n-grams the
first n-gram of the set is its signature there; two sets agree at a place with the probability of their
Jaccard similarity s. Documents that agree in all rows of a band are candidates, which happens with
P(s) = 1 - (1 - s**rows)**bands. Candidates are verified with a second, larger sketch of both sets.
Verified pairs are joined into clusters, and of each cluster the earliest document stays.

FineWeb has 14 bands of 8 rows and takes every candidate: P(.8) = .924, and one of two pairs is found at
s = .685. Here the threshold is checked, so bands may let more through: 20 of 7 have P(.8) = .991.
`{bands: 14, rows: 8, threshold: null}` is FineWeb's.

Bands, pairs and clusters are sorted or mapped on disk: memory does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from data_prep.documents import Document, Tally
from data_prep.steps.clusters import Clusters
from data_prep.steps.disk_sort import SortedRuns, with_leaders
from data_prep.steps.shingles import mix, shingle
from llmtrain.config.schema import Number, Section
from llmtrain.errors import DataError

_BATCH_CHARS = 2**17  # documents are shingled together up to so many characters
_BINS = 1024  # of the sketch that verifies
_LARGEST = 2**64 - 1
_READ_BYTES = 2**21  # of notes at once
_PAIRS = 2**11  # verified at once
_KEYED = np.dtype([("key", "<u8"), ("row", "<u8")])
_PAIR = np.dtype([("key", "<u8")])  # first << 32 | second
_MOST_DOCUMENTS = 2**31


class MinHash(Section):
    """Drops documents whose Jaccard similarity to an earlier one is `threshold` or more.

    ngram        words per n-gram
    bands, rows  the signature's layout: more bands find more, more rows let fewer candidates through
    threshold    null takes every candidate as a duplicate
    """

    ngram: int = Field(default=5, ge=1, le=64)
    bands: int = Field(default=20, ge=1, le=256)
    rows: int = Field(default=7, ge=1, le=64)
    threshold: Number | None = Field(default=0.8, gt=0, le=1)


def make(settings: MinHash) -> NearDedup:
    """The step with these settings."""
    return NearDedup(settings)


class NearDedup:
    """Notes a signature per document, in their order, also of those without a word (all zeros)."""

    name = "minhash"

    def __init__(self, settings: MinHash):
        self.settings = settings
        fields: list[Any] = [("document", "<u4"), ("bands", "<u8", (settings.bands,))]
        if settings.threshold is not None:
            fields.append(("sketch", "u1", (_BINS,)))
        self.dtype = np.dtype(fields)
        places = np.arange(1, settings.bands * settings.rows + 1, dtype=np.uint64)
        self._factors = mix(places) | np.uint64(1)

    def notes(self, documents: Sequence[Document], first: int) -> np.ndarray:
        """Band keys and sketch of every document."""
        notes = np.zeros(len(documents), self.dtype)
        notes["document"] = np.arange(first, first + len(documents))
        for begin, end in _batches(documents):
            grams, counts = shingle([document.text for document in documents[begin:end]], self.settings.ngram)
            part = notes[begin:end]
            wordy = np.flatnonzero(counts)
            if wordy.size:
                part["bands"][wordy] = self._band_keys(grams, counts[wordy])
                if self.settings.threshold is not None:
                    part["sketch"][wordy] = _sketch(grams, counts[wordy])
        return notes

    def _band_keys(self, grams: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """For each document a 64-bit key per band, which says the band's number too.

        An order of n-grams is the order of hash * factor modulo 2**64, for an odd factor.
        """
        starts = np.cumsum(counts) - counts
        product = np.empty_like(grams)
        firsts = np.empty((self._factors.size, counts.size), np.uint64)
        for place, factor in enumerate(self._factors):
            np.multiply(grams, factor, out=product)
            np.minimum.reduceat(product, starts, out=firsts[place])
        keys = np.repeat(np.arange(self.settings.bands, dtype=np.uint64)[:, None], counts.size, axis=1)
        for row in firsts.reshape(self.settings.bands, self.settings.rows, counts.size).swapaxes(0, 1):
            keys = mix(keys * np.uint64(3) + row)
        return keys.T

    def resolve(
        self,
        notes: Sequence[Path],
        verdicts: Sequence[Path],
        scratch: Path,
        progress: Callable[[int, int], None],
    ) -> dict[str, Any]:
        """For each chunk the places of its documents that an earlier one stands for."""
        stored = _Notes(notes, self.dtype)
        if stored.total > _MOST_DOCUMENTS:
            raise DataError(
                f"steps: minhash compares at most {_MOST_DOCUMENTS} documents, not {stored.total}: "
                "make several corpora of them"
            )
        work = (2 * self.settings.bands + 1) * stored.total
        keys = SortedRuns(scratch / "bands", _KEYED)
        for rows, block in stored.blocks():
            keys.add(_keyed(block["bands"], rows))
            progress(self.settings.bands * (rows.stop), work)
        pairs = SortedRuns(scratch / "pairs", _PAIR)
        read = self.settings.bands * stored.total
        for block, leaders in with_leaders(keys.merged()):
            pairs.add(_pairs(block, leaders))
            read = min(read + block.size, work - stored.total)
            progress(read, work)
        clusters = Clusters(scratch / "clusters", stored.total)
        candidates = joined = 0
        for first, second in _distinct(pairs.merged()):
            candidates += first.size
            if self.settings.threshold is not None:
                same = self._similar(stored, first, second)
                first, second = first[same], second[same]
            joined += first.size
            clusters.join(first, second)
        for rows, verdict in zip(stored.chunks(), verdicts, strict=True):
            np.save(verdict, np.flatnonzero(clusters.later(rows)).astype(np.uint32))
            progress(work - stored.total + rows.stop, work)
        counts = {"documents": stored.total, "candidates": candidates, "pairs": joined}
        return counts | clusters.describe()

    def _similar(self, stored: _Notes, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Which pairs are as similar as asked, by what their sketches estimate."""
        rows, places = np.unique(np.concatenate([first, second]), return_inverse=True)
        sketches = stored.field("sketch", rows)
        near = similarity(sketches[places[: first.size]], sketches[places[first.size :]])
        return np.asarray(near >= (self.settings.threshold or 0))

    def apply(self, documents: Iterator[Document], verdict: np.ndarray, tally: Tally) -> Iterator[Document]:
        """The documents that stand for themselves."""
        dropped = set(verdict.tolist())
        for number, document in enumerate(documents):
            if number in dropped:
                tally.drop("minhash: near-duplicate", document.id)
            else:
                yield document


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Jaccard similarity, estimated from two arrays of sketches [pairs, bins].

    A bin that is filled on either side is filled with the first n-gram of the union there: it is the same on
    both sides with probability s. Bytes of different n-grams are equal once in 254, which is taken off.
    """
    both = (first != 0) & (second != 0)
    union = np.count_nonzero(first | second, axis=1)
    equal = np.count_nonzero(both & (first == second), axis=1)
    by_chance = (np.count_nonzero(both, axis=1) - equal) / 253
    return (equal - by_chance) / np.maximum(union, 1)


def _sketch(grams: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """One byte per bin: of the n-grams whose hash falls there, the first one's (1 to 255), or 0.

    This is MinHash with one permutation (Li, Owen, Zhang 2012): one pass however many bins, and close to
    exact for documents of fewer n-grams than bins.
    """
    smallest = np.full(counts.size * _BINS, _LARGEST, np.uint64)
    grams = mix(grams)  # apart from what decides the bands
    bins = np.repeat(np.arange(counts.size) * _BINS, counts) + (grams % np.uint64(_BINS)).astype(np.int64)
    np.minimum.at(smallest, bins, grams)
    values = np.maximum((smallest >> np.uint64(10)).astype(np.uint8), 1)
    values[smallest == _LARGEST] = 0
    return values.reshape(counts.size, _BINS)


def _batches(documents: Sequence[Document]) -> Iterator[tuple[int, int]]:
    """Consecutive documents of about `_BATCH_CHARS` characters together."""
    begin = chars = 0
    for number, document in enumerate(documents):
        chars += len(document.text)
        if chars >= _BATCH_CHARS:
            yield begin, number + 1
            begin, chars = number + 1, 0
    if begin < len(documents):
        yield begin, len(documents)


def _keyed(bands: np.ndarray, rows: range) -> np.ndarray:
    """Band keys beside their document's row, without those of documents that have no word."""
    records = np.empty(bands.shape, _KEYED)
    records["key"] = bands
    records["row"] = np.arange(rows.start, rows.stop)[:, None]
    return records[bands.any(axis=1)].reshape(-1)


def _pairs(block: np.ndarray, leaders: np.ndarray) -> np.ndarray:
    """Candidates: each document of a group with the group's first, and with the one before it."""
    before = np.concatenate([block[:1], block[:-1]])
    later = block["row"] != leaders["row"]
    chained = later & (before["key"] == block["key"]) & (before["row"] != leaders["row"])
    first = np.concatenate([leaders["row"][later], before["row"][chained]])
    pairs = np.empty(first.size, _PAIR)
    pairs["key"] = (first << np.uint64(32)) | np.concatenate([block["row"][later], block["row"][chained]])
    return pairs


def _distinct(blocks: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The documents of each pair, once each, in parts that can be verified together."""
    last = np.zeros(1, np.uint64)  # no pair: a document is not its own
    for block in blocks:
        keys = np.concatenate([last, block["key"]])
        once = keys[1:][keys[1:] != keys[:-1]]
        last = keys[-1:]
        for begin in range(0, once.size, _PAIRS):
            part = once[begin : begin + _PAIRS].astype(np.int64)
            yield part >> 32, part & 0xFFFFFFFF


class _Notes:
    """The chunks' notes as one table on disk: a row per document, read in parts."""

    def __init__(self, paths: Sequence[Path], dtype: np.dtype):
        self.paths, self.dtype = paths, dtype
        self.begins = np.cumsum([0] + [path.stat().st_size // dtype.itemsize for path in paths])
        self.total = int(self.begins[-1])

    def chunks(self) -> Iterator[range]:
        for begin, end in zip(self.begins, self.begins[1:], strict=False):
            yield range(int(begin), int(end))

    def blocks(self) -> Iterator[tuple[range, np.ndarray]]:
        most = max(_READ_BYTES // self.dtype.itemsize, 1)
        for path, rows in zip(self.paths, self.chunks(), strict=True):
            with path.open("rb") as file:
                begin = rows.start
                while (block := np.fromfile(file, self.dtype, most)).size:
                    place = int(block["document"][0]) + rows.start
                    if place != begin:
                        raise DataError(f"{path}: not one note per document, in order")
                    yield range(begin, begin + block.size), block
                    begin += block.size

    def field(self, name: str, rows: np.ndarray) -> np.ndarray:
        """One field of some rows, in rising order."""
        assert self.dtype.fields is not None, "notes without fields"
        kind, offset = self.dtype.fields[name][:2]
        raw = bytearray()
        cuts = np.searchsorted(rows, self.begins)
        for path, begin, low, high in zip(self.paths, self.begins, cuts, cuts[1:], strict=False):
            if low < high:
                with path.open("rb", buffering=0) as file:
                    for row in (rows[low:high] - begin).tolist():
                        file.seek(row * self.dtype.itemsize + offset)
                        raw += file.read(kind.itemsize)
        return np.frombuffer(raw, kind.base).reshape(rows.size, *kind.shape)
