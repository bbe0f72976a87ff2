"""What the head and its loss hold: how many rows of logits at a time, and the bytes that takes."""

from __future__ import annotations

CHUNK_BYTES = 512 * 2**20  # logits of one chunk, in the model's type
LEAST_ROWS, MOST_ROWS = 2048, 4096  # enough for a product at full rate; more only takes memory
CPU_ROWS = 512  # on a CPU what fits its caches is faster


def chunk_rows(vocab: int, element: int, device: str) -> int:
    """Rows of logits (tokens) that the loss makes at a time; `element`: bytes of the model's type."""
    if device == "cpu":
        return CPU_ROWS
    return max(LEAST_ROWS, min(MOST_ROWS, CHUNK_BYTES // (vocab * element)))


def head_bytes(tokens: int, vocab: int, hidden: int, element: int, loss: str) -> int:
    """The most that the head holds on a GPU at a time beside the hidden states it is given.

    whole    in the backward pass the softmax and its gradient in fp32, and one of them again
    chunked  a chunk's logits and in fp32 their softmax; gradients of hidden and, in fp32, of the weight
    fused    the same without the softmax: the gradient takes the place of the logits
    When the gradients are scaled and rounded to the model's type, the chunks are gone.
    """
    if loss == "whole":
        return tokens * vocab * 12
    rows = min(tokens, chunk_rows(vocab, element, "cuda"))
    chunk = rows * vocab * (element if loss == "fused" else element + 4)
    kept = 4 * vocab * hidden + tokens * hidden * element
    return kept + max(chunk, (vocab + tokens) * hidden * element)
