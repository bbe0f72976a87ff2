"""Bytes a rank needs, from arithmetic: what DeepSpeed's code holds, not what the papers count.

States per parameter P (N = data-parallel ranks; read in runtime/zero/stage_1_and_2.py, stage3.py,
bf16_optimizer.py and fp16/unfused_optimizer.py of DeepSpeed 0.19.8; b = bytes of the model's type):

    stage 0   bP weights + bP gradients + 12P fp32 weights and moments (fp32: + 8P moments)
    stage 1   bP + bP gradients + 16P/N; 4P instead of bP + 4P/N when bf16 sums in fp32 (BF16_Optimizer
              frees each bf16 gradient as it is summed)
    stage 2   bP + 18P/N with fp32 accumulation, bP + 16P/N without
    stage 3   the same as stage 2, and bP/N weights plus what is gathered at a time
Activations: Korthikanti et al., arXiv 2205.05198, for attention that never stores its square. The head: as
the loss makes it, `llmtrain.plan.head`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

from llmtrain.plan.head import head_bytes
from llmtrain.plan.model_shape import ModelShape

Recompute = Literal["none", "selective", "full"]

USABLE = 0.9  # of a device's memory: the rest is the driver, the libraries and fragmentation


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: on its device, and in main memory what is offloaded (`host`) and copied (`copy`)."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    head: int
    host: int = 0
    copy: int = 0  # main memory too: the state, copied when it is saved behind the steps

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations + self.head


def stage_parameters(shape: ModelShape, pipeline: int, parameters: int | None = None) -> int:
    """Parameters of the fullest pipeline stage: an even share of the layers and one of the two tables."""
    total = shape.parameters if parameters is None else parameters
    if pipeline == 1:
        return total
    per_stage = -(-shape.layers // pipeline)
    return per_stage * shape.layer_parameters + shape.embedding_parameters + shape.hidden


@dataclass(frozen=True)
class Kept:
    """What the kernels make a rank hold: for the loss, and by norm and MLP for the backward pass."""

    loss: str = "fused"  # as `llmtrain.plan.head.head_bytes` knows them
    fused_layers: bool = True


def kept_by(kernels: str, device: str) -> Kept:
    """What `kernels: auto|reference|fused` come to on a device, as far as that is known without torch."""
    if kernels == "reference":
        return Kept("whole", False)
    if device != "cuda":
        return Kept("chunked", False)
    return Kept(fused_layers=kernels == "fused" or importlib.util.find_spec("liger_kernel") is not None)


def activation_bytes(
    shape: ModelShape,
    tokens: int,
    layers: int,
    element: int,
    recompute: Recompute = "none",
    fused_layers: bool = True,
) -> int:
    """What the forward pass of `tokens` tokens through `layers` layers leaves for the backward pass."""
    d, kv, f = shape.hidden, shape.kv_width, shape.widest_intermediate
    whole = (6 * d + 2 * kv + 3 * f if shape.gated else 8 * d + 2 * kv + 2 * f) * element
    if shape.gated and not fused_layers:
        # plain torch keeps of each of two norms the input in fp32 and the output before its weight, of the
        # MLP the activated gate
        whole += 2 * d * (6 if element == 2 else 4) + f * element
    # selective keeps what the matrix products return and redoes norms and activation functions
    selective = (4 * d + 2 * kv + (2 * f if shape.gated else f)) * element
    if recompute == "full":
        return tokens * (layers * d * element + whole)  # each layer's input, and one layer being redone
    return tokens * layers * (whole if recompute == "none" else selective)


def estimate(
    shape: ModelShape,
    deepspeed: dict[str, Any],
    *,
    dp: int,
    pipeline: int = 1,
    seq_len: int,
    micro: int,
    accumulation: int = 1,
    recompute: Recompute = "none",
    kept: Kept = Kept(),  # noqa: B008 - frozen
    parameters: int | None = None,
) -> Memory:
    """Bytes of the fullest rank under a resolved DeepSpeed dict; `parameters`: exact count, if known."""
    zero = deepspeed["zero_optimization"]
    stage: int = zero["stage"]
    half = bool(deepspeed["bf16"]["enabled"] or deepspeed["fp16"]["enabled"])
    element = 2 if half else 4
    fp32_sums = half and deepspeed["data_types"]["grad_accum_dtype"] == "fp32"
    p = stage_parameters(shape, pipeline, parameters)
    weights, gradients, optimizer = _states(p, dp, stage, element, fp32_sums)
    host = 0
    if stage >= 1 and zero.get("offload_optimizer"):
        host, optimizer = optimizer, 0
        if zero["offload_optimizer"]["device"] == "nvme":
            # buffers, each as large as a sub-group; every sub-group passes through them in a step
            host = zero["offload_optimizer"]["buffer_count"] * 4 * min(int(zero["sub_group_size"]), p // dp)
    if stage == 3 and zero.get("offload_param"):
        host += weights if zero["offload_param"]["device"] == "cpu" else 0
        weights = 0
    tokens = micro * seq_len
    in_flight = min(pipeline, accumulation)
    layers = -(-shape.layers // pipeline)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=_buffers(zero, p, stage, element, fp32_sums),
        activations=in_flight
        * activation_bytes(shape, tokens, layers, element, recompute, kept.fused_layers),
        head=head_bytes(tokens, shape.vocab, shape.hidden, element, kept.loss),
        host=host,
        copy=12 * p // dp,  # fp32 weights and two moments, each element on one rank
    )


def _states(p: int, dp: int, stage: int, element: int, fp32_sums: bool) -> tuple[int, int, int]:
    """Weights, gradients and optimizer bytes of a rank with `p` parameters."""
    masters_and_moments = 12 if element == 2 or stage > 0 else 8
    if stage == 0:
        return element * p, element * p, masters_and_moments * p
    optimizer = 12 * p // dp
    if stage == 1:
        return element * p, 4 * p if fp32_sums else element * p + 4 * p // dp, optimizer
    gradients = (element + 4) * p // dp if fp32_sums or element == 4 else (element + 2) * p // dp
    return (element * p if stage == 2 else element * p // dp), gradients, optimizer


def _buffers(zero: dict[str, Any], p: int, stage: int, element: int, fp32_sums: bool) -> int:
    """Communication buckets, and at stage 3 the parameters that are gathered at a time."""
    if stage == 0 or (stage == 1 and fp32_sums):  # these sums are reduced where they lie
        return 0
    bucket = min(int(zero["reduce_bucket_size"]), p) * element * (2 if zero["overlap_comm"] else 1)
    if stage < 3:
        return bucket
    live = min(p, int(zero["stage3_max_live_parameters"]))
    return bucket + live * element


def rows_that_fit(
    shape: ModelShape, deepspeed: dict[str, Any], device_memory: int, *, seq_len: int, **others: Any
) -> int:
    """The most rows a micro-batch can have on a device of `device_memory` bytes; 0: not even one fits."""

    def fits(micro: int) -> bool:
        need = estimate(shape, deepspeed, seq_len=seq_len, micro=micro, **others).device
        return need <= USABLE * device_memory

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 2**16:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
