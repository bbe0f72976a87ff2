"""`llmtrain report`: what a run's time went into, and what befell it, from metrics.jsonl and ledger.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmtrain.errors import DataError
from llmtrain.report.changes import Change
from llmtrain.report.ledger import read_ledger
from llmtrain.report.metrics import read_metrics
from llmtrain.report.progress import duration
from llmtrain.report.run_folder import RunFolder
from llmtrain.report.stragglers import episodes


@dataclass(frozen=True)
class Account:
    """Seconds are wall time; `useful_s` is that of the steps that stand and moved a weight."""

    step: int
    tokens: int
    useful_s: float
    lost_steps: int  # trained, and lost by a kill or by going back
    lost_s: float
    skipped: int  # steps that stand, but touched no weight
    passed_over: int
    saves: int  # committed
    stall_s: float  # how long the steps stood still for saves, lost ones too
    wall_s: float  # of all starts, each from its beginning to its end or last sign of life
    idle_s: float  # between them, when nothing ran
    starts: tuple[dict[str, Any], ...]
    rollbacks: tuple[dict[str, Any], ...]
    slow_ranks: tuple[str, ...]  # a line for each episode

    @property
    def goodput(self) -> float:
        """The share of the time of all starts that went into steps that stand."""
        return self.useful_s / self.wall_s if self.wall_s > 0 else 0.0

    def line(self) -> str:
        """All of it in one line."""
        parts = [
            _count(len(self.starts) - 1, "restart"),
            _count(len(self.rollbacks), "rollback"),
            f"{_count(self.lost_steps, 'step')} lost ({duration(self.lost_s)})",
            f"{self.skipped:,} skipped",
            f"{self.passed_over:,} passed over",
            f"{_count(self.saves, 'save')} that held it up for {self.stall_s:.1f} s",
        ]
        idle = f", with {duration(self.idle_s)} between starts," if self.idle_s >= 1 else ","
        took = f"{self.step:,} steps in {duration(self.wall_s)}{idle}"
        return f"{took} goodput {self.goodput:.1%}: {', '.join(parts)}"

    def as_text(self) -> str:
        """The line, then one line for each start, each rollback and each time a rank was slow."""
        lines = [self.line()]
        for number, start in enumerate(self.starts):
            ended = start["ended"] or {"cause": "running, or killed since"}
            lost = f", {_count(start['lost_steps'], 'step')} lost" if start["lost_steps"] else ""
            lines.append(f"start {number + 1}: from step {start['from_step']:,} on {_place(start)}{lost}")
            lines += [f"  {Change(**change)}" for change in start.get("changes", ())]
            lines.append(f"  ended: {ended['cause']}")
        for back in self.rollbacks:
            first, last = back["passed_over"]
            where = f"from step {back['from_step']:,} to {back['to_step']:,}"
            lines.append(f"rollback {where}, passing over {first:,} to {last:,}: {back['why']}")
        return "\n".join([*lines, *self.slow_ranks])

    def as_json(self) -> str:
        """For programs."""
        return json.dumps({**asdict(self), "goodput": self.goodput}, indent=1)


def account(folder: Path) -> Account:
    """The account of a run folder. Raises DataError when it is none."""
    run = RunFolder(folder)
    if not run.ledger.exists():
        raise DataError(f"{folder} has no {run.ledger.name}: give the folder of a run that was started")
    content, records = read_ledger(run.ledger), list(read_metrics(run.metrics))
    starts, rollbacks = content["starts"], content["rollbacks"]
    steps = [record for record in records if "skipped" in record]
    running_s = sum(_end(start, run.metrics) - start["at"] for start in starts)
    since_s = _end(starts[-1], run.metrics) - starts[0]["at"] if starts else 0.0
    events = [*starts, *rollbacks]
    return Account(
        step=max((record["step"] for record in records), default=0),
        tokens=max((record["tokens"] for record in records), default=0),
        useful_s=sum(record["step_s"] for record in steps if not record["skipped"]),
        lost_steps=sum(event["lost_steps"] for event in events),
        lost_s=sum(event["lost_s"] for event in events),
        skipped=sum(record["skipped"] for record in steps),
        passed_over=sum("passed_over" in record for record in records),
        saves=sum("stall_s" in record and "save_lost" not in record for record in records),
        stall_s=sum(record.get("stall_s", 0.0) for record in records),
        wall_s=running_s,
        idle_s=max(0.0, since_s - running_s),
        starts=tuple(starts),
        rollbacks=tuple(rollbacks),
        slow_ranks=tuple(episodes(records)),
    )


def _end(start: dict[str, Any], metrics: Path) -> float:
    """When a start ended; of one that runs, or was killed, its last sign of life."""
    if start["ended"]:
        return float(start["ended"]["at"])
    seen = metrics.stat().st_mtime if metrics.exists() else 0.0
    return float(max(seen, start["at"]))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _place(start: dict[str, Any]) -> str:
    where = start["topology"]
    ranks, stages = _count(where["world"], "rank"), _count(where["pipeline"], "stage")
    return f"{ranks} ({stages}, ZeRO-{where['zero_stage']}, {where['precision']})"
