"""Training health: which losses are spikes, when a run goes back, and which steps it then passes over.

Every rank judges the same numbers alike. What was decided before a resume is read back from the run folder
(the window of losses from metrics.jsonl, the passed-over steps from ledger.json), so that a resumed run
decides as the undisturbed one would have. Steps are numbered as there: the first is 1.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrain.config.schema import HealthSection
from llmtrain.errors import EngineError
from llmtrain.report.ledger import SPIKE_WINDOW

if TYPE_CHECKING:
    from llmtrain.checkpoint import Checkpoint, Saver
    from llmtrain.engine.seam import Comm, StepResult
    from llmtrain.report.run_log import RunLog

MOST_ROLLBACKS = 3  # to the same weights: going back there does not help
_FEWEST_LOSSES = 32  # before that there is nothing to compare with
_DEVIATIONS = 6.0  # of a normal distribution: one step in a thousand million by chance
_TO_SIGMA = 1.4826  # times the median absolute deviation is a normal distribution's standard deviation
_LEAST_RISE = 0.1  # of the median: in a very even run a smaller rise is no spike


class Spikes:
    """The losses of the last steps, and above what the next one is a spike.

    Median and median absolute deviation (Hampel 1974): neither a spike nor a wrong number can raise the limit
    much, and losses that are not finite never get in.
    """

    def __init__(self, losses: Iterable[float] = ()):
        self._losses = deque(losses, maxlen=SPIKE_WINDOW)

    def limit(self) -> float:
        """A loss above this is a spike; infinite while too few losses are known."""
        if len(self._losses) < _FEWEST_LOSSES:
            return math.inf
        median = statistics.median(self._losses)
        spread = statistics.median(abs(loss - median) for loss in self._losses)
        return median + max(_DEVIATIONS * _TO_SIGMA * spread, _LEAST_RISE * abs(median))

    def add(self, loss: float) -> None:
        """Takes in the loss of a step."""
        if math.isfinite(loss):
            self._losses.append(loss)


@dataclass(frozen=True)
class Fault:
    """Why the run must go back: the steps that are to blame, and what was wrong with them."""

    first: int
    last: int
    why: str


class PoisonedError(EngineError):
    """The weights themselves are not finite any more; nothing of them may be saved."""


class Health:
    """Judges each step. `find` gives the newest good checkpoint, `load` puts it in place, on all ranks."""

    def __init__(
        self,
        rules: HealthSection,
        history: Mapping[str, Any],
        find: Callable[[], Checkpoint | None],
        load: Callable[[Checkpoint], None],
    ):
        self._rules, self._find, self._load = rules, find, load
        self._recall(history)

    def _recall(self, history: Mapping[str, Any]) -> None:
        """Takes over what the run folder says (`RunLog.history`)."""
        self._spikes = Spikes(history["losses"])
        self._skipped: int = history["skipped"]  # steps in a row, up to now
        self._passed_over: list[list[int]] = history["passed_over"]
        self._went_back_to: list[int] = history["went_back_to"]  # updates behind the checkpoints

    def passes_over(self, step: int) -> bool:
        """Whether the rows of `step` are not to be trained on."""
        return any(first <= step <= last for first, last in self._passed_over)

    @property
    def most_loss(self) -> float:
        """The loss above which the next step must not touch a weight."""
        return self._spikes.limit() if self._rules.on_spike == "skip" else math.inf

    @property
    def doubtful(self) -> bool:
        """The last step was skipped: no moment for a checkpoint that others are to be measured by."""
        return self._skipped > 0

    def is_spike(self, result: StepResult) -> bool:
        """Whether this step's loss, not yet taken in, is a spike."""
        return result.withheld or (math.isfinite(result.loss) and result.loss > self._spikes.limit())

    def take(self, step: int, result: StepResult) -> Fault | None:
        """Takes in one step; what is wrong enough to go back for. Raises EngineError to stop at a spike."""
        spike, limit = self.is_spike(result), self._spikes.limit()
        self._spikes.add(result.loss)
        self._skipped = self._skipped + 1 if result.skipped else 0
        if self._skipped >= self._rules.skips:
            why = "had a loss or gradient that is not finite, a spike, or no token to train on"
            first = step - self._skipped + 1
            return Fault(first, step, f"{self._skipped} steps in a row, {first} to {step}, {why}")
        if spike and self._rules.on_spike in ("rollback", "stop"):
            why = f"the loss of step {step} is a spike: {result.loss:.4f}, above {limit:.4f}"
            if self._rules.on_spike == "stop":
                raise EngineError(f"{why} (health.on_spike: stop); nothing was saved since")
            return Fault(step, step, why)
        return None

    def go_back(self, fault: Fault, run_log: RunLog, saver: Saver, comm: Comm) -> int:
        """Puts the newest good checkpoint in place and passes over the steps to blame; its step.

        When those weights were gone back to before, all steps since are passed over: what led there may be
        to blame too. Raises EngineError when there is none, or when going back there `MOST_ROLLBACKS` times
        has not helped.
        """
        saver.finish()
        checkpoint = self._find()
        if checkpoint is None:
            raise EngineError(f"{fault.why}, and there is no checkpoint yet to go back to. {_ADVICE}")
        step = checkpoint.step
        updates = int(checkpoint.scalars["updates"])
        before = self._went_back_to.count(updates)
        if before >= MOST_ROLLBACKS:
            raise EngineError(
                f"{fault.why}; the run went back to the weights of step {step} {before} times and it did not "
                f"help, so it stops. {_ADVICE}"
            )
        first = step + 1 if before else max(fault.first, step + 1)
        back = {
            "from_step": fault.last,
            "to_step": step,
            "updates": updates,
            "passed_over": [first, fault.last],
            "why": fault.why,
        }
        run_log.went_back(back, checkpoint.manifest.tokens)
        self._load(checkpoint)
        history: Any = comm.broadcast(run_log.history())
        self._recall(history)
        return step


_ADVICE = "A lower optimizer.lr, a longer schedule.warmup or other data may help"
