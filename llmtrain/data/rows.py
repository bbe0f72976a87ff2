"""What training takes from data: the rows of one step, and a part of them as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

IGNORED = -100  # label of a position that is not trained on (the convention of torch and transformers)


@dataclass(frozen=True)
class RowArrays:
    """`n` packed rows of `s` tokens.

    tokens    int64 [n, s]   what the model reads
    labels    int64 [n, s]   the token that follows each position, IGNORED where it is not trained on
    positions int64 [n, s]   counts from 0 at the row's start and, when documents are masked, at each document
    """

    tokens: np.ndarray
    labels: np.ndarray
    positions: np.ndarray


def document_bounds(positions: np.ndarray) -> np.ndarray:
    """Where documents begin in rows laid end to end, then the number of all tokens: int32 [documents + 1].

    positions: int64 [rows, seq], which count on within a document; each row begins a document.
    """
    starts = np.ones(positions.shape, dtype=bool)
    np.not_equal(positions[:, 1:], positions[:, :-1] + 1, out=starts[:, 1:])
    return np.append(np.flatnonzero(starts), positions.size).astype(np.int32)


class Rows(Protocol):
    """The rows of one step (or of an evaluation); nothing is read before `read` is called."""

    @property
    def count(self) -> int:
        """Rows in all, over all ranks."""

    @property
    def seq_len(self) -> int:
        """Tokens per row."""

    @property
    def valid_tokens(self) -> int:
        """Labels that are trained on, over all rows: the loss's denominator, known before any read."""

    def read(self, start: int, stop: int) -> RowArrays:
        """Rows `start` to `stop` (exclusive) as arrays."""
