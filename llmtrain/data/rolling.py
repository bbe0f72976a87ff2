"""Every token of every document, as lm-evaluation-harness scores text (its `loglikelihood_rolling`).

A document stands by itself. Its first token follows the tokenizer's begin token (else its end token), its end
is not predicted, and no token is left out. A document longer than a row goes on in the next, which begins
with the last token of the one before; its last row is full and predicts only what is left. So every row is
one document's, and no attention has to be kept from others.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from llmtrain.data.dataset import Dataset
from llmtrain.data.rows import IGNORED, RowArrays
from llmtrain.data.vocabulary import token_numbers
from llmtrain.errors import DataError


class RollingRows:
    """The first `documents` of a split (None: all) as rows of `seq_len` tokens (`data.rows.Rows`)."""

    def __init__(self, dataset: Dataset, seq_len: int, documents: int | None = None):
        if dataset.masked:
            kind = dataset.manifest.kind
            raise DataError(
                f"{dataset.folder} holds {kind} data, of which only some tokens are taught, and --rolling "
                "scores all tokens of text: leave it out"
            )
        self.datasets = (dataset,)
        self.seq_len = seq_len
        self.mask_documents = False
        self._dataset = dataset
        self._prefix = prefix_token(dataset)
        texts = np.array([self._text(start, end) for start, end in _bounds(dataset)][:documents]).reshape(
            -1, 2
        )
        texts = texts[texts[:, 1] > 0]
        self.documents = len(texts)
        self._whole = documents is None or documents >= len(dataset.ends)
        counts = -(-texts[:, 1] // seq_len)
        self._start, length = (np.repeat(column, counts) for column in texts.T)
        turn = np.arange(len(length)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._end = np.minimum((turn + 1) * seq_len, length)  # of what the row predicts, in its document
        self._predicted = self._end - turn * seq_len

    def _text(self, start: int, end: int) -> tuple[int, int]:
        """Where the text of a document begins, and how many tokens it has without begin and end tokens."""
        tokens = self._tokens(start, end)
        first = int(tokens[0] == self._dataset.manifest.tokenizer.bos_id)
        last = int(len(tokens) > first and tokens[-1] == self._dataset.eos_id)
        return start + first, len(tokens) - first - last

    def _tokens(self, start: int, end: int) -> np.ndarray:
        return np.concatenate(self._dataset.pieces(start, end))

    @property
    def count(self) -> int:
        """Rows in all."""
        return len(self._end)

    @property
    def valid_tokens(self) -> int:
        """All tokens of the documents' texts."""
        return int(self._predicted.sum())

    @property
    def text_bytes(self) -> float | None:
        """UTF-8 bytes of the documents when they are the whole split, which the dataset knows."""
        return float(self._dataset.entry.text_bytes) if self._whole else None

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token, over the whole split."""
        return self._dataset.bytes_per_token

    def read(self, start: int, stop: int) -> RowArrays:
        """Rows `start` to `stop` (exclusive); behind a document its row is filled with the begin token."""
        shape = (stop - start, self.seq_len)
        tokens, labels = np.full(shape, self._prefix), np.full(shape, IGNORED)
        for row, number in enumerate(range(start, stop)):
            place, end, predicted = (int(of[number]) for of in (self._start, self._end, self._predicted))
            begin = max(end - self.seq_len - 1, -1)  # -1: the begin token
            read = self._tokens(place + max(begin, 0), place + end)
            given = read[:-1] if begin >= 0 else np.concatenate([[self._prefix], read[:-1]])
            tokens[row, : len(given)] = given
            labels[row, len(given) - predicted : len(given)] = read[len(read) - predicted :]
        positions = np.broadcast_to(np.arange(self.seq_len), shape)
        return RowArrays(tokens.astype(np.int64), labels.astype(np.int64), positions)


def prefix_token(dataset: Dataset) -> int:
    """What the first token of a document follows: the tokenizer's begin token, else its end token."""
    begin = _begin_token(dataset.tokenizer_folder)
    number = token_numbers(dataset.tokenizer_folder).get(begin) if begin else None
    return dataset.eos_id if number is None else number


def _begin_token(folder: Path) -> str | None:
    try:
        said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("bos_token")
    except (OSError, ValueError, AttributeError):
        return None
    return said.get("content") if isinstance(said, dict) else said


def _bounds(dataset: Dataset) -> list[tuple[int, int]]:
    ends = dataset.ends.tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))
