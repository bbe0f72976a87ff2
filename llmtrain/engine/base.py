"""What both engines share: reading DeepSpeed back, evaluation's sharing of rows, state in and out."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from llmtrain.engine.comm import TorchComm
from llmtrain.engine.guard import norm_clip_or_withhold, unguarded
from llmtrain.engine.seam import BUFFER, Slice, SliceReader, StepResult
from llmtrain.engine.slices import NamedParameter, open_state
from llmtrain.errors import EngineError

if TYPE_CHECKING:
    from llmtrain.model.stages import StageModel
    from llmtrain.plan.plan import Plan

# DynamicLossScaler's own bookkeeping, kept so that a resumed fp16 run scales as the first would have.
_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedEngineBase:
    """One DeepSpeed engine and what llmtrain adds to it; subclasses know how a step is taken."""

    def __init__(self, plan: Plan, stage: StageModel, deepspeed_engine: Any, comm: TorchComm, dp_rank: int):
        self.plan = plan
        self.comm = comm
        self.stage = stage
        self.deepspeed = deepspeed_engine
        self.device = torch.device(deepspeed_engine.device)
        self.dp_rank = dp_rank
        self._updates = 0
        self._gate_norm: float | None = None
        self._read_back()
        self._state = open_state(deepspeed_engine.optimizer, self._named(), dp_rank, plan.topology.dp)
        if unguarded(deepspeed_engine.optimizer):
            self._install_gate()

    @property
    def kernels(self) -> dict[str, str | bool]:
        """Which implementation computes what, as this model's family really got it."""
        return self.stage.kernels.describe()

    def _read_back(self) -> None:
        """Compares the engine's own view with what was asked for (a silently ignored key ends here)."""
        engine, asked = self.deepspeed, self.plan.deepspeed
        seen = {
            "zero_optimization.stage": int(engine.zero_optimization_stage()),
            "train_micro_batch_size_per_gpu": engine.train_micro_batch_size_per_gpu(),
            "gradient_accumulation_steps": engine.gradient_accumulation_steps(),
            "gradient_clipping": float(engine.gradient_clipping()),
            "bf16.enabled": bool(engine.bfloat16_enabled()),
            "fp16.enabled": bool(engine.fp16_enabled()),
        }
        wanted = {
            "zero_optimization.stage": self.plan.topology.zero_stage,
            "train_micro_batch_size_per_gpu": self.plan.batch.micro,
            "gradient_accumulation_steps": self.plan.batch.accumulation,
            "gradient_clipping": float(asked["gradient_clipping"]),
            "bf16.enabled": self.plan.run.precision == "bf16",
            "fp16.enabled": self.plan.run.precision == "fp16",
        }
        wrong = [f"{key} is {seen[key]}, not {wanted[key]}" for key in wanted if seen[key] != wanted[key]]
        if wrong:
            raise EngineError("DeepSpeed took the configuration otherwise than planned: " + "; ".join(wrong))

    def _named(self) -> list[NamedParameter]:
        """Trained parameters under canonical names; the tied head's copy on the last stage is a duplicate."""
        return [
            NamedParameter(
                self.stage.canonical_name(name),
                parameter,
                bool(getattr(parameter, "ds_pipe_replicated", False)),
            )
            for name, parameter in self.stage.named_parameters()
            if parameter.requires_grad
        ]

    def _install_gate(self) -> None:
        """Puts the guard in front of the update where DeepSpeed has none of its own."""
        original = self.deepspeed._take_model_step
        group = self._norm_group()

        def gated(*args: Any, **kwargs: Any) -> None:
            clip = float(self.plan.deepspeed["gradient_clipping"])
            self._gate_norm = norm_clip_or_withhold(self.stage.parameters(), clip, group)
            original(*args, **kwargs)

        self.deepspeed._take_model_step = gated
        self.deepspeed.clip_fp32_gradients = lambda: None  # done, by the right norm

    def _norm_group(self) -> Any:
        """The group over which gradient norms add up besides this rank's own; None without a pipeline."""
        return None

    def _write_lr(self, lr: float) -> None:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr

    def _untrained(self) -> StepResult:
        """A step whose rows have no token to train on: nothing is computed, no weight and no moment moves."""
        return StepResult(math.nan, math.nan, True, 0, self.loss_scale())

    def _result(self, loss: float, tokens: int, scale: float) -> StepResult:
        """Reads what DeepSpeed did with the step and checks it against the loss."""
        if self._gate_norm is not None:
            norm = self._gate_norm
            skipped = not math.isfinite(norm)
        else:
            reported = self.deepspeed.get_global_grad_norm()
            norm = float(reported) if reported is not None else math.nan
            skipped = not self.deepspeed.was_step_applied()
        if not math.isfinite(loss) and not skipped:
            raise EngineError(
                f"the loss is {loss}, yet DeepSpeed updated the weights: resume from a checkpoint"
            )
        self._updates += not skipped
        return StepResult(loss, norm, skipped, tokens, scale)

    def loss_scale(self) -> float:
        """fp16's current scale, 1.0 otherwise."""
        if self.plan.run.precision != "fp16":
            return 1.0
        return float(self._scaler().cur_scale)

    def _scaler(self) -> Any:
        optimizer = self.deepspeed.optimizer
        return getattr(optimizer, "loss_scaler", None) or optimizer.loss_scale_config

    def slices(self) -> Iterator[Slice]:
        """This rank's share of weights, moments and persistent buffers."""
        yield from self._state.slices()
        if self.dp_rank == 0:
            for name, buffer in self._buffers():
                yield Slice(name, BUFFER, tuple(buffer.shape), 0, buffer.reshape(-1))

    def _buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        kept = self.stage.state_dict(keep_vars=True)
        for name, buffer in self.stage.named_buffers():
            if name in kept:
                yield self.stage.canonical_name(name), buffer

    def scalars(self) -> dict[str, float]:
        """Updates taken, and the loss scaler's state under fp16."""
        values = {"updates": float(self._updates)}
        if self.plan.run.precision == "fp16":
            scaler = self._scaler()
            values.update({f: float(getattr(scaler, f)) for f in _SCALER_FIELDS if hasattr(scaler, f)})
        return values

    def load(self, reader: SliceReader, scalars: dict[str, float]) -> None:
        """Replaces the state; reads only what this rank holds."""
        self._updates = int(scalars["updates"])
        self._state.load(reader, self._updates)
        for name, buffer in self._buffers():
            buffer.copy_(reader.read(name, BUFFER, 0, buffer.numel()).view(buffer.shape))
        if self.plan.run.precision == "fp16":
            scaler = self._scaler()
            for field in _SCALER_FIELDS:
                if field in scalars and hasattr(scaler, field):
                    kind = type(getattr(scaler, field))
                    setattr(scaler, field, kind(scalars[field]))
        self.comm.barrier()

    def memory_bytes(self) -> int:
        """Peak device memory since the last call; on CPU the process's peak resident set."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return int(peak)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def close(self) -> None:
        """Frees DeepSpeed's buffers and leaves the process group."""
        self.comm.barrier()
        self.deepspeed.destroy()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
