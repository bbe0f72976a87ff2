"""lr(step) is pure, starts above zero and ends where it should."""

from __future__ import annotations

import pytest

from llmtrain.plan.schedule import Decay, Schedule, steps_for_tokens, warmup_steps


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_warmup_is_linear_and_never_zero(decay: Decay) -> None:
    schedule = Schedule(100, 10, decay, 1.0, 0.1)
    assert [schedule.lr(step) for step in range(10)] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert schedule.lr(0) == pytest.approx(0.1)


@pytest.mark.parametrize(("decay", "end"), [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_the_last_step_has_the_final_rate(decay: Decay, end: float, warmup: int) -> None:
    schedule = Schedule(100, warmup, decay, 1.0, 0.1)
    assert schedule.lr(max(warmup, 1) - 1) == pytest.approx(1.0)
    assert schedule.lr(99) == pytest.approx(end)
    assert schedule.lr(10_000) == pytest.approx(end)
    rates = [schedule.lr(step) for step in range(max(warmup, 1) - 1, 100)]
    assert rates == sorted(rates, reverse=True)


def test_halfway_values() -> None:
    linear, cosine = (Schedule(101, 0, decay, 1.0, 0.0) for decay in ("linear", "cosine"))
    assert linear.lr(50) == pytest.approx(0.5)
    assert cosine.lr(50) == pytest.approx(0.5)
    assert cosine.lr(25) > linear.lr(25)
    assert cosine.lr(75) < linear.lr(75)


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_run_of_one_step_trains_at_the_peak(warmup: int) -> None:
    assert Schedule(1, warmup, "cosine", 1.0, 0.0).lr(0) == 1.0


def test_a_run_that_only_warms_up_reaches_the_peak_last() -> None:
    schedule = Schedule(4, 4, "cosine", 1.0, 0.1)
    assert [schedule.lr(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule.lr(4) == pytest.approx(0.1)


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (64 * 128, 1), (64 * 128 + 1, 2), (1e9, 122071)])
def test_tokens_round_up_to_steps(tokens: float, steps: int) -> None:
    assert steps_for_tokens(tokens, 64, 128) == steps


@pytest.mark.parametrize(
    ("warmup", "steps"), [(0, 0), (0.02, 6), (0.0001, 1), (0.999, 300), (1, 1), (50, 50)]
)
def test_warmup_below_one_is_a_share(warmup: float, steps: int) -> None:
    assert warmup_steps(warmup, 300) == steps
