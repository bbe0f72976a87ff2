"""Where documents begin in a micro-batch, known on the host before the model runs.

They are made in numpy with the rows (`data.rows.document_bounds`): were they read off the device's positions,
each forward pass would wait for the device, and so keep the host from running ahead of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from transformers import masking_utils

from llmtrain.data.rows import document_bounds


@dataclass(frozen=True)
class Documents:
    """The documents of a micro-batch, its rows laid end to end.

    bounds   int32 [documents + 1] on the model's device: where each begins, then the number of all tokens
    longest  tokens of the longest document, on the host: the kernels size their grids by it
    alone    every row holds one document, so causal attention needs no mask
    """

    bounds: torch.Tensor
    longest: int
    alone: bool


def documents_of(positions: torch.Tensor) -> Documents:
    """The documents told by int64 [rows, seq] positions; waits for the device, so training hands them in."""
    bounds = document_bounds(positions.cpu().numpy())
    longest = int((bounds[1:] - bounds[:-1]).max())
    placed = torch.from_numpy(bounds).to(positions.device)
    return Documents(placed, longest, len(bounds) == len(positions) + 1)


_KNOWN: ContextVar[Documents | None] = ContextVar("documents of the micro-batch in the model", default=None)


@contextmanager
def known(documents: Documents) -> Iterator[None]:
    """Inside, transformers' masks are made without asking the device whether rows hold several documents."""
    token = _KNOWN.set(documents)
    try:
        yield
    finally:
        _KNOWN.reset(token)


_ask_the_device = getattr(
    masking_utils.find_packed_sequence_indices, "__wrapped__", masking_utils.find_packed_sequence_indices
)


def find_packed_sequence_indices(position_ids: torch.Tensor) -> torch.Tensor | None:
    """Which document of its row each token is in; None when each row is one. As transformers' own."""
    documents = _KNOWN.get()
    if documents is None:
        return _ask_the_device(position_ids)
    if documents.alone:
        return None
    before = position_ids[:, :1] - 1
    return (torch.diff(position_ids, prepend=before, dim=-1) != 1).cumsum(-1)


find_packed_sequence_indices.__wrapped__ = _ask_the_device  # type: ignore[attr-defined]
masking_utils.find_packed_sequence_indices = find_packed_sequence_indices
