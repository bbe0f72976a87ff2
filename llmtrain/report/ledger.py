"""ledger.json: what befell a run, start by start, and which steps it passes over. Replaced whole, never torn.

    starts     each start: when, from which step, on what, what it lost of the start before, how it ended
    rollbacks  each time the run went back: from and to which step, why, and the steps passed over since

Only the passed-over steps are an input of the run: a resume repeats them. All else is for people.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.errors import DataError
from llmtrain.report.metrics import read_metrics
from llmtrain.report.run_folder import unwritable

SPIKE_WINDOW = 128  # losses that decide what a spike is


class Ledger:
    """The ledger of one run folder; rank 0 keeps it. Raises EngineError when it can't be written."""

    def __init__(self, path: Path):
        self.path = path
        self.content = read_ledger(path)

    def start(self, entry: Mapping[str, Any], metrics: Path, last_hang: str = "") -> None:
        """A start from `entry["from_step"]`; one that never said how it ended hung, or was killed."""
        starts, now = self.content["starts"], time.time()
        if starts and starts[-1]["ended"] is None:
            cause = f"error: {last_hang}" if last_hang else "killed"
            seen = metrics.stat().st_mtime if metrics.exists() else starts[-1]["at"]
            starts[-1]["ended"] = {"at": max(seen, starts[-1]["at"]), "cause": cause}
        steps, seconds = lost(metrics, entry["from_step"])
        if entry["from_step"] == 0:
            self.content["rollbacks"] = []  # the checkpoints they went back to are gone
        starts.append({"at": now, **entry, "lost_steps": steps, "lost_s": seconds, "ended": None})
        self._write()

    def went_back(self, entry: Mapping[str, Any], metrics: Path) -> None:
        """The run goes back to `entry["to_step"]`; on disk before anything is loaded."""
        steps, seconds = lost(metrics, entry["to_step"])
        self.content["rollbacks"].append({"at": time.time(), **entry, "lost_steps": steps, "lost_s": seconds})
        self._write()

    def end(self, cause: str) -> None:
        """This start is over: `finished`, on whose request it stopped, or what went wrong."""
        if self.content["starts"]:
            self.content["starts"][-1]["ended"] = {"at": time.time(), "cause": cause}
            self._write()

    def _write(self) -> None:
        scratch = self.path.with_name(self.path.name + ".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("w", encoding="utf-8") as file:
                file.write(json.dumps(self.content, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error


def read_ledger(path: Path) -> dict[str, Any]:
    """The content of ledger.json, empty when there is none. Raises DataError when it is damaged."""
    if not path.exists():
        return {"format": "llmtrain-ledger", "version": 1, "starts": [], "rollbacks": []}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] == "llmtrain-ledger" and content["version"] == 1:
            return dict(content)
        problem = f"version {content['version']!r} is not 1"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise DataError(
        f"{path} can't be read ({problem}), and it says which steps the run passes over: restore it from a "
        "copy, or remove it if the run never went back to a checkpoint"
    )


def starts_so_far(path: Path) -> int:
    """How many starts a run had."""
    return len(read_ledger(path)["starts"])


def lost(metrics: Path, step: int) -> tuple[int, float]:
    """Steps that were trained beyond `step`, and their seconds: what going back there costs."""
    seconds = [r["step_s"] for r in read_metrics(metrics) if r["step"] > step and "step_s" in r]
    return len(seconds), sum(seconds)


def history(metrics: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """What later steps are judged by, as the run folder has it; see `llmtrain.health`."""
    losses: list[float] = []
    skipped = 0
    for record in read_metrics(metrics):
        if "skipped" not in record:
            continue
        skipped = skipped + 1 if record["skipped"] else 0
        if isinstance(record["loss"], float) and math.isfinite(record["loss"]):
            losses.append(record["loss"])
    return {
        "losses": losses[-SPIKE_WINDOW:],
        "skipped": skipped,
        "passed_over": [rollback["passed_over"] for rollback in content["rollbacks"]],
        "went_back_to": [rollback["updates"] for rollback in content["rollbacks"]],
    }
