"""The loop owns the order of things; a scripted engine shows the order."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from loop_scene import Scene

from llmtrain.errors import EngineError
from llmtrain.health import MOST_ROLLBACKS
from llmtrain.report.ledger import read_ledger
from llmtrain.report.metrics import read_metrics


def test_order_of_a_whole_run(tmp_path: Path) -> None:
    scene = Scene(tmp_path, checkpoint={"every": 4})
    lr = scene.lr
    evaluation = ("eval", "held out")
    assert scene.run() == [
        evaluation,
        *(("step", step, lr(step)) for step in (0, 1, 2)),
        evaluation,
        ("step", 3, lr(3)),
        ("save", 4, 40),
        *(("step", step, lr(step)) for step in (4, 5)),
        evaluation,
        ("save", 6, 60),
    ]
    records = list(read_metrics(scene.folder.metrics))
    assert scene.waited == [6], "only the last save is waited for"
    saves = [(r["step"], r["tokens"], r["stall_s"], r["save_s"]) for r in records if "save_s" in r]
    assert saves == [(4, 40, 0.1, 0.2), (6, 60, 0.1, 0.2)]
    records = [r for r in records if "save_s" not in r]
    assert [(r["step"], "eval_loss" in r) for r in records] == [
        (0, True),
        (1, False),
        (2, False),
        (3, False),
        (3, True),
        (4, False),
        (5, False),
        (6, False),
        (6, True),
    ]
    expected = {
        "tokens",
        "loss",
        "lr",
        "grad_norm",
        "step_s",
        "tokens_per_s",
        "tflops",
        "mfu",
        "memory_bytes",
    }
    assert expected | {"step", "time", "skipped"} == set(records[1])
    assert records[-2]["tokens"] == 60
    assert records[-1]["perplexity"] == pytest.approx(20.0855, rel=1e-4)
    assert records[-1]["bits_per_byte"] == pytest.approx(30 / 0.693147 / 15, rel=1e-4)


def test_a_resumed_run_starts_at_its_step_and_goes_on_counting(tmp_path: Path) -> None:
    scene = Scene(tmp_path, eval={"every": 0, "rows": 5})
    scene.engine.updates = 4
    calls = scene.run(start=4, tokens=400)
    assert calls == [
        ("step", 4, scene.lr(4)),
        ("step", 5, scene.lr(5)),
        ("eval", "held out"),
        ("save", 6, 420),
    ]


def test_a_run_without_held_out_rows_never_evaluates(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.evaluation = None
    assert {call[0] for call in scene.run()} == {"step", "save"}


def test_a_skipped_step_takes_its_rows_but_not_its_rate(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.engine.skips = frozenset({1})
    steps = [call[1:] for call in scene.run() if call[0] == "step"]
    assert steps == [
        (0, scene.lr(0)),
        (1, scene.lr(1)),
        *((step, scene.lr(step - 1)) for step in (2, 3, 4, 5)),
    ]
    assert [r["skipped"] for r in read_metrics(scene.folder.metrics) if "loss" in r].index(True) == 1


def test_skips_before_a_resume_still_count_for_the_rate(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.engine.updates = 3  # of 4 steps one was skipped
    steps = [call[2] for call in scene.run(start=4) if call[0] == "step"]
    assert steps == [scene.lr(3), scene.lr(4)]


SKIPS = 20  # in a row: health.skips as it is when nothing is said


def test_steps_that_are_never_finite_are_passed_over_after_going_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path, schedule={"steps": 60}, checkpoint={"every": 10}, eval={"rows": 5})
    scene.engine.bad_rows = frozenset(range(12, 37))
    calls = scene.run()
    # steps 13 to 32 are skipped, then passed over with the run back at 10; five more are only skipped
    assert [call for call in calls if call[0] == "load"] == [("load", 10)]
    assert scene.records("passed_over") == list(range(13, 33))
    every = [r["step"] for r in read_metrics(scene.folder.metrics) if "skipped" in r or "passed_over" in r]
    assert every == list(range(1, 61)), "a step is missing, or there twice"
    skipped = [r["step"] for r in read_metrics(scene.folder.metrics) if r.get("skipped")]
    assert skipped == list(range(33, 38))
    # no save is made of steps that moved nothing: the one that is due at 20 comes after the next that did
    assert [call[1] for call in calls if call[0] == "save"] == [10, 38, 40, 50, 60]
    assert [record["tokens"] for record in read_metrics(scene.folder.metrics)][-1] == (60 - 20) * 10
    (back,) = read_ledger(scene.folder.ledger)["rollbacks"]
    assert (back["from_step"], back["to_step"], back["passed_over"]) == (32, 10, [13, 32])
    assert back["lost_steps"] == 22 and "20 steps in a row, 13 to 32" in back["why"]


def test_a_resume_passes_over_what_was_passed_over(tmp_path: Path) -> None:
    scene = Scene(tmp_path, schedule={"steps": 60}, checkpoint={"every": 10}, eval={"rows": 5})
    scene.engine.bad_rows = frozenset(range(12, 33))
    scene.run()
    again = Scene(tmp_path, schedule={"steps": 60}, checkpoint={"every": 10}, eval={"rows": 5})
    again.engine.updates = again.engine.step = 10
    assert [call[1] for call in again.run(start=10, tokens=100) if call[0] == "step"][:4] == [10, 11, 32, 33]


def test_going_back_without_help_ends_the_run(tmp_path: Path) -> None:
    scene = Scene(tmp_path, schedule={"steps": 200}, checkpoint={"every": 10}, eval={"rows": 5})
    scene.engine.bad_rows = frozenset(range(12, 200))
    expected = rf"20 steps in a row, .* went back to the weights of step 10 {MOST_ROLLBACKS} times and it did"
    with pytest.raises(EngineError, match=expected):
        scene.run()
    assert [b["passed_over"] for b in read_ledger(scene.folder.ledger)["rollbacks"]] == [
        [13, 32],
        [11, 52],  # the second time, what led there is passed over too
        [11, 72],
    ]


def test_without_a_checkpoint_there_is_no_way_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path, schedule={"steps": 60}, health={"skips": 3})
    scene.engine.bad_rows = frozenset(range(60))
    with pytest.raises(EngineError, match="3 steps in a row, 1 to 3, .* no checkpoint yet to go back to"):
        scene.run()


def test_skips_that_end_do_not_add_up(tmp_path: Path) -> None:
    scene = Scene(tmp_path, schedule={"steps": 60})
    scene.engine.skips = frozenset(step for step in range(60) if step % SKIPS)
    assert scene.run()[-1][:2] == ("save", 60)


def test_poisoned_weights_are_not_saved_but_gone_back_from(tmp_path: Path) -> None:
    scene = Scene(tmp_path, schedule={"steps": 9}, checkpoint={"every": 3}, eval={"rows": 5})
    scene.poisoned = {6}
    calls = [call[:2] for call in scene.run() if call[0] in ("save", "load")]
    assert calls == [("save", 3), ("load", 3), ("save", 7), ("save", 9)]
    assert scene.records("passed_over") == [6]


def spiky(folder: Path, on_spike: str) -> Scene:
    scene = Scene(
        folder,
        schedule={"steps": 60},
        checkpoint={"every": 10},
        eval={"rows": 5},
        health={"on_spike": on_spike},
    )
    scene.engine.losses = {44: 9.0}  # all others are 2.0
    return scene


def test_a_spike_is_reported_and_nothing_else(tmp_path: Path) -> None:
    scene = spiky(tmp_path, "report")
    assert ("load", 40) not in scene.run()
    assert scene.records("spike") == [45]


def test_a_spike_can_be_withheld_from_the_weights(tmp_path: Path) -> None:
    scene = spiky(tmp_path, "skip")
    scene.run()
    spike = next(r for r in read_metrics(scene.folder.metrics) if "spike" in r)
    assert spike["step"] == 45 and spike["skipped"] and spike["loss"] == 9.0
    limits = [limit for _, limit in scene.engine.limits]
    assert limits[:32] == [math.inf] * 32 and limits[32] == pytest.approx(2.2)
    assert limits[45] == pytest.approx(2.2), "the spike itself must not raise the limit"


def test_a_spike_can_be_gone_back_from(tmp_path: Path) -> None:
    scene = spiky(tmp_path, "rollback")
    assert ("load", 40) in scene.run()
    assert scene.records("passed_over") == [45] and scene.records("spike") == []


def test_a_spike_can_stop_the_run(tmp_path: Path) -> None:
    scene = spiky(tmp_path, "stop")
    with pytest.raises(
        EngineError, match=r"loss of step 45 is a spike: 9.0000, above 2.2000 \(health.on_spike"
    ):
        scene.run()


def test_a_resume_next_to_a_spike_judges_as_the_undisturbed_run(tmp_path: Path) -> None:
    scene = spiky(tmp_path, "skip")
    scene.run()
    again = Scene(
        tmp_path,
        schedule={"steps": 60},
        checkpoint={"every": 10},
        eval={"rows": 5},
        health={"on_spike": "skip"},
    )
    again.engine.losses, again.engine.step, again.engine.updates = {44: 9.0}, 40, 40
    again.run(start=40, tokens=400)
    assert again.engine.limits == scene.engine.limits[40:]


def test_replicas_are_compared_when_it_is_due(tmp_path: Path) -> None:
    scene = Scene(tmp_path, schedule={"steps": 9}, health={"checksum_every": 4}, checkpoint={"every": 100})
    scene.run()
    assert scene.engine.compared == [3, 7, 8]  # steps 4 and 8, counted from 0, and the last


def test_no_step_is_saved_whose_replicas_were_not_compared(tmp_path: Path) -> None:
    changes = {"schedule": {"steps": 14}, "checkpoint": {"every": 5}, "eval": {"rows": 5}}
    scene = Scene(tmp_path, health={"checksum_every": 7}, **changes)
    scene.engine.bad_rows = frozenset({9, 10})  # the save that is due at 10 is owed until 12
    scene.run()
    saves = [call[1] for call in scene.engine.calls if call[0] == "save"]
    assert saves == [5, 12, 14]
    assert [step + 1 for step in scene.engine.compared] == [5, 7, 10, 11, 12, 14]


def test_replicas_are_never_compared_when_that_is_off(tmp_path: Path) -> None:
    scene = Scene(tmp_path, health={"checksum_every": 0}, checkpoint={"every": 2})
    scene.run()
    assert scene.engine.compared == []
