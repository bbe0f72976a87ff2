"""A run of scripted steps whose order of things a test looks at."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from small_runs import ScriptedEngine, write_run

from llmtrain.checkpoint.background import SaveEnd
from llmtrain.config.load import load_run
from llmtrain.config.world import World
from llmtrain.engine.watchdog import Watchdog
from llmtrain.health import Health, PoisonedError
from llmtrain.held_out import evaluation_missing
from llmtrain.plan.plan import Plan, make_plan
from llmtrain.report.metrics import read_metrics
from llmtrain.report.run_folder import RunFolder
from llmtrain.report.run_log import RunLog, Speed
from llmtrain.stopping import StopRequest
from llmtrain.train import train


class NumberedBatches:
    """Batches whose rows are the step's number."""

    def at(self, step: int) -> Any:
        return step


class Parts:
    """Held-out rows of which the loop takes one part after the other."""

    def __init__(self, *names: str):
        self.names = names

    def parts(self, rows: int) -> tuple[str, ...]:
        return self.names


class ScriptedSaver:
    """A save ends with the exchange after the next step; `waited`: the steps that were waited for."""

    def __init__(self, engine: ScriptedEngine, log: RunLog):
        self.engine, self.calls, self.log = engine, engine.calls, log
        self.updates: dict[int, int] = {}
        self.waited: list[int] = []
        self.under_way: SaveEnd | None = None
        self.saved: list[SaveEnd] = []
        self.poisoned: set[int] = set()  # steps after which the weights are found not to be finite

    def state(self) -> object:
        return None if self.under_way is None else "done"

    def settle(self, states: list[Any]) -> None:
        assert states[0] == self.state(), "the exchange carries what every rank said"
        if self.under_way is not None:
            self.log.save_ended(self.under_way)
            self.saved.append(self.under_way)
            self.under_way = None

    def finish(self) -> None:
        self.settle([self.state()])

    def newest(self) -> Any:
        last = self.saved[-1] if self.saved else None
        if last is None:
            return None
        manifest, scalars = SimpleNamespace(tokens=last.tokens), {"updates": self.updates[last.step]}
        return SimpleNamespace(step=last.step, manifest=manifest, scalars=scalars)

    def save(self, step: int, tokens: int, wait: bool) -> None:
        if step in self.poisoned:
            self.poisoned.remove(step)
            raise PoisonedError(f"after step {step} the weights are not finite")
        self.calls.append(("save", step, tokens))
        self.updates[step] = self.engine.updates
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
        self.stop = StopRequest()
        self.evaluation: Any = Parts("held out")
        self.poisoned: set[int] = set()

    def run(self, start: int = 0, tokens: int = 0) -> list[tuple[Any, ...]]:
        speed = Speed(None, None)
        log = RunLog(self.plan, self.folder, start, tokens, speed=speed, eval_bytes=15.0, writes=True)
        engine, batches, saver = self.engine, NumberedBatches(), ScriptedSaver(self.engine, log)
        self.waited, saver.poisoned = saver.waited, self.poisoned
        health = Health(self.plan.run.health, log.history(), saver.newest, self._load)
        watch = Watchdog(World(0, 1, 0, 1, "none"), self.folder.logs, 0.0)
        rows = self.evaluation
        first = evaluation_missing(self.plan, rows, self.folder.metrics, start)
        try:
            train(self.plan, engine, batches, rows, log, saver, self.stop, health, watch, start, first)  # type: ignore[arg-type]
        finally:
            log.close()
        return self.engine.calls

    def _load(self, saved: Any) -> None:
        self.engine.calls.append(("load", saved.step))
        self.engine.step, self.engine.updates = saved.step, saved.scalars["updates"]

    def records(self, kind: str) -> list[int]:
        return [r["step"] for r in read_metrics(self.folder.metrics) if kind in r]

    def lr(self, step: int) -> float:
        return self.plan.schedule.lr(step)
