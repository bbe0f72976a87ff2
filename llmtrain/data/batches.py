"""The rows of each step, as arithmetic on the dataset's index: nothing is shuffled, kept or replayed.

Packing is by concatenation: a split's documents form one stream, row r covers tokens r*S … r*S+S, of
which the first S are read and the last S are predicted. Position p of the run is
`Mixture -> (source, k-th row of it) -> epoch k // rows, Permutation(rows)(k % rows) -> row`.
World size, pipeline degree and worker count appear nowhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmtrain.config.schema import DataSource
from llmtrain.data.dataset import Dataset, open_dataset
from llmtrain.data.order import Mixture, Permutation, derive
from llmtrain.data.rows import IGNORED, RowArrays
from llmtrain.errors import DataError


@dataclass(frozen=True)
class PackedRows:
    """Some rows of some datasets (`llmtrain.data.rows.Rows`), read when asked.

    source  int64 [count]   index into `datasets`
    row     int64 [count]   the row of that dataset
    """

    datasets: tuple[Dataset, ...]
    source: np.ndarray
    row: np.ndarray
    seq_len: int
    mask_documents: bool

    @property
    def count(self) -> int:
        """Rows in all."""
        return len(self.row)

    @property
    def valid_tokens(self) -> int:
        """Labels that are trained on, known from the index alone (and the masks of fine-tuning data)."""
        total = self.count * self.seq_len
        for number, dataset in enumerate(self.datasets):
            first = self.row[self.source == number] * self.seq_len
            if dataset.masked:  # a document's first token is never marked: its end needs no second look
                masks = dataset.masks(first + 1, self.seq_len)
                total -= sum(self.seq_len - int(mask.sum()) for mask in masks)
            elif self.mask_documents:
                cuts = np.searchsorted(dataset.ends, (first + self.seq_len, first), side="right")
                total -= int((cuts[0] - cuts[1]).sum())
        return total

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token: the mean of the datasets', weighted by rows."""
        each = np.array([dataset.bytes_per_token for dataset in self.datasets])
        return float(each[self.source].mean())

    def read(self, start: int, stop: int) -> RowArrays:
        """Rows `start` to `stop` (exclusive) as arrays."""
        assert 0 <= start <= stop <= self.count, f"rows {start} … {stop} of {self.count}"
        source, first = self.source[start:stop], self.row[start:stop] * self.seq_len
        shape = (stop - start, self.seq_len)
        tokens, labels = np.empty(shape, np.int64), np.empty(shape, np.int64)
        for number, dataset in enumerate(self.datasets):
            mine = np.flatnonzero(source == number)
            windows = dataset.windows(first[mine], self.seq_len + 1)
            for k, window in zip(mine.tolist(), windows, strict=True):
                tokens[k] = window[:-1]
                labels[k] = window[1:]
            if dataset.masked:
                for k, mask in zip(mine.tolist(), dataset.masks(first[mine] + 1, self.seq_len), strict=True):
                    labels[k][mask == 0] = IGNORED
        positions = np.empty(shape, np.int64)
        positions[:] = np.arange(self.seq_len)
        if self.mask_documents and stop > start:
            self._cut_at_documents(source, first, labels.reshape(-1), positions.reshape(-1))
        return RowArrays(tokens, labels, positions)

    def _cut_at_documents(
        self, source: np.ndarray, first: np.ndarray, labels: np.ndarray, positions: np.ndarray
    ) -> None:
        """Ignores the label of each document's last token and counts positions from each document's start.

        `labels` and `positions` are flat views of [rows, seq_len]; both are changed in place.
        """
        last = np.concatenate(
            [
                self._last_tokens(dataset, np.flatnonzero(source == number), first)
                for number, dataset in enumerate(self.datasets)
            ]
        )
        labels[last] = IGNORED
        starts = last + 1
        starts = np.sort(starts[starts % self.seq_len != 0])  # at a row's start the count is 0 anyway
        lengths = np.minimum(np.diff(starts, append=len(positions)), self.seq_len - starts % self.seq_len)
        count = np.arange(self.seq_len)
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            positions[start : start + length] = count[:length]

    def _last_tokens(self, dataset: Dataset, rows: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Where in the flat [rows, seq_len] array the last token of a document stands."""
        low = np.searchsorted(dataset.ends, first[rows], side="right")
        high = np.searchsorted(dataset.ends, first[rows] + self.seq_len, side="right")
        counts = high - low
        which = np.repeat(rows, counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        ends = dataset.ends[np.repeat(low, counts) + within]
        return which * self.seq_len + (ends - 1 - first[which])


class Batches:
    """The rows of a run: a pure function of (datasets, weights, seq_len, mask, seed) and the position.

    sources        datasets with their shares of the rows; all must share one tokenizer
    seq_len        tokens per row
    rows_per_step  rows per optimizer step, over all ranks
    Raises DataError when a dataset can't be used, is shorter than a row, or has another tokenizer.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        seq_len: int,
        rows_per_step: int,
        seed: int,
        mask_documents: bool,
    ):
        self.datasets = _open_all(sources, seq_len, mask_documents)
        self.weights = [source.weight for source in sources]
        self.seq_len = seq_len
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.mask_documents = mask_documents
        self._rows = [row_count(dataset, seq_len) for dataset in self.datasets]
        self._mixture = Mixture(self.weights)

    def at(self, step: int) -> PackedRows:
        """The rows of optimizer step `step`, counted from 0."""
        return self.rows(step * self.rows_per_step, (step + 1) * self.rows_per_step)

    def rows(self, start: int, stop: int) -> PackedRows:
        """Rows `start` to `stop` (exclusive) of the run's endless order."""
        source, turn = self._mixture(np.arange(start, stop, dtype=np.int64))
        row = np.empty_like(turn)
        for number, count in enumerate(self._rows):
            mine = np.flatnonzero(source == number)
            epochs, position = np.divmod(turn[mine], count)
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                row[mine[now]] = Permutation(count, derive(self.seed, number, epoch))(position[now])
        return PackedRows(self.datasets, source, row, self.seq_len, self.mask_documents)

    @property
    def fingerprint(self) -> str:
        """sha256 over all that decides which row comes at which position of the run.

        `rows_per_step` is not in it: it decides only which positions make up a step.
        """
        content = [
            [[d.fingerprint, w] for d, w in zip(self.datasets, self.weights, strict=True)],
            ["concat", self.seq_len, self.mask_documents, self.seed],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to one below this."""
        return self.datasets[0].vocab_size

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""
        return self.datasets[0].eos_id

    @property
    def tokenizer_folder(self) -> Path:
        """A folder that `transformers.AutoTokenizer` loads."""
        return self.datasets[0].tokenizer_folder

    @property
    def rows_per_epoch(self) -> int:
        """Rows of all datasets together, each once."""
        return sum(self._rows)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of all those rows."""
        return self.rows_per_epoch * self.seq_len


def held_out(sources: Sequence[DataSource], seq_len: int, rows: int, mask_documents: bool) -> PackedRows:
    """Rows spread evenly over each evaluation source, in order and always the same ones.

    `rows` in all (fewer when there are fewer), shared by the sources' weights. The first ones would be a few
    files that happen to come first; evenly spread ones stand for the whole split.
    Raises DataError as `Batches` does.
    """
    datasets = _open_all(sources, seq_len, mask_documents)
    available = np.array([row_count(dataset, seq_len) for dataset in datasets])
    mixed, _ = Mixture([source.weight for source in sources])(np.arange(rows, dtype=np.int64))
    take = np.minimum(np.bincount(mixed, minlength=len(datasets)), available)
    for number in range(len(datasets)):  # what one source lacks, the others give
        take[number] += min(available[number] - take[number], rows - take.sum())
    source = np.repeat(np.arange(len(datasets)), take)
    spread = [np.arange(few) * all_rows // max(few, 1) for few, all_rows in zip(take, available, strict=True)]
    row = np.concatenate(spread)
    return PackedRows(datasets, source, row, seq_len, mask_documents)


def row_count(dataset: Dataset, seq_len: int) -> int:
    """Rows of `seq_len` tokens in a dataset; the last token is only ever predicted."""
    return max(dataset.tokens - 1, 0) // seq_len


def _open_all(sources: Sequence[DataSource], seq_len: int, mask_documents: bool) -> tuple[Dataset, ...]:
    assert sources, "no data source"
    datasets = tuple(open_dataset(source.path, source.split) for source in sources)
    for dataset in datasets:
        _check_kind(dataset, mask_documents)
        if row_count(dataset, seq_len) == 0:
            raise DataError(
                f"{dataset.folder} split '{dataset.split}' has {dataset.tokens} tokens, too few for one row "
                f"of data.seq_len = {seq_len} (+ 1): use more text or a smaller seq_len"
            )
        if dataset.manifest.tokenizer.sha256 != datasets[0].manifest.tokenizer.sha256:
            raise DataError(
                f"{dataset.folder} was built with tokenizer {dataset.manifest.tokenizer.name} and "
                f"{datasets[0].folder} with {datasets[0].manifest.tokenizer.name}, which differ: "
                "build the datasets of one run with the same tokenizer"
            )
    return datasets


def _check_kind(dataset: Dataset, mask_documents: bool) -> None:
    """Raises DataError for data that can't be trained on as rows, or not in this way."""
    kind = dataset.manifest.kind
    if kind == "preference":
        raise DataError(
            f"{dataset.folder} holds preference pairs (kind: preference), and a run would learn the rejected "
            "answers as well as the chosen: build the chosen ones as kind: prompt_completion to learn them"
        )
    if dataset.masked and not mask_documents:
        raise DataError(
            f"{dataset.folder} holds separate conversations (kind: {kind}), and data.mask_documents = False "
            "lets them see each other in a row: set data.mask_documents: true"
        )
