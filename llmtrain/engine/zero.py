"""ZeRO stages 0 to 3: every rank has the whole model (or its part of each tensor) and its own rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from llmtrain.data.rows import Rows
from llmtrain.engine.base import DeepSpeedEngineBase
from llmtrain.engine.guard import withhold
from llmtrain.engine.microbatches import micro_batch
from llmtrain.engine.seam import EvalResult, StepResult


class ZeroEngine(DeepSpeedEngineBase):
    """accumulation × (forward, backward), then one update."""

    def _wrap_work(self) -> None:
        if self.plan.topology.zero_stage == 3:
            coordinator = self.deepspeed.optimizer.parameter_offload.get_param_coordinator()
            coordinator.fetch_sub_module = self._busy.waiting()(_unseen(coordinator.fetch_sub_module))
            coordinator.release_sub_module = _unseen(coordinator.release_sub_module)

    def train_step(
        self, rows: Rows, lr: float, step: int = 0, most_loss: float = math.inf, compare: bool = False
    ) -> StepResult | None:
        """See `Engine.train_step`."""
        batch = self.plan.batch
        assert rows.count == batch.rows, f"{rows.count} rows in a step of {batch.rows}"
        engine, tokens = self.deepspeed, rows.valid_tokens
        scaler = self._begin(step, lr, compare)
        if not tokens:
            return self._untrained(scaler)
        engine.train()
        # DeepSpeed takes the mean over micro-batches and ranks; this makes it the mean over tokens
        to_mean = batch.accumulation * batch.dp / tokens
        first = self.dp_rank * batch.micro * batch.accumulation
        total = torch.zeros((), device=self.device)
        withheld = False
        for index in range(batch.accumulation):
            if self.leaves_step(index):
                return None
            with self._busy.working():
                inputs = micro_batch(rows, first + index * batch.micro, batch.micro, self.device)
                loss_sum = engine(*inputs)
            total += loss_sum.detach()
            if index == batch.accumulation - 1:
                dist.all_reduce(total)
                # reading the loss waits for the device, so it is done here only when it can matter
                withheld = most_loss < math.inf and float(total) / tokens > most_loss
                if withheld:
                    withhold(loss_sum)
            engine.backward(loss_sum * to_mean)
            engine.step()
            self._busy.asked()
        return self._result(float(total) / tokens, tokens, scaler, withheld)

    @torch.no_grad()
    def evaluate(self, rows: Rows) -> EvalResult:
        """Loss over any number of rows; each rank takes every dp-th micro-batch, all equally many."""
        micro, dp = self.plan.batch.micro, self.plan.batch.dp
        rounds = -(-rows.count // (micro * dp))
        self.deepspeed.eval()
        self._busy.begin()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for index in range(rounds):
            start = (index * dp + self.dp_rank) * micro
            total += self.deepspeed(*micro_batch(rows, start, micro, self.device)).double()
            self._busy.asked()
        dist.all_reduce(total)
        return EvalResult(float(total), rows.valid_tokens)


def _unseen(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` without the modes that selective recomputation puts over a layer.

    Those expect the operations of the backward pass to be those of the forward pass. How ZeRO-3 gathers and
    releases weights differs between the two.
    """

    @functools.wraps(work)
    def called(*values: Any, **names: Any) -> Any:
        with _disable_current_modes():
            return work(*values, **names)

    return called
