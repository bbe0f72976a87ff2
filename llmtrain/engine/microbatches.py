"""Rows as the tensors a forward pass takes, always of the same shape."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from llmtrain.data.rows import IGNORED, Rows, document_bounds
from llmtrain.model.documents import Documents


class MicroBatch(NamedTuple):
    """What a forward pass takes: tokens, positions and labels, int64 [rows, seq_len], and their documents."""

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    documents: Documents


def micro_batch(rows: Rows, start: int, size: int, device: torch.device) -> MicroBatch:
    """Rows `start … start + size` on the device; the host never waits for it.

    Rows past the end are filled up with copies of row 0 that are not trained on, because a pipeline and a
    compiled block want one shape.
    """
    stop = min(start + size, rows.count)
    arrays = rows.read(start, stop) if stop > start else rows.read(0, 1)
    tokens, positions, labels = arrays.tokens, arrays.positions, arrays.labels
    if stop <= start:
        labels = np.full_like(labels, IGNORED)
    missing = size - len(tokens)
    if missing:
        tokens = np.concatenate([tokens, np.repeat(tokens[:1], missing, axis=0)])
        positions = np.concatenate([positions, np.repeat(positions[:1], missing, axis=0)])
        blank = np.full((missing, labels.shape[1]), IGNORED, dtype=labels.dtype)
        labels = np.concatenate([labels, blank])
    bounds = document_bounds(positions)
    longest = int((bounds[1:] - bounds[:-1]).max())
    documents = Documents(_move(bounds, device), longest, len(bounds) == size + 1)
    return MicroBatch(_move(tokens, device), _move(positions, device), _move(labels, device), documents)


def _move(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
