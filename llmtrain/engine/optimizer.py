"""The optimizer handed to DeepSpeed: PyTorch's own fused AdamW, so that nothing has to be compiled."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from llmtrain.config.schema import OptimizerSection


def adamw(
    parameters: Iterable[torch.nn.Parameter], section: OptimizerSection, fused: bool = True
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only (norms, biases and scalars are not pulled to zero).

    The learning rate starts at 0 and is written before each step: some of DeepSpeed's wrappers take a step
    of their own while they initialise, which must not move a weight.
    """
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for parameter in parameters:
        if parameter.requires_grad:
            # under ZeRO-3 the parameter itself is an empty shell; its own shape is in ds_shape
            dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
            (decayed if dimensions >= 2 else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": section.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=section.betas,
        eps=section.eps,
        fused=fused,
        foreach=False if not fused else None,
    )
