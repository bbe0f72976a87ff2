"""What an evaluation's sum of losses means: mean loss, perplexity, bits per byte of text.

Bits per byte compares models with different tokenizers: loss_sum / ln 2 / bytes, where bytes is the UTF-8
length of the predicted text. A document end is predicted and paid for, and stands for no text.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmtrain.data.rows import Rows
from llmtrain.data.vocabulary import token_bytes

CHUNK_ROWS = 256


@dataclass(frozen=True)
class Scores:
    """One evaluation. `bits_per_byte` is None where the text's size is unknown."""

    eval_loss: float  # nats per token
    perplexity: float
    bits_per_byte: float | None
    eval_tokens: int

    def record(self) -> dict[str, Any]:
        """For metrics.jsonl and `--json`."""
        return asdict(self)

    def __str__(self) -> str:
        bits = "" if self.bits_per_byte is None else f" · {self.bits_per_byte:.3f} bits per byte"
        shown = f"loss {self.eval_loss:.4f} · perplexity {self.perplexity:,.2f}{bits}"
        return f"{shown} · {self.eval_tokens:,} tokens"


def scores(loss_sum: float, tokens: int, text_bytes: float | None) -> Scores:
    """Scores of `tokens` predicted tokens that stand for `text_bytes` bytes of text."""
    loss = loss_sum / max(tokens, 1)
    perplexity = math.exp(loss) if loss < 700 else math.inf
    bits = loss_sum / math.log(2) / text_bytes if text_bytes else None
    return Scores(loss, perplexity, bits, tokens)


def text_bytes(rows: Rows, tokenizer_folder: Path) -> float | None:
    """UTF-8 bytes of the text that the rows' labels stand for.

    Exact where the tokenizer's vocabulary tells each token's bytes; else the mean of the split that the rows
    are of; None when neither is known.
    """
    lengths = token_bytes(tokenizer_folder)
    if lengths is None:
        mean = getattr(rows, "bytes_per_token", None)
        return None if mean is None else mean * rows.valid_tokens
    total = 0
    for start in range(0, rows.count, CHUNK_ROWS):
        labels = rows.read(start, min(start + CHUNK_ROWS, rows.count)).labels
        total += int(lengths[labels[labels >= 0]].sum())
    return float(total)
