"""Rows become tensors of one shape, whatever is left over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmtrain.data.rows import IGNORED, RowArrays
from llmtrain.engine.microbatches import micro_batch


class FiveRows:
    count, seq_len, valid_tokens = 5, 3, 15

    def read(self, start: int, stop: int) -> RowArrays:
        assert 0 <= start < stop <= self.count
        tokens = np.arange(15).reshape(5, 3)[start:stop]
        return RowArrays(tokens, tokens + 1, np.tile(np.arange(3), (stop - start, 1)))


@pytest.mark.parametrize(("start", "valid"), [(0, 2), (2, 2), (4, 1), (6, 0)])
def test_shape_is_fixed_and_filling_is_not_trained_on(start: int, valid: int) -> None:
    tokens, positions, labels = micro_batch(FiveRows(), start, 2, torch.device("cpu"))
    assert tokens.shape == positions.shape == labels.shape == (2, 3)
    assert tokens.dtype == positions.dtype == labels.dtype == torch.int64
    assert (labels != IGNORED).all(dim=1).sum() == valid
    if valid:
        assert tokens[0].tolist() == [start * 3, start * 3 + 1, start * 3 + 2]
