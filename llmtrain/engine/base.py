"""What both engines share: reading DeepSpeed back, evaluation's sharing of rows, state in and out."""

from __future__ import annotations

import gc
import math
import resource
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from deepspeed.utils.timer import NoopTimer

from llmtrain.config.deepspeed import NEVER
from llmtrain.engine import nvme
from llmtrain.engine.busy import BusyClock
from llmtrain.engine.comm import TorchComm
from llmtrain.engine.draws import Draws
from llmtrain.engine.fp32_sums import mend_fp32_sums
from llmtrain.engine.guard import norm_clip_or_withhold, unguarded
from llmtrain.engine.replicas import differing_replica
from llmtrain.engine.seam import BUFFER, Slice, SliceReader, StepResult
from llmtrain.engine.slices import NamedParameter, open_state
from llmtrain.engine.stream_order import order_streams
from llmtrain.errors import EngineError

if TYPE_CHECKING:
    from llmtrain.model.stages import StageModel
    from llmtrain.plan.plan import Plan

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# DynamicLossScaler's own bookkeeping, kept so that a resumed fp16 run scales as the first would have.
_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedEngineBase:
    """One DeepSpeed engine and what llmtrain adds to it; subclasses know how a step is taken."""

    def __init__(self, plan: Plan, stage: StageModel, deepspeed_engine: Any, comm: TorchComm, dp_rank: int):
        self.plan = plan
        self.leaves_step: Callable[[int], bool] = lambda micro_batches: False
        self.comm = comm
        self.stage = stage
        self.deepspeed = deepspeed_engine
        self.device = torch.device(deepspeed_engine.device)
        self.dp_rank = dp_rank
        self._updates = 0
        self._gate_norm: float | None = None
        self._busy = BusyClock(self.device)
        self._draws = Draws(stage, plan.run.seed, dp_rank, comm.rank // plan.topology.dp)
        self._read_back()
        if plan.run.precision == "fp16":
            self._scaler().raise_error_at_min_scale = False  # `_result` says it in a sentence
        self._state = open_state(deepspeed_engine.optimizer, self._named(), dp_rank, plan.topology.dp)
        mend_fp32_sums(deepspeed_engine)
        order_streams(deepspeed_engine.optimizer)
        if not plan.deepspeed["wall_clock_breakdown"] and plan.deepspeed["steps_per_print"] == NEVER:
            deepspeed_engine.timers = NoopTimer()  # a pipeline's keeps two CUDA events of every step for ever
        if unguarded(deepspeed_engine.optimizer):
            self._install_gate()
        self._compare = False
        self._install_comparison()
        self._wrap_work()

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
            "data_types.grad_accum_dtype": engine.get_data_types()[1],
            "communication_data_type": engine.communication_data_type,
        }
        wanted = {
            "zero_optimization.stage": self.plan.topology.zero_stage,
            "train_micro_batch_size_per_gpu": self.plan.batch.micro,
            "gradient_accumulation_steps": self.plan.batch.accumulation,
            "gradient_clipping": float(asked["gradient_clipping"]),
            "bf16.enabled": self.plan.run.precision == "bf16",
            "fp16.enabled": self.plan.run.precision == "fp16",
            "data_types.grad_accum_dtype": DTYPES[asked["data_types"]["grad_accum_dtype"]],
            "communication_data_type": DTYPES[asked["communication_data_type"]],
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

    def _install_comparison(self) -> None:
        """Puts the comparison of replicas in front of the update: later ZeRO would write them anew."""
        original = self.deepspeed._take_model_step
        zero_stage, dp = self.plan.topology.zero_stage, self.plan.topology.dp

        def compared(*args: Any, **kwargs: Any) -> None:
            if self._compare and zero_stage < 3 and dp > 1:
                masters = self._state.slices() if zero_stage > 0 else iter(())
                found = differing_replica(self.comm, dp, self._named(), masters)
                if found:
                    raise EngineError(found)
            original(*args, **kwargs)

        self.deepspeed._take_model_step = compared

    def _wrap_work(self) -> None:
        """Wraps what DeepSpeed calls within a step, for the clock of this rank's own work among others."""

    def _norm_group(self) -> Any:
        """The group over which gradient norms add up besides this rank's own; None without a pipeline."""
        return None

    def _begin(self, step: int, lr: float, compare: bool) -> dict[str, float]:
        """Makes ready for a step; returns the loss scaler's state before it."""
        self._compare = compare
        self._busy.begin()
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr
        self._draws.begin(step)
        return self._scaler_state()

    def _untrained(self, scaler: Mapping[str, float]) -> StepResult:
        """A step whose rows have no token to train on: nothing is computed, no weight and no moment moves."""
        return StepResult(math.nan, math.nan, True, 0, scaler.get("cur_scale", 1.0))

    def _result(
        self, loss: float, tokens: int, scaler: Mapping[str, float], withheld: bool = False
    ) -> StepResult:
        """Reads what DeepSpeed did with the step and checks it against the loss.

        `scaler` is the loss scaler's state before the step. A withheld step's gradient was made NaN by
        llmtrain itself, so the scaler must not learn from it.
        """
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
        if withheld and not skipped:
            raise EngineError(
                "a step that was to be withheld has touched the weights: resume from a checkpoint"
            )
        self._updates += not skipped
        if withheld:
            self._restore_scaler(scaler)
        elif skipped and self._at_floor(scaler):
            raise EngineError(
                f"the fp16 loss scale is at its floor of {scaler['cur_scale']:g} and the gradients still "
                "overflow; no weight was touched by this step. Lower optimizer.lr, or use precision: bf16"
            )
        return StepResult(loss, norm, skipped, tokens, scaler.get("cur_scale", 1.0), withheld)

    def _scaler_state(self) -> dict[str, float]:
        """The loss scaler's bookkeeping; empty unless fp16."""
        if self.plan.run.precision != "fp16":
            return {}
        scaler = self._scaler()
        return {field: float(getattr(scaler, field)) for field in _SCALER_FIELDS if hasattr(scaler, field)}

    def _restore_scaler(self, state: Mapping[str, float]) -> None:
        if self.plan.run.precision == "fp16":
            scaler = self._scaler()
            for field in _SCALER_FIELDS:
                if field in state and hasattr(scaler, field):
                    setattr(scaler, field, type(getattr(scaler, field))(state[field]))

    def _at_floor(self, state: Mapping[str, float]) -> bool:
        """Whether an overflow in this state could not lower the scale any more."""
        floor = getattr(self._scaler(), "min_scale", None) if state else None
        return floor is not None and state["cur_scale"] <= floor and state.get("cur_hysteresis", 1) <= 1

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
        return {"updates": float(self._updates), **self._scaler_state()}

    def load(self, reader: SliceReader, scalars: dict[str, float]) -> None:
        """Replaces the state; reads only what this rank holds."""
        self._updates = int(scalars["updates"])
        self._state.load(reader, self._updates)
        for name, buffer in self._buffers():
            buffer.copy_(reader.read(name, BUFFER, 0, buffer.numel()).view(buffer.shape))
        self._restore_scaler(scalars)
        self.comm.barrier()

    def busy_s(self) -> float:
        """Seconds of the last step in which this rank worked and waited for no other; 0 without training."""
        return self._busy.seconds()

    def behind(self) -> str:
        """What this rank's GPU waits in, for the watchdog; empty when its host keeps the others waiting."""
        return self._busy.behind()

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
        gc.unfreeze()
        self.deepspeed.destroy()
        nvme.remove(self.plan, self.comm.rank)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
