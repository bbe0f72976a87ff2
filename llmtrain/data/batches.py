"""The rows of each step, as arithmetic on the dataset's index: nothing is shuffled, kept or replayed.

What a row is, `llmtrain.data.packing` says. Position p of the run is
`Course -> (source, k-th row of it) -> epoch k // rows, Permutation(rows)(k % rows) -> row`.
World size, pipeline degree and worker count appear nowhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.config.schema import DataSection, DataSource, PackingName, TooLong
from llmtrain.data.course import Course, CoursePlanner
from llmtrain.data.dataset import Dataset, open_dataset
from llmtrain.data.order import Mixture, Permutation, derive
from llmtrain.data.packed import PackedRows
from llmtrain.data.packing import Packing, cut_documents, pack
from llmtrain.data.too_long import excess_of, shorten
from llmtrain.errors import ConfigError, DataError, Problem

WAYS_OUT = (
    "set data.too_long: drop, or truncate_left, which keeps the system turn and as many of the last turns as "
    "fit (or samples.max_tokens and samples.too_long where the data is built), or raise data.seq_len"
)


class Batches:
    """The rows of a run: a pure function of (datasets, weights, packing, seq_len, mask, seed) and the
    position.

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
        packing: PackingName = "concat",
    ):
        self.packings = _open_all(sources, seq_len, mask_documents, packing)
        self.datasets = tuple(each.dataset for each in self.packings)
        self.weights = [source.weight for source in sources]
        self.seq_len = seq_len
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.mask_documents = mask_documents
        self.packing = packing
        self.rows_of_sources = [each.rows for each in self.packings]
        self.course = Course.by_weight(sources)

    @classmethod
    def of_run(
        cls, data: DataSection, rows_per_step: int, seed: int, steps: int, origins: Mapping[str, str]
    ) -> Batches:
        """The rows of a run of so many steps, with its token budgets, phases and limits on epochs.

        Raises ConfigError, naming fields by their origins, when the run needs more than its sources may give,
        or has conversations longer than a row and does not say what becomes of them.
        """
        batches = cls(data.train, data.seq_len, rows_per_step, seed, data.mask_documents, data.packing)
        batches._shorten(data.too_long, origins)
        batches.course = CoursePlanner(data, batches.rows_of_sources, steps, rows_per_step, origins).plan()
        return batches

    def _shorten(self, policy: TooLong | None, origins: Mapping[str, str]) -> None:
        """Takes out of the rows what of their conversations is longer than a row."""
        if policy is not None and not any(dataset.masked for dataset in self.datasets):
            fix = "no data.train source holds conversations, and text is cut where a row ends: leave it out"
            raise ConfigError(Problem("data.too_long", policy, origins.get("data.too_long", "run"), fix))
        if policy in (None, "refuse"):
            found = [excess for each in self.datasets if (excess := excess_of(each, self.seq_len))]
            if found:
                counted = "; ".join(excess.counted for excess in found)
                fix = f"{counted}, and packing would cut them in mid-answer: {WAYS_OUT}"
                raise ConfigError(
                    Problem("data.seq_len", self.seq_len, origins.get("data.seq_len", "run"), fix)
                )
        self.packings = _shortened(self.packings, self.seq_len, policy, self.mask_documents)
        self.datasets = tuple(each.dataset for each in self.packings)
        self.rows_of_sources = [each.rows for each in self.packings]

    @property
    def notes(self) -> tuple[str, ...]:
        """What becomes of conversations that do not fit their rows, in sentences."""
        notes = []
        for packing in self.packings:
            dataset = packing.dataset
            if dataset.excess is not None:
                notes.append(f"{dataset.excess} (data.too_long)")
            cut = cut_documents(packing) if dataset.masked else 0
            if cut:
                notes.append(
                    f"{dataset.folder} ({dataset.split}): data.packing = {self.packing} cuts {cut:,} of "
                    f"{len(dataset.ends):,} documents where a row ends; best_fit keeps them whole"
                )
        return tuple(notes)

    def at(self, step: int) -> PackedRows:
        """The rows of optimizer step `step`, counted from 0."""
        return self.rows(step * self.rows_per_step, (step + 1) * self.rows_per_step)

    def rows(self, start: int, stop: int) -> PackedRows:
        """Rows `start` to `stop` (exclusive) of the run's order, which ends only where its course does."""
        source, turn = self.course(np.arange(start, stop, dtype=np.int64))
        row = np.empty_like(turn)
        for number, count in enumerate(self.rows_of_sources):
            mine = np.flatnonzero(source == number)
            epochs, position = np.divmod(turn[mine], count)
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                row[mine[now]] = Permutation(count, derive(self.seed, number, epoch))(position[now])
        return PackedRows(self.packings, source, row, self.seq_len, self.mask_documents)

    @property
    def fingerprint(self) -> str:
        """sha256 over all that decides which row comes at which position of the run.

        `rows_per_step` is not in it: it decides only which positions make up a step.
        """
        content: list[Any] = [
            [[d.fingerprint, w] for d, w in zip(self.datasets, self.weights, strict=True)],
            [self.packing, self.seq_len, self.mask_documents, self.seed],
        ]
        if self.course.identity:
            content.append(self.course.identity)
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
        return sum(self.rows_of_sources)

    @property
    def tokens_per_epoch(self) -> int:
        """Token positions of all those rows."""
        return self.rows_per_epoch * self.seq_len

    @property
    def lost(self) -> float:
        """The share of the datasets' tokens that is in no row: what is cropped, or behind the last row."""
        return 1 - sum(each.tokens for each in self.packings) / sum(each.tokens for each in self.datasets)

    @property
    def padded(self) -> float:
        """The share of the rows' positions that is padding."""
        return 1 - sum(each.tokens for each in self.packings) / self.tokens_per_epoch


def rows_per_epoch(data: DataSection) -> int:
    """Rows of all training sources together, each once. Raises DataError as `Batches` does."""
    return sum(each.rows for each in _open_all(data.train, data.seq_len, data.mask_documents, data.packing))


def held_out(
    sources: Sequence[DataSource],
    seq_len: int,
    rows: int | None,
    mask_documents: bool,
    packing: PackingName = "concat",
    too_long: TooLong | None = None,
) -> PackedRows:
    """Rows spread evenly over each evaluation source, in order and always the same ones.

    `rows` in all (fewer when there are fewer; None: all there are), shared by the sources' weights. The first
    ones would be a few files that happen to come first; evenly spread ones stand for the whole split.
    Conversations longer than a row are cut by the packing unless `too_long` says otherwise.
    Raises DataError as `Batches` does, and for such conversations when they are refused.
    """
    packings = _open_all(sources, seq_len, mask_documents, packing)
    if too_long is not None:
        packings = _shortened(packings, seq_len, too_long, mask_documents)
    available = np.array([each.rows for each in packings])
    rows = int(available.sum()) if rows is None else rows
    mixed, _ = Mixture([source.weight for source in sources])(np.arange(rows, dtype=np.int64))
    take = np.minimum(np.bincount(mixed, minlength=len(packings)), available)
    for number in range(len(packings)):  # what one source lacks, the others give
        take[number] += min(available[number] - take[number], rows - take.sum())
    source = np.repeat(np.arange(len(packings)), take)
    spread = [np.arange(few) * all_rows // max(few, 1) for few, all_rows in zip(take, available, strict=True)]
    row = np.concatenate(spread)
    return PackedRows(packings, source, row, seq_len, mask_documents)


def _open_all(
    sources: Sequence[DataSource], seq_len: int, mask_documents: bool, packing: PackingName
) -> tuple[Packing, ...]:
    assert sources, "no data source"
    datasets = [open_dataset(source.path, source.split) for source in sources]
    packings = []
    for dataset in datasets:
        _check_kind(dataset, mask_documents)
        if dataset.manifest.tokenizer.sha256 != datasets[0].manifest.tokenizer.sha256:
            raise DataError(
                f"{dataset.folder} was built with tokenizer {dataset.manifest.tokenizer.name} and "
                f"{datasets[0].folder} with {datasets[0].manifest.tokenizer.name}, which differ: "
                "build the datasets of one run with the same tokenizer"
            )
        packings.append(pack(dataset, seq_len, packing, mask_documents))
        if not packings[-1].rows:
            one_more = " (+ 1)" if packing == "concat" else f" by data.packing = {packing}"
            raise DataError(
                f"{dataset.folder} split '{dataset.split}' has {dataset.tokens} tokens, too few for one row "
                f"of data.seq_len = {seq_len}{one_more}: use more text or a smaller seq_len"
            )
    return tuple(packings)


def _shortened(
    packings: tuple[Packing, ...], seq_len: int, policy: TooLong | None, mask_documents: bool
) -> tuple[Packing, ...]:
    """The packings without conversations longer than a row. Raises DataError when those are refused."""
    found: list[Packing] = []
    for packing in packings:
        excess = excess_of(packing.dataset, seq_len)
        if excess is not None and policy == "refuse":
            raise DataError(f"{excess.counted}: {WAYS_OUT}")
        left = shorten(packing.dataset, seq_len, policy)
        again = packing if left is packing.dataset else pack(left, seq_len, packing.name, mask_documents)
        if not again.rows:
            raise DataError(f"{left.excess}: nothing is left for a row: raise data.seq_len")
        found.append(again)
    return tuple(found)


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
