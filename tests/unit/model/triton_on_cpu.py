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


def root_mean_square_norm() -> float:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

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
    """Our own kernel as the head uses it: scale, soft cap, ignored labels, a vocabulary of several blocks."""
    from llmtrain.model import fused_cross_entropy, loss

    fused_cross_entropy.BLOCK = 16
    loss.chunk_rows = lambda vocab, element, device: 4
    noise = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(6, 16, generator=noise), torch.randn(40, 16, generator=noise)
    labels = torch.tensor([3, 39, -100, 0, 7, 7])
    errors = []
    for formula in (loss.HeadFormula(), loss.HeadFormula(0.5, 3.0)):

        def fused(h: torch.Tensor, w: torch.Tensor, formula: loss.HeadFormula = formula) -> torch.Tensor:
            return loss.ChunkedLoss.apply(h, w, None, labels, formula, "fused")

        def plain(h: torch.Tensor, w: torch.Tensor, formula: loss.HeadFormula = formula) -> torch.Tensor:
            return loss.whole_loss(h @ w.t(), labels, formula)

        errors.append(worst(fused, plain, [hidden, weight]))
        raw = hidden.bfloat16() @ weight.bfloat16().t()
        exact, wanted = loss.cross_entropy_and_gradient(raw.float(), labels, formula, True)
        with_loss, found = loss.fused_cross_entropy_and_gradient(raw, labels, formula, True)
        assert found is raw, "the gradient is not written over the logits"
        errors.append(relative(with_loss, exact))
        assert (found.float() - wanted).abs().max() <= 2**-8, "the interpreter cuts off what bf16 lacks"
    return max(errors)


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


PARTS = ("norm", "rope", "mlp")
SHORT = {"gemma3": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}}


def family_by_parts(family: str, recomputes: list[str], choices: list[tuple[str, ...]]) -> float:
    """Loss and gradients of a whole model with each choice of Liger's parts, against torch's alone.

    Liger writes in place outside torch's sight: what recomputation keeps must not be what Liger overwrites.
    """
    from tiny_models import loss_of, packed_rows, tiny_config, whole_model

    from llmtrain.model.kernels import Kernels

    config, rows = tiny_config(family, **SHORT.get(family, {"num_hidden_layers": 2})), packed_rows(1, 8)
    results = []
    for recompute, parts in [("none", ()), *((kind, choice) for kind in recomputes for choice in choices)]:
        kernels = Kernels(**dict.fromkeys(parts, "liger"))
        model = whole_model(config, kernels=kernels, recompute=recompute)
        assert model.kernels == kernels, f"{model.kernels} and not {kernels}"
        loss = loss_of([model], *rows)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    wanted, *found = results
    return max(relative(a, b) for result in found for a, b in zip(result, wanted, strict=True))


def recomputed_llama() -> float:
    """Every recomputation × every part alone and all together."""
    choices = [*((part,) for part in PARTS), PARTS]
    return family_by_parts("llama", ["none", "selective", "full"], choices)


def recomputed_families() -> float:
    """All parts together where norms, windows or experts differ from Llama's."""
    # Liger's experts tune themselves on a GPU, which the interpreter can't play
    families = {"qwen3": PARTS, "gemma3": PARTS, "olmo2": PARTS, "mixtral": ("norm", "rope")}
    return max(family_by_parts(family, ["selective"], [parts]) for family, parts in families.items())


def functions_by_triton() -> None:
    """CUDA's libdevice is a stub in the interpreter."""
    import triton.language as tl
    from liger_kernel.ops import geglu, rms_norm

    rms_norm.rsqrt = lambda x: tl.math.rsqrt(x)
    geglu.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1


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
    "rms_norm": root_mean_square_norm,
    "swiglu": swiglu,
    "rope": rope,
    "cross_entropy": cross_entropy,
    "whole_llama": whole_llama,
    "recomputed_llama": recomputed_llama,
    "recomputed_families": recomputed_families,
}

if __name__ == "__main__":
    scalars_as_compiled()
    functions_by_triton()
    report: dict[str, float | str] = {}
    for name in sys.argv[1:] or KERNELS:
        try:
            report[name] = KERNELS[name]()
        except Exception as error:  # noqa: BLE001 - the test decides what it means
            report[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(report))
