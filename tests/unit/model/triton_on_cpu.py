"""Liger's Triton kernels against plain torch, through Triton's interpreter: run as a program.

Triton must see TRITON_INTERPRET=1 before it is imported, so the test runs this file in a process of its own.
Prints one JSON object: kernel → largest relative error of outputs and gradients, or the exception.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from torch import nn


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()


def worst(ours: Callable, theirs: Callable, inputs: list[torch.Tensor]) -> float:
    """The larger of the errors of outputs and of gradients by all inputs."""
    noise = torch.Generator().manual_seed(1)
    found = []
    results = []
    for function in (ours, theirs):
        given = [tensor.clone().requires_grad_() for tensor in inputs]
        out = function(*given)
        outs = out if isinstance(out, tuple) else (out,)
        noise.manual_seed(1)
        total = sum((part.float() * torch.randn(part.shape, generator=noise)).sum() for part in outs)
        results.append([part.detach() for part in outs] + list(torch.autograd.grad(total, given)))
    found = [relative(a, b) for a, b in zip(*results, strict=True)]
    return max(found)


def rms_norm() -> float:
    import triton.language as tl
    from liger_kernel.ops import rms_norm as kernels
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    kernels.rsqrt = lambda x: tl.math.rsqrt(x)  # CUDA's libdevice is a stub in the interpreter

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        norm = LlamaRMSNorm(weight.shape[0], eps=1e-6)
        del norm._parameters["weight"]
        norm.weight = weight
        return norm(x)

    noise = torch.Generator().manual_seed(0)
    inputs = [torch.randn(6, 48, generator=noise), torch.randn(48, generator=noise)]
    return worst(lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", False), plain, inputs)


def swiglu() -> float:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    noise = torch.Generator().manual_seed(0)
    inputs = [torch.randn(6, 48, generator=noise) for _ in range(2)]
    return worst(LigerSiLUMulFunction.apply, lambda a, b: nn.functional.silu(a) * b, inputs)


def rope() -> float:
    from liger_kernel.ops.rope import LigerRopeFunction
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    noise = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 8, 16, generator=noise), torch.randn(2, 2, 8, 16, generator=noise)
    angles = torch.randn(2, 8, 8, generator=noise)
    cos, sin = (f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin))
    return worst(
        lambda q, k: LigerRopeFunction.apply(q, k, cos, sin),
        lambda q, k: apply_rotary_pos_emb(q, k, cos, sin),
        [query, key],
    )


def cross_entropy() -> float:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    noise = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(6, 16, generator=noise), torch.randn(40, 16, generator=noise)
    labels = torch.tensor([3, 39, -100, 0, 7, 7])

    def fused(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        args = (None, None, -100, 0.0, 0.0, "sum")
        return LigerFusedLinearCrossEntropyFunction.apply(h, w, labels, *args)[0]

    def plain(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(h @ w.t(), labels, reduction="sum")

    return worst(fused, plain, [hidden, weight])


def whole_llama() -> float:
    """A tiny Llama patched by `apply_liger`, cut in two, against the same without: loss and gradients."""
    from tiny_models import loss_of, packed_rows, stage_models, tiny_config
    from transformers.models.llama import modeling_llama

    from llmtrain.model.kernels import Kernels

    names = ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP")
    before = [getattr(modeling_llama, name) for name in names]
    config = tiny_config("llama", num_hidden_layers=2)
    stages = stage_models(config, 2, kernels=Kernels(norm="liger", rope="liger", mlp="liger"))
    plain = stage_models(config, 2)
    assert [getattr(modeling_llama, name) for name in names] == before, "Liger changed every Llama"
    layer, untouched = stages[0].hf.model.layers[0], plain[0].hf.model.layers[0]
    for part in ("input_layernorm", "mlp", "self_attn"):
        assert "forward" in vars(getattr(layer, part)), f"{part} is not Liger's"
        assert "forward" not in vars(getattr(untouched, part)), f"{part} of another model is Liger's"
    results = []
    for model in (stages, plain):
        loss = loss_of(model, *packed_rows(1, 8))
        loss.backward()
        results.append([loss.detach(), *(p.grad for stage in model for p in stage.parameters())])
    return max(relative(ours, theirs) for ours, theirs in zip(*results, strict=True))


def scalars_as_compiled() -> None:
    """A compiled kernel gets a float argument as an fp32 scalar; the interpreter would hand in Python's."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def with_floats(value: object) -> object:
        if isinstance(value, float):
            handle = interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return convert(value)

    interpreter._implicit_cvt = with_floats


KERNELS = {
    "rms_norm": rms_norm,
    "swiglu": swiglu,
    "rope": rope,
    "cross_entropy": cross_entropy,
    "whole_llama": whole_llama,
}

if __name__ == "__main__":
    scalars_as_compiled()
    report: dict[str, float | str] = {}
    for name in sys.argv[1:] or KERNELS:
        try:
            report[name] = KERNELS[name]()
        except Exception as error:  # noqa: BLE001 - the test decides what it means
            report[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(report))
