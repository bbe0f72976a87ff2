"""What is told of a run that goes on with other settings than its checkpoint's."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import write_run

from llmtrain.config.load import load_run
from llmtrain.plan.plan import Plan, make_plan
from llmtrain.report.changes import changes, schedule_change
from llmtrain.report.run_folder import resolved_yaml


def plan_of(path: Path, *overrides: str, ranks: int = 1) -> Plan:
    return make_plan(load_run(path, overrides), ranks, "cpu", epoch_rows=100)


def told(before: Plan, now: Plan) -> list[str]:
    return [change.told() for change in changes(resolved_yaml(before.run, {}), now)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, tmp_path / "data", optimizer={"lr": 0.003}).rename(tmp_path / "auto.yaml")


def test_a_run_that_goes_on_as_it_was_has_no_changes_in_any_world(run: Path) -> None:
    assert told(plan_of(run), plan_of(run)) == []
    assert told(plan_of(run), plan_of(run, ranks=2)) == [], "a micro-batch is chosen for the world"
    assert told(plan_of(run), plan_of(run, "batch.micro=2")) == ["batch.micro 4 → 2 (command line)"]


def test_every_change_is_told_with_where_it_comes_from(run: Path) -> None:
    before = plan_of(run)
    changed = [
        "optimizer.lr=1e-4",
        "schedule.steps=null",
        "schedule.epochs=2",
        "data.eval=[]",
        "kernels=reference",
    ]
    changed += ["data.train.0.weight=2", "model.config.rope_theta=5e5", "log.every=3"]
    assert sorted(told(before, plan_of(run, *changed))) == [
        f"data.eval.0.path {run.parent}/data → none (command line)",
        "data.eval.0.split valid → none (command line)",
        "data.eval.0.weight 1.0 → none (command line)",
        "data.train.0.weight 1.0 → 2.0 (command line)",
        "kernels auto → reference (command line)",
        "log.every 10 → 3 (command line)",
        "model.config.rope_theta none → 500000.0 (command line)",
        "optimizer.lr 0.003 → 0.0001 (command line)",
        "schedule.epochs none → 2.0 (command line)",
        "schedule.steps 6 → none (command line)",
    ]
    run.write_text(run.read_text().replace("0.003", "0.002"))
    line = 1 + run.read_text().splitlines().index("  lr: 0.002")
    assert told(before, plan_of(run)) == [f"optimizer.lr 0.003 → 0.002 ({run}:{line})"]
    without = plan_of(run, "optimizer={}")
    assert told(before, without) == ["optimizer.lr 0.003 → 0.0003 (default)"], "left out is a change too"


def test_what_another_version_wrote_is_compared_as_far_as_it_goes(run: Path) -> None:
    text = resolved_yaml(plan_of(run).run, {})
    older = "\n".join(line for line in text.splitlines() if "checksum_every" not in line)
    assert changes(older, plan_of(run)) == [], "a default that it did not have is no change"
    (change,) = changes(text + "new_key: 3\n", plan_of(run))
    assert str(change) == "new_key 3 → none (default)"
    assert schedule_change(text + "new_key: 3\n", plan_of(run, "optimizer.lr=1"), 3, 100) == ""
    assert changes("", plan_of(run)) == changes(": [", plan_of(run)) == []


def test_a_change_without_an_effect_says_so(run: Path, tmp_path: Path) -> None:
    source = [f"model={{source: {tmp_path}/a}}"]
    before, now = plan_of(run, *source), plan_of(run, f"model={{source: {tmp_path}/b}}")
    (line,) = told(before, now)
    assert line.endswith("/b (command line) has no effect: the weights are the checkpoint's")
    (change,) = changes(resolved_yaml(before.run, {}), plan_of(run, *source, "seed=5"))
    assert change.told(left=False) == "seed 1234 → 5 (command line) has no effect: every step is done"


def test_what_a_change_does_to_the_learning_rate_is_told(run: Path) -> None:
    def bent(*overrides: str) -> str:
        return schedule_change(resolved_yaml(plan_of(run).run, {}), plan_of(run, *overrides), 3, 100)

    assert bent("log.every=3") == bent("optimizer.weight_decay=0.5") == ""
    assert bent("optimizer.lr=0.0003") == "learning rate of the next step 0.00123 → 0.000123"
    told = "learning rate of the next step 0.00123 → 0.0003: its cosine decay is drawn anew"
    assert bent("schedule.steps=4") == f"{told}, to end at step 4, not 6"
    assert "to end at step 25, not 6" in bent("schedule.steps=null", "schedule.epochs=1")
