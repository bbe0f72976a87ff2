"""The gate before an update: no step with a loss or gradient that is not finite ever touches a weight.

DeepSpeed 0.19.8 checks the gradient norm itself in every sharded or 16-bit optimizer. In fp32 without
sharding it does not (the run goes NaN and exits 0), and in a pipeline it then clips by a norm that counts
the first stage only. There llmtrain computes the norm, clips, and withholds the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist


def unguarded(optimizer: object) -> bool:
    """True where DeepSpeed steps the torch optimizer directly (fp32, ZeRO-0)."""
    return isinstance(optimizer, torch.optim.Optimizer)


def norm_clip_or_withhold(
    parameters: Iterable[torch.nn.Parameter], clip: float, group: dist.ProcessGroup | None
) -> float:
    """The global gradient norm; clips to `clip` (0 = off), and drops all gradients when it is not finite.

    `parameters` have gradients that are already averaged over data parallel ranks; `group` is the pipeline's,
    over which squares are summed, None without a pipeline. A parameter marked `ds_pipe_replicated` (a tied
    weight's second copy) is clipped but not counted. Without gradients AdamW leaves a parameter alone.
    """
    held = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    counted = [gradient for p, gradient in held if not getattr(p, "ds_pipe_replicated", False)]
    norms = torch._foreach_norm(counted) if counted else [torch.zeros(())]
    square = torch.stack([norm.double() for norm in norms]).square().sum()
    if group is not None:
        dist.all_reduce(square, group=group)
    norm = float(square.sqrt())
    if not math.isfinite(norm):
        for parameter, _ in held:
            parameter.grad = None
    elif clip > 0 and norm > clip:
        torch._foreach_mul_([gradient for _, gradient in held], clip / (norm + 1e-6))
    return norm


def withhold(loss: torch.Tensor) -> None:
    """Makes the gradient of `loss` NaN, and not its value: every path then skips the step on every rank."""
    loss.register_hook(lambda gradient: gradient * math.nan)
