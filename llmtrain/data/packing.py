"""How a dataset's documents become rows: three packings, each a plan made from the index alone.

concat         the documents form one stream, row r is its tokens r*S … r*S+S (Megatron's way)
best_fit       a document longer than a row fills whole rows, and what is left of it shares a row with others
               where it fits best; no token is lost, the little room left over is padding
best_fit_crop  every row begins at a document's start and is full; what does not fit is cropped: the rest of a
               document longer than a row, and a little where documents meet (after nanochat's dataloader)

A plan is a few integers per document, the same on every rank; which row comes when is not its business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmtrain.config.schema import PackingName
from llmtrain.data.dataset import Dataset
from llmtrain.data.fit import Fit, best_fit, fill_by_cropping


@dataclass(frozen=True)
class Pieces:
    """Parts of a dataset's stream that stand side by side in rows; rows in order, pieces from left to right.

    row        int64 [pieces]   which of the rows that were asked for
    column     int64 [pieces]   where in its row the piece begins
    start      int64 [pieces]   where in the dataset's stream it begins
    length     int64 [pieces]   its tokens, at least 1
    continues  bool  [pieces]   whether its document goes on behind it, so that its last token has a next one
    """

    row: np.ndarray
    column: np.ndarray
    start: np.ndarray
    length: np.ndarray
    continues: np.ndarray


class Packing(Protocol):
    """The rows of one dataset."""

    name: PackingName
    dataset: Dataset
    rows: int  # in one epoch
    tokens: int  # of the dataset that those rows read, each once

    def pieces(self, rows: np.ndarray) -> Pieces:
        """What stands in these rows (int64, each in 0 … rows-1)."""


class Concat:
    """One stream, cut every `seq_len` tokens. The last token of the dataset is only ever predicted."""

    name: PackingName = "concat"

    def __init__(self, dataset: Dataset, seq_len: int, mask_documents: bool):
        self.dataset = dataset
        self.rows = max(dataset.tokens - 1, 0) // seq_len
        self.tokens = self.rows * seq_len
        self._seq_len = seq_len
        self._mask_documents = mask_documents

    def pieces(self, rows: np.ndarray) -> Pieces:
        """A row's documents; the whole row as one piece when documents are not told apart."""
        first, number = rows * self._seq_len, np.arange(len(rows))
        if not self._mask_documents:
            length = np.full(len(rows), self._seq_len)
            return Pieces(number, np.zeros_like(first), first, length, np.ones(len(rows), bool))
        ends = self.dataset.ends
        low = np.searchsorted(ends, first, side="right")
        high = np.searchsorted(ends, first + self._seq_len, side="left")  # the document of the last token
        counts = high - low + 1
        row = np.repeat(number, counts)
        document = _ranges(low, counts)
        start = np.maximum(first[row], _starts_of(ends, document))
        stop = np.minimum(first[row] + self._seq_len, ends[document])
        return Pieces(row, start - first[row], start, stop - start, stop < ends[document])


class BestFit:
    """Whole documents in rows, or whole rows of one document, padded (or with `crop` cropped) to `seq_len`.

    Rows are numbered: those filled by one document first, then those that several share.
    """

    def __init__(self, dataset: Dataset, seq_len: int, crop: bool):
        self.name: PackingName = "best_fit_crop" if crop else "best_fit"
        self.dataset = dataset
        self._seq_len = seq_len
        self._crop = crop
        lengths = np.diff(dataset.ends, prepend=0)
        filled = np.minimum(lengths // seq_len, 1) if crop else lengths // seq_len
        self._long = np.flatnonzero(filled)
        self._long_ends = np.cumsum(filled[self._long])  # rows filled by the long documents up to each
        self._alone = int(self._long_ends[-1]) if len(self._long) else 0
        rest = lengths % seq_len
        if crop:
            rest[self._long] = 0
        self._fit: Fit = best_fit(rest, seq_len)
        if crop:
            self._fit = fill_by_cropping(self._fit, rest, seq_len)
        self.rows = self._alone + self._fit.rows
        self.tokens = self.rows * seq_len if crop else dataset.tokens

    def pieces(self, rows: np.ndarray) -> Pieces:
        """One piece in a row that a document fills, else the documents that share it, the longest first."""
        seq_len, ends, bounds = self._seq_len, self.dataset.ends, self._fit.bounds
        alone = rows < self._alone
        counts = np.ones(len(rows), np.int64)
        shared = np.where(alone, 0, rows - self._alone)
        counts[~alone] = np.diff(bounds)[shared[~alone]]
        row = np.repeat(np.arange(len(rows)), counts)
        is_alone = alone[row]
        document = np.empty(len(row), np.int64)
        k = np.searchsorted(self._long_ends, rows[alone], side="right")
        document[is_alone] = self._long[k]
        document[~is_alone] = self._fit.order[_ranges(bounds[shared[~alone]], counts[~alone])]
        first, end = _starts_of(ends, document), ends[document]
        start = end - (end - first) % seq_len
        start[is_alone] = first[is_alone]
        if not self._crop and len(k):  # which of its document's rows this one is
            before = np.concatenate([[0], self._long_ends])[k]
            start[is_alone] += (rows[alone] - before) * seq_len
        length = np.minimum(end - start, seq_len)
        column = np.cumsum(length) - length
        column -= column[np.searchsorted(row, row)]
        length = np.minimum(length, seq_len - column)  # cropped where the row ends
        return Pieces(row, column, start, length, start + length < end)


def pack(dataset: Dataset, seq_len: int, packing: PackingName, mask_documents: bool) -> Packing:
    """The rows of `seq_len` tokens of a dataset."""
    if packing == "concat":
        return Concat(dataset, seq_len, mask_documents)
    return BestFit(dataset, seq_len, crop=packing == "best_fit_crop")


def cut_documents(packing: Packing) -> int:
    """How many documents are not whole in one row."""
    pieces, ends = packing.pieces(np.arange(packing.rows)), packing.dataset.ends
    document = np.searchsorted(ends, pieces.start, side="right")
    cut = pieces.continues | (pieces.start != _starts_of(ends, document))
    return len(np.unique(document[cut]))


def _starts_of(ends: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Where documents begin in the stream."""
    return np.where(documents > 0, ends[documents - 1], 0)


def _ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """first[0], first[0]+1, … (counts[0] of them), then the same for the next."""
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(first - before, counts)
