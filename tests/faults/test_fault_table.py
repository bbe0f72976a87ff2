"""A sample of the fault table's rows that need whole runs; `benchmarks/faults.py` runs all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import rows_of_processes as processes
import rows_of_runs as runs
import rows_of_state as state
from whole_runs import Lab, committed, evaluations, losses

Row = Callable[[Lab, int, random.Random], state.Outcome]
SEED = 4


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, worlds: Any) -> Iterator[Lab]:
    yield Lab(tmp_path_factory.mktemp("faults"), worlds)


def broken(row: Row, lab: Lab, number: int) -> str:
    return row(lab, number, random.Random(SEED + number)).broken


@pytest.mark.parametrize(
    ("row", "number"),
    [
        (state.killed_anywhere, 1),
        (state.preempted_again_and_again, 1),
        (runs.edited, 7),
    ],
)
def test_a_run_that_was_killed_or_edited(lab: Lab, row: Row, number: int) -> None:
    assert not broken(row, lab, number)


@pytest.mark.parametrize("number", [0, 4])
def test_a_full_disk_loses_no_record(lab: Lab, number: int) -> None:
    try:
        assert not broken(runs.full_while_logging, lab, number)
    except state.NotHereError as error:
        pytest.skip(f"needs the right to mount a small disk: {error}")


def test_a_rank_that_leaves_early_ends_all_and_is_named(lab: Lab) -> None:
    assert not broken(processes.dead_rank, lab, processes.dying("exit 0", "forward"))


def test_a_stopped_rank_is_named_and_ends_the_run(lab: Lab) -> None:
    assert not broken(processes.hung_rank, lab, 0)


def test_a_slow_rank_is_named_and_nobody_once_it_has_recovered(lab: Lab) -> None:
    by_far = partial(processes.slow_rank, times=8.0)  # whatever else this machine is busy with
    assert not broken(by_far, lab, 1)


@pytest.mark.parametrize("how", ["one rank", processes.RESTARTS])
def test_a_stop_is_one_agreed_checkpoint_and_status_75(lab: Lab, how: str) -> None:
    assert not broken(processes.asked_to_stop, lab, processes.SIGNALS.index(how))


def test_a_stop_in_an_evaluation_leaves_it_to_the_resumed_run(lab: Lab) -> None:
    changes = {**state.KILLED, "deepspeed": "zero1"}
    golden, run = lab.golden(**changes), lab.run(**changes)
    said = lab.forked(run, fault={"rank": 1, "place": "evaluation", "step": 8, "kind": "ask"})
    assert "ended with 75" in said and "stopped on request (SIGTERM) after step 8 of 24" in said
    assert committed(run)[-1] == 8 and [step for step, _ in evaluations(run)] == [0]
    assert not lab.forked(run)
    assert [step for step, _ in evaluations(run)] == [0, 8, 16, 24]
    assert evaluations(run) == evaluations(golden)
    assert not state.differs(run, golden)


def test_a_stop_before_the_first_step_waits_for_none(lab: Lab) -> None:
    run = lab.run()
    said = lab.forked(run, fault={"rank": 1, "place": "opening", "kind": "ask"})
    assert "ended with 75" in said
    assert said.count("stopped on request (SIGTERM) before a step was made; the same command goes on") == 2
    assert not losses(run) and not committed(run)
    assert not lab.forked(run), "the same command does not go on"


def test_no_rank_outlives_torchrun(lab: Lab) -> None:
    assert not broken(processes.killed_launcher, lab, processes.LAYERS.index(("torchrun", 0)))
