"""The evaluation while a run trains: in parts, so that a stop does not wait for the whole of it.

An evaluation that a stop abandons, or forestalls, is the first thing that the resumed run does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain.data.packed import PackedRows
from llmtrain.engine.seam import EvalResult
from llmtrain.engine.watchdog import Watchdog
from llmtrain.plan.plan import Plan
from llmtrain.plan.schedule import is_due
from llmtrain.report.metrics import read_metrics
from llmtrain.report.run_log import RunLog
from llmtrain.stopping import StopRequest, agreed, stopped, stopped_at

if TYPE_CHECKING:
    from llmtrain.engine.seam import Engine


class HeldOut:
    """The held-out rows of a run, if it has any, as many at a time as a step has."""

    def __init__(
        self,
        plan: Plan,
        rows: PackedRows | None,
        engine: Engine,
        run_log: RunLog,
        stop: StopRequest,
        watch: Watchdog,
    ):
        self._plan, self._parts = plan, rows.parts(plan.batch.rows) if rows else []
        self._engine, self._run_log, self._stop, self._watch = engine, run_log, stop, watch

    def due(self, step: int) -> bool:
        """Whether they are evaluated after `step` steps."""
        return bool(self._parts) and _due(self._plan, step)

    def evaluate(self, step: int) -> tuple[str, bool]:
        """Evaluates; why to stop now, and whether the evaluation was abandoned for it. All ranks agree."""
        loss_sum, tokens, stopping = 0.0, 0, ""
        for number, part in enumerate(self._parts, 1):
            self._watch.enter("evaluation", step)
            result = self._engine.evaluate(part)
            loss_sum, tokens = loss_sum + result.loss_sum, tokens + result.tokens
            stopping = agreed(self._engine.comm.gather(self._stop.reason))
            if stopping and number < len(self._parts):
                return stopping, True
        self._run_log.evaluated(step, EvalResult(loss_sum, tokens))
        return stopping, False

    def evaluate_first(self, step: int) -> None:
        """Evaluates what a start begins with. Raises StopRequested when that is abandoned: all is saved."""
        stopping, abandoned = self.evaluate(step) if self.due(step) else ("", False)
        if abandoned:
            steps = self._plan.schedule.steps
            raise stopped(stopping, stopped_at(step, steps))


def evaluation_missing(plan: Plan, rows: PackedRows | None, metrics: Path, step: int) -> bool:
    """Whether the evaluation that is due after `step` steps does not stand in the metrics."""
    if rows is None or not _due(plan, step):
        return False
    records = read_metrics(metrics) if step > 0 else ()  # a new run drops what is there
    return not any(record["step"] == step and "eval_loss" in record for record in records)


def _due(plan: Plan, step: int) -> bool:
    return step in (0, plan.schedule.steps) or is_due(step, plan.run.eval.every)
