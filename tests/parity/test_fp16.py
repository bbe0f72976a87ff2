"""fp16: every engine scales the loss, reports the norm without the scale, and skips an overflow."""

from __future__ import annotations

from typing import Any

import pytest

PROGRAM = "parity/rank_fp16.py:train_fp16"
LAYOUTS = [(2, 1, "zero1"), (2, 1, "zero2"), (2, 1, "zero3"), (2, 2, "pipeline")]


@pytest.fixture(scope="module")
def reference(worlds: Any) -> dict[str, Any]:
    return worlds.run("parity/rank_programs.py:plain", 1, model="llama", steps=6, precision="fp32")[0]


@pytest.mark.parametrize(("ranks", "pipeline", "template"), LAYOUTS)
def test_scaled_training_follows_fp32(
    worlds: Any, reference: dict[str, Any], ranks: int, pipeline: int, template: str
) -> None:
    settings = {"deepspeed": template, "parallel": {"pipeline": pipeline}}
    for result in worlds.run(PROGRAM, ranks, steps=6, first_power=8, **settings):
        assert result["skipped"] == [False] * 6
        assert result["scales"] == [256.0] * 6
        assert result["losses"] == pytest.approx(reference["losses"], rel=5e-3)
        assert result["norms"] == pytest.approx(reference["norms"], rel=5e-2)
        assert result["scalars"]["updates"] == 6
        assert result["scalars"]["cur_scale"] == 256.0


@pytest.mark.parametrize(("ranks", "pipeline", "template"), LAYOUTS)
def test_an_overflow_is_skipped_and_lowers_the_scale(
    worlds: Any, ranks: int, pipeline: int, template: str
) -> None:
    settings = {"deepspeed": template, "parallel": {"pipeline": pipeline}}
    for result in worlds.run(PROGRAM, ranks, steps=8, first_power=24, **settings):
        assert result["skipped"][0], "a loss scale of 2**24 must overflow fp16"
        assert not result["skipped"][-1]
        assert result["scales"][0] == 2.0**24
        assert result["scales"][-1] < 2.0**24
        assert result["scalars"]["updates"] == result["skipped"].count(False)
