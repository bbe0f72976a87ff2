"""One place for what the loop has to tell: the metrics file, the display, the log, TensorBoard."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.errors import EngineError
from llmtrain.plan.compute import mfu
from llmtrain.report import ledger, stragglers
from llmtrain.report.account import account
from llmtrain.report.metrics import MetricsFile
from llmtrain.report.progress import Progress, Silent, open_progress
from llmtrain.report.run_folder import unwritable
from llmtrain.report.scores import Scores, scores
from llmtrain.report.tensorboard import Events

if TYPE_CHECKING:
    from llmtrain.checkpoint import SaveEnd
    from llmtrain.engine.seam import EvalResult, StepResult
    from llmtrain.plan.plan import Plan
    from llmtrain.report.run_folder import RunFolder

log = logging.getLogger("llmtrain")


@dataclass(frozen=True)
class Speed:
    """What turns seconds into TFLOP/s and MFU; None where the model or the device's peak is unknown."""

    flops_per_token: float | None
    peak_flops: float | None


class RunLog:
    """What rank 0 writes and shows; on every other rank it keeps the log file and is silent."""

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        start: int,
        tokens: int,
        *,
        speed: Speed,
        eval_bytes: float | None,
        writes: bool,
        about: Mapping[str, Any] | None = None,
        last_hang: str = "",
    ):
        """Opens the run's records for a run that has `start` steps and `tokens` trained tokens behind it.

        `about` is what the ledger says of this start besides: topology, versions, launcher; None: nothing.
        `last_hang` is what the start before told of a hang.
        """
        self.plan, self.speed, self.eval_bytes, self.tokens = plan, speed, eval_bytes, tokens
        self.last_saved: Path | None = None
        self._failure = ""  # why metrics.jsonl can't be written now
        self.folder, self.writes = folder, writes
        self.stragglers = stragglers.Stragglers(plan.topology.dp)
        self.hosts: Any = [""] * plan.topology.world  # each rank's machine, once it is known
        steps, every = plan.schedule.steps, plan.run.log.every
        self.ledger = ledger.Ledger(folder.ledger) if writes else None
        if self.ledger and about is not None:
            self.ledger.start({"from_step": start, **about}, folder.metrics, last_hang)
        self._trained = False  # by this start
        self._open(start)
        self.progress: Progress = open_progress(steps, start, every) if writes else Silent()

    def _open(self, start: int) -> None:
        """metrics.jsonl and TensorBoard, without what they say of steps beyond `start`."""
        try:
            self.metrics = MetricsFile(self.folder.metrics, start) if self.writes else None
        except OSError as error:
            raise unwritable(self.folder.metrics, error) from error
        self.events = None
        if self.writes and self.plan.run.log.tensorboard:
            with self._events_may_fail():
                self.events = Events(self.folder.events, start)

    @contextlib.contextmanager
    def _events_may_fail(self) -> Iterator[None]:
        """They are a copy of what metrics.jsonl says."""
        try:
            yield
        except OSError as error:
            self.events = None
            log.warning("there are no more TensorBoard events (%s)", error.strerror or error)

    def history(self) -> dict[str, Any]:
        """What the run folder says of the steps so far, for `llmtrain.health`; empty on other ranks."""
        return ledger.history(self.folder.metrics, self.ledger.content) if self.ledger else {}

    def step(
        self,
        step: int,
        result: StepResult,
        lr: float,
        seconds: float,
        memory_bytes: int,
        spike: bool = False,
    ) -> None:
        """Optimizer step `step` (the first is 1) is done."""
        self.tokens += result.tokens
        self._trained = True
        positions_per_s = self.plan.tokens_per_step / seconds
        flops, ranks = self.speed.flops_per_token, self.plan.topology.world
        record = {
            "step": step,
            "tokens": self.tokens,
            "loss": result.loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "step_s": seconds,
            "tokens_per_s": result.tokens / seconds,
            "tflops": None if flops is None else positions_per_s * flops / ranks / 1e12,  # per rank
            "mfu": None if flops is None else mfu(positions_per_s, flops, self.speed.peak_flops, ranks),
            "memory_bytes": memory_bytes,
            "skipped": result.skipped,
        }
        if self.plan.run.precision == "fp16":
            record["loss_scale"] = result.loss_scale
        if spike:
            record["spike"] = True
            log.warning("step %d: the loss is a spike: %.4f", step, result.loss)
        self._write(record)
        self.progress.step(record)
        if result.skipped:
            why = f"loss {result.loss}, grad norm {result.grad_norm}"
            why = why if result.tokens else "its rows have no token that is trained on"
            log.warning("step %d was skipped, no weight was touched: %s", step, why)

    def worked(self, step: int, busy: Sequence[float]) -> None:
        """Each rank's seconds of work in this step; tells which rank became slow, or is not any more."""
        for rank, ratio, slow in self.stragglers.add(busy) if self.writes else ():
            record = {"step": step, "tokens": self.tokens, "slow_rank": rank, "host": self.hosts[rank]}
            self._write({**record, "ratio": ratio, "recovered": not slow})
            said = f"after step {step}, {stragglers.told(rank, self.hosts[rank], ratio, slow)}"
            log.warning(said)
            self.progress.note(f"{'warning: ' if slow else ''}{said}")

    def passed_over(self, step: int) -> None:
        """The rows of this step are not trained on, as the ledger says."""
        self._write({"step": step, "tokens": self.tokens, "passed_over": True})
        log.info("step %d is passed over", step)

    def went_back(self, back: Mapping[str, Any], tokens: int) -> None:
        """The run goes back, as the ledger's entry `back` says, to where `tokens` tokens had been trained."""
        first, last = back["passed_over"]
        where = f"going back to step {back['to_step']}, steps {first} to {last} are passed over from now on"
        self.note(f"{back['why']}: {where}")
        if self.ledger:
            self.ledger.went_back(back, self.folder.metrics)
        self._close_files()
        self._open(back["to_step"])
        self.tokens = tokens

    def evaluated(self, step: int, result: EvalResult) -> Scores:
        """The held-out rows were evaluated after `step` steps."""
        found = scores(result.loss_sum, result.tokens, self.eval_bytes)
        self._write({"step": step, "tokens": self.tokens, **found.record()})
        self.note(f"eval after step {step}: {found}")
        return found

    def save_ended(self, save: SaveEnd) -> None:
        """A checkpoint was committed, or lost; the steps may have gone on since."""
        record = {"step": save.step, "tokens": save.tokens, "save_s": save.total_s, "stall_s": save.stall_s}
        if save.folder is None:
            self._write({**record, "save_lost": save.why})
            log.error("%s", save.why)
            self.progress.note(f"error: {save.why}; last good checkpoint: {self.last_saved or 'none'}")
            return
        self.last_saved = save.folder
        self._write(record)
        seconds = f"{save.total_s:.2f} s, the steps stood still for {save.stall_s:.2f} s"
        self.note(f"saved step {save.step} in {save.folder} ({seconds})")

    def note(self, text: str) -> None:
        """Tells the screen and the log."""
        self.progress.note(text)
        log.info(text)

    def _write(self, record: dict[str, Any]) -> None:
        failure = self.metrics.write(record) if self.metrics else ""
        if failure != self._failure:
            self._failure = failure
            why = f"can't be written now ({failure}): the steps go on, their records are kept"
            path = self.folder.metrics
            self.note(f"warning: {path} {why}" if failure else f"{path} has all its records again")
        if self.events:
            with self._events_may_fail():
                self.events.write(record)

    def sync(self) -> None:
        """Makes what was told so far survive a power cut: before a checkpoint counts, its lines do.

        Raises EngineError when the disk does not take them.
        """
        try:
            if self.metrics:
                self.metrics.sync()
        except OSError as error:
            raise unwritable(self.folder.metrics, error) from error

    def _close_files(self) -> None:
        metrics, events = self.metrics, self.events
        self.metrics = self.events = None  # whatever happens now, nothing is closed twice
        lacks = metrics.close() if metrics else 0
        if lacks:
            self.note(f"error: {self.folder.metrics} lacks the last {lacks} records ({self._failure})")
        if events:
            with self._events_may_fail():
                events.close()

    def close(self, cause: str = "") -> None:
        """Closes files and lets go of the terminal; `cause` is why the run ends, for the ledger."""
        self._close_files()
        if self.ledger and cause:
            try:
                self.ledger.end(cause)
            except EngineError as error:  # the next start will call this one killed
                self.note(f"warning: {error}")
            else:
                if self._trained or cause == "finished":
                    self.note(account(self.folder.path).line())
        self.progress.close()
