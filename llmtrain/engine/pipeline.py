"""Pipeline parallelism: the same Hugging Face model cut into stages, run by DeepSpeed's 1F1B schedule."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule

from llmtrain.data.rows import Rows
from llmtrain.engine.base import DeepSpeedEngineBase
from llmtrain.engine.guard import withhold
from llmtrain.engine.microbatches import MicroBatch, micro_batch
from llmtrain.engine.seam import EvalResult, StepResult
from llmtrain.model.documents import Documents
from llmtrain.model.stages import StageModel


class _Holder(torch.nn.Module):
    """Gives a tied weight the `module.weight` form that DeepSpeed's bookkeeping expects."""

    def __init__(self, weight: torch.nn.Parameter):
        super().__init__()
        self.weight = weight


class _Layer(torch.nn.Module):
    """Unpacks the tuple that DeepSpeed hands from stage to stage."""

    def __init__(self, stage: StageModel):
        super().__init__()
        self.stage = stage
        self.batches: MicroBatches | None = None

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> Any:
        """(tokens or hidden, positions) → what the stage gives."""
        assert self.batches is not None, "a step has not begun"
        return self.stage(*inputs, documents=self.batches.documents())


class MicroBatches:
    """This rank's micro-batches in order: what DeepSpeed takes on the first and the last stage, and on every
    stage the documents of the one that it computes next."""

    def __init__(self, make: Callable[[int], MicroBatch], starts: Iterator[int]):
        self._make = make
        self._starts = starts
        self._ahead: deque[Documents] = deque()

    def __iter__(self) -> MicroBatches:
        return self

    def __next__(self) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        tokens, positions, labels, documents = self._make(next(self._starts))
        self._ahead.append(documents)
        return (tokens, positions), labels

    def documents(self) -> Documents:
        """Those of the next forward pass; a stage in the middle loads nothing, so they are read here."""
        if not self._ahead:
            next(self)
        return self._ahead.popleft()


class StagePipeline(PipelineModule):
    """One layer per stage, this rank's already built; ties the first and last stage's embedding."""

    def __init__(self, stage: StageModel, index: int, count: int, loss_fn: Callable[..., torch.Tensor]):
        self._tied_group: tuple[torch.nn.Parameter, Any] | None = None
        self._tied_weight = (stage.tied_weight,)  # in a tuple: not a parameter of this module
        self._is_tied = bool(stage.hf.all_tied_weights_keys)
        self.stage_layer = (_Layer(stage),)
        layers = [self.stage_layer[0] if i == index else LayerSpec(torch.nn.Identity) for i in range(count)]
        super().__init__(layers=layers, num_stages=count, loss_fn=loss_fn, partition_method="uniform")

    def _index_tied_modules(self) -> dict[str, Any]:
        """DeepSpeed's record of tied weights (its own version reads TiedLayerSpec, which renames parameters).

        The gradients of both copies are summed each step, and the second is left out of the gradient norm.
        """
        if not self._is_tied:
            return {}
        found: dict[str, Any] = {}
        for column in range(self._grid.data_parallel_size):
            ranks = [self._grid.stage_to_global(stage_id=s, data=column) for s in (0, self.num_stages - 1)]
            group = dist.new_group(ranks=ranks)
            if self.global_rank in ranks:
                (weight,) = self._tied_weight
                assert weight is not None, "the first or last stage of a tied model without its tied weight"
                weight.ds_pipe_replicated = self.global_rank != ranks[0]  # type: ignore[attr-defined]
                self._tied_group = (weight, group)
                found["embed"] = {
                    "ranks": ranks,
                    "group": group,
                    "weight_attr": ["weight"],
                    "module": _Holder(weight),
                }
        return found

    def get_tied_weights_and_groups(self) -> list[tuple[torch.nn.Parameter, Any]]:
        """The tied weight of this stage and the pair of ranks that holds its two copies."""
        return [] if self._tied_group is None else [self._tied_group]


class StepLoss:
    """The pipeline's loss function; DeepSpeed holds it before the engine around it exists."""

    def __init__(self, stage: StageModel):
        self._stage = stage
        self.begin(1.0)

    def begin(self, factor: float, micros: int = 0, most: float = math.inf, dp_group: Any = None) -> None:
        """Each loss sum is multiplied by `factor`; the gradients of `micros` are withheld above `most`.

        Without `micros` it is an evaluation.
        """
        self._factor, self._left, self._most, self._dp_group = factor, micros, most, dp_group
        self._total: torch.Tensor | None = None
        self.withheld = False
        # DeepSpeed sends an evaluation's mean to ranks that await a list of one number, a step's to ranks
        # that await a number; torch takes one for the other, but not under TORCH_DISTRIBUTED_DEBUG=DETAIL
        self._shape = () if micros else (1,)

    def __call__(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The scaled loss of one micro-batch, on the last stage."""
        loss_sum = self._stage.loss(hidden, labels)
        if self._most < math.inf:
            mine = loss_sum.detach()
            self._total = mine.clone() if self._total is None else self._total + mine
            self._left -= 1
            if self._left == 0:  # the step's whole loss is known before its last backward pass
                dist.all_reduce(self._total, group=self._dp_group)
                self.withheld = float(self._total) > self._most
                if self.withheld:
                    withhold(loss_sum)
        return (loss_sum * self._factor).reshape(self._shape)


class PipeEngine(DeepSpeedEngineBase):
    """All micro-batches of a step go through the stages in one call."""

    step_loss: StepLoss

    def _norm_group(self) -> Any:
        return self.deepspeed.grid.get_pipe_parallel_group()

    def _wrap_work(self) -> None:
        self.stage.forward = self._busy.working()(self.stage.forward)  # type: ignore[method-assign]
        self.stage.register_forward_hook(lambda *_: self._busy.asked())

    def train_step(
        self, rows: Rows, lr: float, step: int = 0, most_loss: float = math.inf, compare: bool = False
    ) -> StepResult:
        """See `Engine.train_step`."""
        batch = self.plan.batch
        assert rows.count == batch.rows, f"{rows.count} rows in a step of {batch.rows}"
        tokens, scaler = rows.valid_tokens, self._begin(step, lr, compare)
        if not tokens:
            return self._untrained(scaler)
        # DeepSpeed takes the mean over micro-batches and ranks; this makes it the mean over tokens
        factor = batch.accumulation * batch.dp / tokens
        dp_group = self.deepspeed.grid.get_data_parallel_group()
        self.step_loss.begin(factor, batch.accumulation, most_loss * tokens, dp_group)
        first = self.dp_rank * batch.micro * batch.accumulation
        starts = (first + index * batch.micro for index in range(batch.accumulation))
        loss = self.deepspeed.train_batch(data_iter=self._batches(rows, starts))
        self._busy.asked()
        withheld = self.step_loss.withheld
        if most_loss < math.inf:  # only the last stage knows yet
            withheld = bool(self.comm.sum(torch.tensor([float(withheld)])) > 0)
        return self._result(float(loss), tokens, scaler, withheld)

    def evaluate(self, rows: Rows) -> EvalResult:
        """Loss over any number of rows; each data parallel column takes every dp-th micro-batch."""
        micro, dp = self.plan.batch.micro, self.plan.batch.dp
        rounds = -(-rows.count // (micro * dp))
        self.step_loss.begin(1.0)
        self._busy.begin()
        starts = ((index * dp + self.dp_rank) * micro for index in range(rounds))
        self.deepspeed.total_loss = None  # the last step's, to which DeepSpeed would add up these
        mean = self.deepspeed.eval_batch(self._batches(rows, starts), num_micro_batches=rounds)
        return EvalResult(float(mean) * rounds * dp, rows.valid_tokens)

    def _batches(self, rows: Rows, starts: Iterator[int]) -> MicroBatches:
        def make(start: int) -> MicroBatch:
            with self._busy.working():
                return micro_batch(rows, start, self.plan.batch.micro, self.device)

        batches = MicroBatches(make, starts)
        self.deepspeed.module.stage_layer[0].batches = batches
        return batches
