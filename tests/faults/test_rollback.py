"""A damaged weight is healed by going back, and what follows is the run that never was damaged (R14)."""

from __future__ import annotations

from typing import Any

import pytest

CELLS = [
    (2, 1, "zero3", "bf16"),
    (2, 2, "pipeline", "bf16"),
]


@pytest.mark.parametrize(("ranks", "pipeline", "template", "precision"), CELLS)
def test_a_damaged_weight_is_healed_by_going_back(
    worlds: Any, ranks: int, pipeline: int, template: str, precision: str
) -> None:
    results = worlds.run(
        "faults/rank_rollback.py:healed",
        ranks,
        deepspeed=template,
        precision=precision,
        parallel={"pipeline": pipeline},
    )
    for result in results:
        stopped, *finished = result["ended"]
        assert stopped.startswith("stopped on request") and "after step 11 of 16" in stopped
        assert finished == ["finished"] * 2
        assert result["disturbed"] == result["straight"]
    steps = results[0]["disturbed"]["steps"]
    assert [step for step, _, _ in steps] == list(range(1, 17)), "a step is missing, or there twice"
    assert [step for step, loss, _ in steps if loss is None] == [7, 8, 9]
    ledger = results[0]["ledger"]
    (back,) = ledger["rollbacks"]
    assert (back["from_step"], back["to_step"], back["lost_steps"]) == (9, 4, 5)
    causes = [start["ended"]["cause"] for start in ledger["starts"]]
    assert causes[0].startswith("stopped on request") and causes[1] == "finished"
    assert [start["from_step"] for start in ledger["starts"]] == [0, 11]


def test_a_bit_that_flips_between_two_comparisons_is_in_no_checkpoint(worlds: Any) -> None:
    for result in worlds.run("faults/rank_rollback.py:flipped", 2, deepspeed="zero0", precision="fp32"):
        stopped, *finished = result["ended"]
        assert "differs between ranks 0 to 1" in stopped and "Nothing is saved from here on" in stopped
        assert result["saved"] == ["step-00000004"], "the weights of steps 6 to 8 hold the flip"
        assert finished == ["finished"] * 2
        assert result["resumed"] == result["straight"]


def test_a_planted_spike_never_reaches_the_weights(worlds: Any) -> None:
    results = worlds.run("faults/rank_rollback.py:spiked", 2, deepspeed="zero2", precision="bf16")
    for result in results:
        states = {name: told["state"] for name, told in result.items()}
        assert states["skip"] == states["straight"]
        assert states["rollback"] == states["straight"]
    first = results[0]
    assert (first["skip"]["withheld"], first["skip"]["passed_over"]) == ([35], [])
    assert (first["rollback"]["withheld"], first["rollback"]["passed_over"]) == ([], [35])
