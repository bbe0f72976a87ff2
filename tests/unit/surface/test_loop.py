"""The loop owns the order of things; a scripted engine shows the order."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from small_runs import AloneComm, ScriptedEngine, write_run

from llmtrain.checkpoint.background import SaveEnd
from llmtrain.config.load import load_run
from llmtrain.errors import EngineError, StopRequested
from llmtrain.plan.plan import Plan, make_plan
from llmtrain.report.metrics import read_metrics
from llmtrain.report.run_folder import RunFolder
from llmtrain.report.run_log import RunLog, Speed
from llmtrain.train import MOST_SKIPS, StopSignal, train


class NumberedBatches:
    """Batches whose rows are the step's number."""

    def at(self, step: int) -> Any:
        return step


class ScriptedSaver:
    """A save ends with the exchange after the next step; `waited`: the steps that were waited for."""

    def __init__(self, calls: list[tuple[Any, ...]], log: RunLog):
        self.calls, self.log = calls, log
        self.waited: list[int] = []
        self.under_way: SaveEnd | None = None

    def state(self) -> object:
        return None if self.under_way is None else "done"

    def settle(self, states: list[Any]) -> None:
        assert states[0] == self.state(), "the exchange carries what every rank said"
        if self.under_way is not None:
            self.log.save_ended(self.under_way)
            self.under_way = None

    def save(self, step: int, tokens: int, wait: bool) -> None:
        self.calls.append(("save", step, tokens))
        self.under_way = SaveEnd(step, tokens, Path(f"step-{step}"), "", 0.1, 0.2)
        if wait:
            self.waited.append(step)
            self.settle([self.state()])


class Scene:
    """A run of scripted steps in `folder`; `calls` tells what happened in which order."""

    def __init__(self, folder: Path, **changes: Any):
        self.plan: Plan = make_plan(load_run(write_run(folder, folder / "data", **changes)), 1, "cpu")
        self.folder = RunFolder(folder / "run")
        self.engine = ScriptedEngine()
        self.stop = StopSignal()
        self.evaluation: Any = "held out"

    def run(self, start: int = 0, tokens: int = 0) -> list[tuple[Any, ...]]:
        speed = Speed(None, None)
        log = RunLog(self.plan, self.folder, start, tokens, speed=speed, eval_bytes=15.0, writes=True)
        engine, batches, saver = self.engine, NumberedBatches(), ScriptedSaver(self.engine.calls, log)
        self.waited = saver.waited
        try:
            train(self.plan, engine, batches, self.evaluation, log, saver, self.stop, start)  # type: ignore[arg-type]
        finally:
            log.close()
        return self.engine.calls

    def lr(self, step: int) -> float:
        return self.plan.schedule.lr(step)


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
    assert expected | {"step", "skipped"} == set(records[1])
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


def test_a_run_whose_steps_are_never_finite_is_ended(tmp_path: Path) -> None:
    scene = Scene(tmp_path, schedule={"steps": 60}, checkpoint={"every": 10}, eval={"rows": 5})
    scene.engine.skips = frozenset(range(12, 60))
    with pytest.raises(EngineError, match=rf"{MOST_SKIPS} steps in a row, up to step 32, .*: step-30"):
        scene.run()


def test_skips_that_end_do_not_add_up(tmp_path: Path) -> None:
    scene = Scene(tmp_path, schedule={"steps": 60})
    scene.engine.skips = frozenset(step for step in range(60) if step % MOST_SKIPS)
    assert scene.run()[-1][:2] == ("save", 60)


def test_a_stop_request_finishes_the_step_saves_and_says_so(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.stop.requested = True
    with pytest.raises(StopRequested, match="stopped on request after step 1 of 6") as caught:
        scene.run()
    assert caught.value.exit_status == 75
    assert scene.engine.calls[-1] == ("save", 1, 10) and scene.waited == [1]


def test_one_rank_that_was_asked_stops_them_all(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.engine.comm = AloneComm()
    scene.engine.comm.votes = [[False, 10, None], [True, 5000, None]]
    with pytest.raises(StopRequested):
        scene.run()
    assert [r["memory_bytes"] for r in read_metrics(scene.folder.metrics) if "loss" in r] == [5000]


def test_a_request_during_the_last_step_is_a_finished_run(tmp_path: Path) -> None:
    scene = Scene(tmp_path, schedule={"steps": 1})
    scene.stop.requested = True
    assert scene.run()[-1] == ("save", 1, 10)


def test_signals_are_taken_and_a_launchers_echo_is_not_a_second_request() -> None:
    before = {number: signal.getsignal(number) for number in StopSignal.SIGNALS}
    try:
        stop = StopSignal().listen()
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
