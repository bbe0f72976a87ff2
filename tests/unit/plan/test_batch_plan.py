"""rows = micro × accumulation × dp, whatever is given and whatever is chosen."""

from __future__ import annotations

import pytest

from llmtrain.plan.batch import divisors, plan_batch
from llmtrain.plan.topology import Topology


@pytest.mark.parametrize("rows", [1, 2, 6, 64, 96, 97, 360])
@pytest.mark.parametrize("pipeline", [1, 2, 4])
@pytest.mark.parametrize("seq_len", [128, 2048, 65536])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_always_divides_and_keeps_its_limits(
    rows: int, pipeline: int, seq_len: int, device: str
) -> None:
    for dp in divisors(rows):
        batch, reason = plan_batch(rows, dp, seq_len=seq_len, pipeline=pipeline, device=device, most_rows=8)
        assert batch.micro * batch.accumulation * dp == rows
        assert batch.micro <= 8
        assert batch.micro == 1 or batch.micro * seq_len <= 16384
        assert reason.startswith("auto: ")


@pytest.mark.parametrize(
    ("rows", "dp", "others", "micro", "reason"),
    [
        (64, 8, {"seq_len": 512}, 8, "auto: all of a rank's rows"),
        (512, 8, {"seq_len": 2048}, 8, "auto: largest divisor of 64 rows within 16384 tokens a micro-batch"),
        (512, 8, {"seq_len": 2048, "device": "cpu"}, 2, "within 4096 tokens"),
        (64, 1, {"seq_len": 128, "pipeline": 4}, 4, "within 16 micro-batches for 4 stages"),
        (8, 1, {"seq_len": 128, "pipeline": 4}, 1, "within 16 micro-batches for 4 stages"),
        (512, 8, {"seq_len": 128, "most_rows": 3}, 2, "within memory for 3 rows"),
        (512, 8, {"seq_len": 128, "most_rows": 0}, 1, "within memory for 0 rows"),
    ],
)
def test_auto_explains_itself(rows: int, dp: int, others: dict[str, int], micro: int, reason: str) -> None:
    batch, said = plan_batch(rows, dp, **others)  # type: ignore[arg-type]
    assert batch.micro == micro
    assert reason in said


def test_given_values_are_kept() -> None:
    assert plan_batch(64, 4, micro=2)[0].accumulation == 8
    assert plan_batch(64, 4, accumulation=2)[0].micro == 8


@pytest.mark.parametrize(
    ("rows", "dp", "others", "message"),
    [
        (30, 8, {}, "30 rows can't be shared by 8 data-parallel ranks; use 24 or 32 rows"),
        (3, 8, {}, "use 8 rows"),
        (48, 2, {"micro": 7}, "24 rows of a rank don't divide into micro-batches of 7; use 6 or 8"),
        (48, 2, {"micro": 50}, "use 24"),
        (48, 2, {"accumulation": 5}, "24 rows of a rank don't divide into 5 micro-batches; use 4 or 6"),
    ],
)
def test_what_does_not_divide_names_what_would(
    rows: int, dp: int, others: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_batch(rows, dp, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 8, 97, 512])
@pytest.mark.parametrize("dp", [1, 3, 8, 24])
@pytest.mark.parametrize("others", [{}, {"micro": 7}, {"accumulation": 5}, {"pipeline": 2}, {"most_rows": 3}])
def test_a_run_that_goes_on_is_shared_by_any_ranks(rows: int, dp: int, others: dict[str, int]) -> None:
    batch, _ = plan_batch(rows, dp, pads=True, **others)  # type: ignore[arg-type]
    assert (batch.rows, batch.dp) == (rows, dp)
    assert rows <= batch.places
    assert batch.micro <= others.get("micro", 16) or "accumulation" in others
    assert batch.accumulation == others.get("accumulation", batch.accumulation)
    if "accumulation" not in others:
        assert batch.micro * (batch.accumulation - 1) < -(-rows // dp), "a micro-batch that no rank needs"
    smaller = (batch.micro - 1) * batch.accumulation * dp
    assert smaller < rows, "the same micro-batches could be smaller"


@pytest.mark.parametrize("others", [{}, {"micro": 2}, {"accumulation": 4}, {"pipeline": 2}])
def test_what_divides_is_shared_as_ever(others: dict[str, int]) -> None:
    assert plan_batch(512, 8, pads=True, **others) == plan_batch(512, 8, **others)  # type: ignore[arg-type]


def test_empty_places_are_told() -> None:
    batch, reason = plan_batch(512, 24, seq_len=2048, most_rows=2, pads=True)
    assert batch.split == (
        "micro 2 × accumulation 11 × 24 data-parallel ranks, 22 places each: 16 of 528 are empty (3%)"
    )
    assert reason == "auto: fewest micro-batches of 22 rows within memory for 2 rows"
    assert "empty" not in plan_batch(512, 32)[0].split


def test_topology_shares_the_world() -> None:
    assert Topology(8, 2).dp == 4
    with pytest.raises(AssertionError, match="8 ranks don't divide into 3 stages"):
        Topology(8, 3)
