"""Rows of a dataset as a person reads them: the text that training sees, with its document boundaries.

Where a loss mask says which tokens are trained on, those are coloured, or stand between ⟦ and ⟧ where there
is no colour.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from data_prep.tokenizer import load_tokenizer
from llmtrain.config.schema import DataSource
from llmtrain.data.batches import Batches
from llmtrain.data.dataset import Dataset, open_dataset
from llmtrain.data.order import Permutation, derive
from llmtrain.data.packing import Packing
from llmtrain.data.rows import IGNORED
from llmtrain.data.too_long import excess_of

COLOUR = ("\x1b[32m", "\x1b[0m")
MARKS = ("⟦", "⟧")


def show(
    folder: str | Path,
    rows: int = 3,
    split: str = "train",
    seq_len: int = 256,
    seed: int = 0,
    colour: bool = False,
) -> str:
    """Some rows of a split as training would draw them with `seed`, each document set apart by a rule.

    Of preference data, pairs. Raises DataError when folder, split or a row of that length is not there.
    """
    around = COLOUR if colour else MARKS
    dataset = open_dataset(folder, split)
    if dataset.manifest.kind == "preference":
        return "\n".join(_pairs(dataset, rows, seed, around))
    source = DataSource(path=str(folder), split=split)
    batches = Batches([source], seq_len, rows, seed, mask_documents=True)
    drawn = batches.at(0)
    arrays = drawn.read(0, rows)
    tokenizer = load_tokenizer(Path(batches.tokenizer_folder))
    lines = [f"{folder} {split}: {batches.rows_per_epoch:,} rows of {seq_len} tokens, {_about(dataset)}"]
    excess = excess_of(dataset, seq_len)
    if excess is not None:
        lines.append(f"{excess.counted}, and marked where they are shown: see data.too_long")
    heads = _heads(batches.packings[0], drawn.row, seq_len)
    for number in range(rows):
        labels = arrays.labels[number]
        trained = labels != IGNORED
        lines += [
            "",
            f"━━ row {drawn.row[number]} ━━ {int(trained.sum())} of {seq_len} tokens are trained on",
        ]
        # Trained on at a place is the token after it: the row's first is only read, and one may follow it.
        tokens = np.append(arrays.tokens[number], labels[-1:])[: seq_len + int(trained[-1])]
        learnt = np.concatenate([[False], trained])[: len(tokens)]
        starts = np.flatnonzero(arrays.positions[number] == 0)[1:]
        edges = around if dataset.masked else ("", "")
        for place, (part, mask) in enumerate(
            zip(np.split(tokens, starts), np.split(learnt, starts), strict=True)
        ):
            head = heads[number][place] if dataset.masked else ""
            if place or head:
                lines.append(f"── {'next document' if place else 'document'}{head} ──")
            lines.append(_text(tokenizer, part, mask, edges))
    return "\n".join(lines)


def _heads(packing: Packing, rows: np.ndarray, seq_len: int) -> list[list[str]]:
    """For each piece of each row what is not whole about it, and nothing where it is."""
    pieces, ends = packing.pieces(rows), packing.dataset.ends
    heads: list[list[str]] = [[] for _ in rows]
    for row, start, length in zip(
        pieces.row.tolist(), pieces.start.tolist(), pieces.length.tolist(), strict=True
    ):
        document = int(np.searchsorted(ends, start, side="right"))
        first = int(ends[document - 1]) if document else 0
        size, at = int(ends[document]) - first, start - first
        cut = f", cut: tokens {at + 1:,} to {at + length:,} of {size:,}" if length < size else ""
        heads[row].append(cut + f", longer than a row of {seq_len:,}" * (size > seq_len))
    for each in heads:
        each.append("")  # padding, where there is any
    return heads


def _about(dataset: Dataset) -> str:
    manifest = dataset.manifest
    kind = f"kind {manifest.kind}, " if dataset.masked else ""
    return f"{kind}tokenizer {manifest.tokenizer.name}, {manifest.vocab_size:,} ids"


def _pairs(dataset: Dataset, count: int, seed: int, around: tuple[str, str]) -> Iterator[str]:
    """Some pairs, the answers one after the other."""
    starts = np.concatenate([[0], dataset.ends[:-1]])
    pairs = len(starts) // 2
    tokenizer = load_tokenizer(dataset.tokenizer_folder)
    yield f"{dataset.folder} {dataset.split}: {pairs:,} pairs, {_about(dataset)}"
    order = Permutation(pairs, derive(seed, 0, 0))(np.arange(min(count, pairs), dtype=np.int64))
    for pair in order.tolist():
        for place, name in enumerate(("chosen", "rejected")):
            start = starts[[2 * pair + place]]
            length = dataset.ends[[2 * pair + place]] - start
            tokens, mask = dataset.windows(start, length)[0], dataset.masks(start, length)[0] == 1
            yield ""
            yield f"━━ pair {pair}, {name} ━━ {int(mask.sum())} of {len(tokens)} tokens are trained on"
            yield _text(tokenizer, tokens, mask, around)


def _text(tokenizer: Tokenizer, tokens: np.ndarray, mask: np.ndarray, around: tuple[str, str]) -> str:
    """Tokens as text, special ones as they are, each run of trained ones between the two of `around`."""
    runs = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(mask)) + 1) if any(around) else None
    text = ""
    for run in runs if runs is not None else [np.arange(len(tokens))]:
        part = tokenizer.decode(tokens[run].tolist(), skip_special_tokens=False)
        text += around[0] + part + around[1] if len(run) and mask[run[0]] else part
    return text
