"""Rows with nothing to train on neither break the loss nor move a weight, on any path."""

from __future__ import annotations

from typing import Any

import pytest

PATHS = [("zero0", 1, 1), ("zero1", 2, 1), ("zero3", 2, 1), ("pipeline", 2, 2)]


def test_blank_rows_and_blank_steps(worlds: Any) -> None:
    losses = []
    for template, ranks, stages in PATHS:
        for result in worlds.run(
            "parity/rank_untrained.py:train", ranks, deepspeed=template, parallel={"pipeline": stages}
        ):
            assert result["skipped"] == [False, True, False], template
            assert result["none"] == [True, 0, True], template
            assert result["held_out"] == [0.0, 0], template
            losses.append(result["losses"])
    for found in losses:
        assert found == pytest.approx(losses[0], rel=1e-5)
