"""Where in the loop a stop is heeded, what is saved then, and what the resumed run makes up for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loop_scene import Parts, Scene
from small_runs import AloneComm

from llmtrain.errors import StopRequested
from llmtrain.report.metrics import read_metrics


def test_a_stop_request_finishes_the_step_saves_and_says_so(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.stop.ask("a test")
    with pytest.raises(StopRequested, match=r"stopped on request \(a test\) after step 1 of 6") as caught:
        scene.run()
    assert caught.value.exit_status == 75
    assert scene.engine.calls[-1] == ("save", 1, 10) and scene.waited == [1]


def test_one_rank_that_was_asked_stops_them_all(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.evaluation = None
    scene.engine.comm = AloneComm()
    scene.engine.comm.votes = [["", 10, None, 1.0], ["SIGTERM", 5000, None, 1.0]]
    with pytest.raises(StopRequested):
        scene.run()
    assert [r["memory_bytes"] for r in read_metrics(scene.folder.metrics) if "loss" in r] == [5000]


def test_a_request_during_the_last_step_is_a_finished_run(tmp_path: Path) -> None:
    scene = Scene(tmp_path, schedule={"steps": 1})
    scene.evaluation = None
    scene.stop.ask("a test")
    assert scene.run()[-1] == ("save", 1, 10)


def told(scene: Scene) -> list[tuple[int, int, float | None, float | None]]:
    """What a run's metrics say of steps and evaluations, without what differs from start to start."""
    records = [record for record in read_metrics(scene.folder.metrics) if "save_s" not in record]
    return [(r["step"], r["tokens"], r.get("loss"), r.get("eval_loss")) for r in records]


def ask_in(scene: Scene, step: int, part: str) -> None:
    """The stop is asked for while `part` is evaluated after `step` steps, or in that step itself."""
    evaluate, train_step = scene.engine.evaluate, scene.engine.train_step

    def evaluating(rows: Any) -> Any:
        if (scene.engine.step, rows) == (step, part):
            scene.stop.ask("a test")
        return evaluate(rows)

    def training(*values: Any) -> Any:
        if (scene.engine.step, part) == (step - 1, "step"):
            scene.stop.ask("a test")
        return train_step(*values)

    scene.engine.evaluate, scene.engine.train_step = evaluating, training  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("step", "part"),
    [
        (step, part)
        for step in (0, 3, 6)
        for part in ("step", "first", "second")
        if (step, part) != (0, "step")
    ],
)
def test_no_stop_waits_for_an_evaluation_and_the_resumed_run_makes_it_first(
    tmp_path: Path, step: int, part: str
) -> None:
    for name in ("undisturbed", "stopped"):
        (tmp_path / name).mkdir()
    scenes = [Scene(tmp_path / name) for name in ("undisturbed", "stopped", "stopped")]
    undisturbed, stopped, resumed = scenes
    for scene in scenes:
        scene.evaluation = Parts("first", "second", "third")
    undisturbed.run()
    ask_in(stopped, step, part)
    where = f"after step {step} of 6" if step else "before a step was made"
    with pytest.raises(StopRequested, match=rf"stopped on request \(a test\) {where}; the same"):
        stopped.run()
    made = {"step": [], "first": [("eval", "first")], "second": [("eval", "first"), ("eval", "second")]}[part]
    saved = [("save", step, 10 * step)] if step else []
    expected = [*made, *saved]
    assert stopped.engine.calls[-len(expected) :] == expected and stopped.waited == [step] * bool(step)
    assert step not in stopped.records("eval_loss")
    resumed.engine.step = resumed.engine.updates = step
    assert resumed.run(step, 10 * step)[:3] == [("eval", name) for name in ("first", "second", "third")]
    assert told(resumed) == told(undisturbed)


def test_a_stop_in_the_last_part_of_an_evaluation_keeps_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    ask_in(scene, 3, "held out")
    with pytest.raises(StopRequested, match="after step 3 of 6"):
        scene.run()
    assert scene.engine.calls[-2:] == [("eval", "held out"), ("save", 3, 30)]
    assert scene.records("eval_loss") == [0, 3]


def test_a_stop_in_the_last_part_of_the_last_evaluation_is_a_finished_run(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    ask_in(scene, 6, "held out")
    assert scene.run()[-1] == ("save", 6, 60)


@pytest.mark.parametrize("step", [0, 2])
def test_a_step_that_is_left_for_a_stop_is_not_done_and_what_was_done_is_saved(
    tmp_path: Path, step: int
) -> None:
    scene = Scene(tmp_path)
    scene.evaluation = None
    train_step = scene.engine.train_step

    def leaving(*values: Any) -> Any:
        if scene.engine.step == step:
            scene.stop.ask("SIGTERM")
            return None
        return train_step(*values)

    scene.engine.train_step = leaving  # type: ignore[method-assign]
    where = f"after step {step} of 6" if step else "before a step was made"
    with pytest.raises(StopRequested, match=rf"stopped on request \(SIGTERM\) {where}"):
        scene.run()
    assert [call for call in scene.engine.calls if call[0] == "save"] == [("save", step, 10 * step)] * bool(
        step
    )
    assert scene.records("loss") == list(range(1, step + 1))
