"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llmtrain.config.schema import RunConfig

Decay = Literal["cosine", "linear", "constant"]


def is_due(step: int, every: int) -> bool:
    """Whether what comes `every` so many steps (0: never) comes after `step` of them."""
    return every > 0 and step % every == 0


@dataclass(frozen=True)
class Schedule:
    """Linear warmup to `peak_lr`, then decay to `min_lr`, which the last step has.

    Steps count from 0, and no step has a rate of 0 unless `min_lr` is 0: the first has
    peak_lr / warmup_steps. After the last step the rate stays.
    """

    steps: int
    warmup_steps: int
    decay: Decay
    peak_lr: float
    min_lr: float

    def __post_init__(self) -> None:
        assert self.steps >= 1, f"no steps: {self}"
        assert 0 <= self.warmup_steps <= self.steps, f"warmup longer than the run: {self}"

    def lr(self, step: int) -> float:
        """The rate of step `step` (0 = the first)."""
        assert step >= 0, f"steps count from 0, not {step}"
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.peak_lr
        peak_step = max(self.warmup_steps, 1) - 1
        length = self.steps - 1 - peak_step
        share = min(1.0, (step - peak_step) / length) if length > 0 else float(step > peak_step)
        fall = share if self.decay == "linear" else (1 - math.cos(math.pi * share)) / 2
        return self.peak_lr + (self.min_lr - self.peak_lr) * fall


def steps_for_tokens(tokens: float, rows: int, seq_len: int) -> int:
    """Steps that see at least `tokens` tokens."""
    return max(1, math.ceil(tokens / (rows * seq_len)))


def steps_for_epochs(epochs: float, epoch_rows: int, rows: int) -> int:
    """Steps that see at least `epochs` times the rows of one epoch."""
    return max(1, math.ceil(round(epochs * epoch_rows / rows, 6)))  # 0.7 * 10 is a little more than 7


def steps_of(run: RunConfig, epoch_rows: int | None) -> int:
    """The steps of a run, however its length was given; `epoch_rows` are the rows of one epoch."""
    asked = run.schedule
    if asked.steps is not None:
        return asked.steps
    if asked.tokens is not None:
        return steps_for_tokens(asked.tokens, run.batch.rows, run.data.seq_len)
    assert asked.epochs is not None, "the schema lets steps, tokens or epochs be given"
    assert epoch_rows is not None, "schedule.epochs was planned without the rows of an epoch"
    return steps_for_epochs(asked.epochs, epoch_rows, run.batch.rows)


def schedule_of(run: RunConfig, steps: int) -> Schedule:
    """The learning rate of a run of `steps` steps, whose warmup must be no longer."""
    asked, peak = run.schedule, run.optimizer.lr
    warmup = warmup_steps(asked.warmup, steps)
    return Schedule(steps, warmup, asked.decay, peak, peak * asked.min_lr_ratio)


def warmup_steps(warmup: float, steps: int) -> int:
    """`warmup` below 1 is a share of the steps (rounded up), from 1 on their number."""
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)
