"""A rank that is slower than its peers is told once, and told again when it is not any more."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_ledger import trained

from llmtrain import cli
from llmtrain.report.metrics import read_metrics
from llmtrain.report.run_folder import RunFolder
from llmtrain.report.run_log import RunLog, Speed
from llmtrain.report.stragglers import WINDOW, Stragglers, episodes

STEP_S = 2.0  # longer than a slice: each step is one
Told = list[tuple[int, int, bool]]


def told(steps: list[list[float]], dp: int) -> Told:
    """(step, rank, slow) of all that is told of steps in which the ranks work so many seconds."""
    stragglers, found = Stragglers(dp), []
    for step, busy in enumerate(steps, 1):
        found += [(step, rank, slow) for rank, _, slow in stragglers.add(busy)]
    return found


def noisy(count: int, ranks: int, slow: dict[int, float] | None = None) -> list[list[float]]:
    draw = random.Random(3)
    factors = [(slow or {}).get(rank, 1.0) for rank in range(ranks)]
    return [[STEP_S * draw.uniform(0.7, 1.4) * factor for factor in factors] for _ in range(count)]


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
def test_a_slow_rank_is_told_and_its_recovery(ranks: int) -> None:
    rank = ranks - 1
    steps = noisy(3 * WINDOW, ranks, {rank: 3.0}) + noisy(2 * WINDOW, ranks)
    assert told(steps, ranks) == [(WINDOW, rank, True), (4 * WINDOW, rank, False)]


def test_the_ratio_is_that_to_the_middle_of_the_peers() -> None:
    stragglers = Stragglers(4)
    found = [each for _ in range(WINDOW) for each in stragglers.add([2.0, 2.0, 5.8, 2.2])]
    assert found == [(2, pytest.approx(2.9), True)]


def test_chance_is_no_straggler() -> None:
    assert told(noisy(200 * WINDOW, 8), 8) == []


def test_a_long_pause_is_no_straggler() -> None:
    steps = noisy(2 * WINDOW, 2)
    steps[5][1] = 600.0
    assert told(steps, 2) == []


def test_quick_steps_are_judged_by_time() -> None:
    slow = [[0.01, 0.03]] * 400  # a few seconds of a machine that is busy elsewhere
    assert told([[0.01, 0.01]] * 1000 + slow + [[0.01, 0.01]] * 3000, 2) == []
    assert [each[1:] for each in told(slow * 5, 2)] == [(1, True)]


def test_a_stage_of_a_pipeline_is_compared_with_itself() -> None:
    assert told([[2.0, 2.1, 9.0, 9.1]] * WINDOW, 2) == []
    assert told([[2.0, 2.1, 9.0, 30.0]] * WINDOW, 2) == [(WINDOW, 3, True)]
    assert told([[2.0, 9.0]] * WINDOW, 1) == [], "nobody does the same work"


def test_steps_that_trained_nothing_say_nothing() -> None:
    steps = [[2.0, 6.0], [0.0, 0.0]] * WINDOW
    assert told(steps, 2) == [(2 * WINDOW - 1, 1, True)]


def plan(world: int) -> Any:
    return SimpleNamespace(
        topology=SimpleNamespace(dp=world, world=world),
        schedule=SimpleNamespace(steps=100),
        run=SimpleNamespace(log=SimpleNamespace(every=10, tensorboard=False)),
    )


def test_it_stands_on_the_screen_in_the_metrics_and_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    trained(folder, 0, 2 * WINDOW)
    log = RunLog(plan(2), folder, 2 * WINDOW, 0, speed=Speed(None, None), eval_bytes=None, writes=True)
    log.hosts = ["node-7", "node-8"]
    for step in range(1, 2 * WINDOW + 1):
        log.worked(step, [2.0, 6.0 if step <= WINDOW else 2.0])
    log.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"warning: after step {WINDOW}, rank 1 on node-8 is slow: its own work takes 3.0 times as long as "
        "its peers' takes",
        f"after step {2 * WINDOW}, rank 1 on node-8 is not slow any more",
    ]
    events = [record for record in read_metrics(folder.metrics) if "slow_rank" in record]
    assert [(e["step"], e["slow_rank"], e["host"], e["ratio"], e["recovered"]) for e in events] == [
        (WINDOW, 1, "node-8", 3.0, False),
        (2 * WINDOW, 1, "node-8", 1.0, True),
    ]
    assert cli.main(["report", str(folder.path)]) == 0
    line = f"rank 1 on node-8 slow (3.0 times its peers), seen in step {WINDOW} to {2 * WINDOW}"
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert cli.main(["report", str(folder.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slow_ranks"] == [line]


def test_an_episode_may_end_with_the_run() -> None:
    event = {"slow_rank": 0, "host": "", "ratio": 2.0, "recovered": False}
    lines = episodes([{"step": 1_234, **event}])
    assert lines == ["rank 0 slow (2.0 times its peers), seen in step 1,234"]
