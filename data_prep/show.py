"""Rows of a dataset as a person reads them: the text that training sees, with its document boundaries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from data_prep.tokenizer import load_tokenizer
from llmtrain.config.schema import DataSource
from llmtrain.data.batches import Batches
from llmtrain.data.rows import IGNORED


def show(folder: str | Path, rows: int = 3, split: str = "train", seq_len: int = 256, seed: int = 0) -> str:
    """Some rows of a split as training would draw them with `seed`, each document set apart by a rule.

    Raises DataError when the folder, the split or a row of that length is not there.
    """
    source = DataSource(path=str(folder), split=split)
    batches = Batches([source], seq_len, rows, seed, mask_documents=True)
    drawn = batches.at(0)
    arrays = drawn.read(0, rows)
    tokenizer = load_tokenizer(Path(batches.tokenizer_folder))
    manifest = batches.datasets[0].manifest
    lines = [
        f"{folder} {split}: {batches.rows_per_epoch:,} rows of {seq_len} tokens, "
        f"tokenizer {manifest.tokenizer.name}, {manifest.vocab_size:,} ids"
    ]
    for number in range(rows):
        trained = int((arrays.labels[number] != IGNORED).sum())
        lines += ["", f"━━ row {drawn.row[number]} ━━ {trained} of {seq_len} tokens are trained on"]
        lines += _documents(tokenizer, arrays.tokens[number], arrays.positions[number])
    return "\n".join(lines)


def _documents(tokenizer: Tokenizer, tokens: np.ndarray, positions: np.ndarray) -> list[str]:
    """The row's text, a rule before each document but the first; special tokens are shown as they are."""
    starts = np.flatnonzero(positions == 0)
    texts = [
        tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in np.split(tokens, starts[1:])
    ]
    lines = [texts[0]]
    for text in texts[1:]:
        lines += ["── next document ──", text]
    return lines
