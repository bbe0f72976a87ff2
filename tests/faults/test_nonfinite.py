"""No step that is not finite touches a weight or a moment, on any path, and training goes on after it."""

from __future__ import annotations

from typing import Any

import pytest

CELLS = [
    *[(2, 1, f"zero{stage}", precision) for stage in range(4) for precision in ("fp32", "bf16")],
    *[(2, 2, template, precision) for template in ("zero0", "pipeline") for precision in ("fp32", "bf16")],
]


@pytest.mark.parametrize(("ranks", "pipeline", "template", "precision"), CELLS)
def test_a_nan_on_one_rank_is_skipped_by_all(
    worlds: Any, ranks: int, pipeline: int, template: str, precision: str
) -> None:
    results = worlds.run(
        "faults/rank_poison.py:poison",
        ranks,
        times=3,
        value="nan",
        deepspeed=template,
        precision=precision,
        parallel={"pipeline": pipeline},
    )
    for result in results:
        assert result["good"] == [True, True]
        assert result["skipped"] == [True] * 3
        assert result["finite"] == [False] * 3
        assert result["unchanged"], "a weight or moment moved in a step that was not finite"
        assert result["updates"] == [2.0, 3.0]
        assert result["recovered"]


def test_an_infinite_loss_is_skipped_too(worlds: Any) -> None:
    results = worlds.run(
        "faults/rank_poison.py:poison", 2, times=1, value="inf", deepspeed="zero0", precision="fp32"
    )
    assert all(result["skipped"] == [True] and result["unchanged"] for result in results)
