"""No bad number touches a weight or a moment, on any path, and training goes on after it (R14, R15)."""

from __future__ import annotations

from typing import Any

import pytest

CELLS = [
    *[(2, 1, f"zero{stage}", precision) for stage in range(4) for precision in ("fp32", "bf16")],
    *[(2, 2, template, precision) for template in ("zero0", "pipeline") for precision in ("fp32", "bf16")],
    (2, 1, "zero2", "fp16"),
    (2, 2, "pipeline", "fp16"),
]


@pytest.mark.parametrize(("ranks", "pipeline", "template", "precision"), CELLS)
def test_bad_numbers_on_one_rank_are_skipped_by_all(
    worlds: Any, ranks: int, pipeline: int, template: str, precision: str
) -> None:
    where, value = ("gradient", "inf") if template in ("zero1", "zero3") else ("loss", "nan")
    results = worlds.run(
        "faults/rank_poison.py:poison",
        ranks,
        times=3,
        value=value,
        where=where,
        deepspeed=template,
        precision=precision,
        parallel={"pipeline": pipeline},
        **({"scale_power": 10} if precision == "fp16" else {}),
    )
    for result in results:
        assert result["good"] == [True, True]
        assert result["skipped"] == [True] * 3
        assert result["finite"] == [False] * 3
        assert result["unchanged"], "a weight or moment moved in a step that was not finite"
        assert result["updates"] == [2.0, 3.0]
        assert result["recovered"]
        assert result["withheld"], "a step whose loss was too high touched a weight or the loss scale"
        assert result["allowed"]
        if pipeline == 2 or template == "zero3":
            assert result["corrupted"] == "", "nothing is held twice"
        elif template == "zero0":
            assert "differs between ranks 0 to 1, and which is right can't be told" in result["corrupted"]
        else:
            assert result["corrupted"].startswith("on rank 0 "), result["corrupted"]
            assert "the fp32 copy of its owner says it is: a weight was corrupted" in result["corrupted"]


def test_an_infinite_loss_is_skipped_too(worlds: Any) -> None:
    results = worlds.run(
        "faults/rank_poison.py:poison", 2, times=1, value="inf", deepspeed="zero0", precision="fp32"
    )
    assert all(result["skipped"] == [True] and result["unchanged"] for result in results)


def test_three_ranks_outvote_the_one_that_is_wrong(worlds: Any) -> None:
    results = worlds.run(
        "faults/rank_poison.py:poison",
        3,
        times=0,
        value="nan",
        deepspeed="zero0",
        precision="bf16",
        batch={"rows": 6},
    )
    for result in results:
        assert "is not what most of the ranks say it is" in result["corrupted"]
        assert result["corrupted"].startswith("on rank 0 ")


@pytest.mark.parametrize(("template", "pipeline"), [("zero1", 1), ("pipeline", 2)])
def test_fp16_at_the_floor_of_its_scale_stops_with_a_sentence(
    worlds: Any, template: str, pipeline: int
) -> None:
    results = worlds.run(
        "faults/rank_poison.py:at_floor", 2, deepspeed=template, parallel={"pipeline": pipeline}
    )
    for result in results:
        assert result["skipped"] and result["scale"] == 2.0 and result["unchanged"]
        assert result["why"].startswith("the fp16 loss scale is at its floor of 1 and the gradients still")
