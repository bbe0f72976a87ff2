"""Rows become tensors of one shape, whatever is left over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmtrain.data.rows import IGNORED, RowArrays, document_bounds
from llmtrain.engine.microbatches import micro_batch


class FiveRows:
    count, seq_len, valid_tokens = 5, 3, 15

    def read(self, start: int, stop: int) -> RowArrays:
        assert 0 <= start < stop <= self.count
        tokens = np.arange(15).reshape(5, 3)[start:stop]
        return RowArrays(tokens, tokens + 1, np.tile(np.arange(3), (stop - start, 1)))


@pytest.mark.parametrize(("start", "valid"), [(0, 2), (2, 2), (4, 1), (6, 0)])
def test_shape_is_fixed_and_filling_is_not_trained_on(start: int, valid: int) -> None:
    tokens, positions, labels, documents = micro_batch(FiveRows(), start, 2, torch.device("cpu"))
    assert tokens.shape == positions.shape == labels.shape == (2, 3)
    assert tokens.dtype == positions.dtype == labels.dtype == torch.int64
    assert (labels != IGNORED).all(dim=1).sum() == valid
    assert documents.bounds.dtype == torch.int32
    assert (documents.bounds.tolist(), documents.longest, documents.alone) == ([0, 3, 6], 3, True)
    if valid:
        assert tokens[0].tolist() == [start * 3, start * 3 + 1, start * 3 + 2]


def test_bounds_are_where_positions_start_again() -> None:
    positions = np.array([[0, 1, 2, 0, 1], [3, 4, 0, 0, 1]])  # a row may begin within a document
    assert document_bounds(positions).tolist() == [0, 3, 5, 7, 8, 10]
    assert document_bounds(positions[:, :1]).tolist() == [0, 1, 2]
