"""A resumed run is the same run: every loss, gradient norm, weight and moment to the last bit (R5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

# What can be combined, for benchmarks that run the whole table: ranks, stages, strategy, precision.
CELLS = [
    *[(2, 1, f"zero{stage}", precision) for stage in range(4) for precision in ("fp32", "bf16", "fp16")],
    *[(2, 2, "pipeline", precision) for precision in ("fp32", "bf16", "fp16")],
    (2, 2, "zero0", "fp32"),
]
CELLS.remove((2, 1, "zero0", "fp16"))  # refused: DeepSpeed would not scale the loss there
RELEASED = str(Path(__file__).with_name("zero3_released.json"))  # no weight stays whole for being small
SAMPLE = [
    (2, 1, "zero0", "fp32", "none"),
    (2, 1, "zero1", "bf16", "none"),
    (2, 1, "zero2", "fp16", "none"),
    (2, 1, RELEASED, "bf16", "full"),
    (2, 1, RELEASED, "fp32", "selective"),  # weights are gathered in another order when it computes again
    (2, 2, "pipeline", "bf16", "full"),
]


@pytest.mark.parametrize(("ranks", "pipeline", "template", "precision", "recompute"), SAMPLE)
def test_a_resumed_run_is_the_same_run(
    worlds: Any, ranks: int, pipeline: int, template: str, precision: str, recompute: str
) -> None:
    results = worlds.run(
        "parity/rank_resume.py:resumed_twice",
        ranks,
        model="gpt_neox-dropout",
        deepspeed=template,
        precision=precision,
        recompute=recompute,
        parallel={"pipeline": pipeline},
        batch={"rows": 8, "micro": 2},
        deterministic=template == "zero1",
    )
    for result in results:
        assert result["deterministic"] == (template == "zero1")
        assert result["resumed"] == result["undisturbed"]
        scales = {step[2] for step in result["undisturbed"][:-1]}
        skipped = [step[3] for step in result["undisturbed"][:-1]]
        if precision == "fp16":
            assert len(scales) > 1 and any(skipped) and not all(skipped), "the scale must move"
        else:
            assert not any(skipped)
