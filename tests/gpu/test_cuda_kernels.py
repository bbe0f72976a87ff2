"""The fused kernels on a CUDA device against fp32 arithmetic without them."""

from __future__ import annotations

import pytest
import torch
from tiny_models import loss_of, packed_rows, tiny_config

from llmtrain.model.attention import cudnn_attention, has_flash, has_torch_varlen
from llmtrain.model.build import build_stage, plan_cuts
from llmtrain.model.kernels import REFERENCE, Kernels, choose_kernels, missing_for_liger, missing_for_triton

FAMILIES = ["llama", "llama_tied", "qwen3", "gemma3", "mixtral", "olmo2", "gpt_neox"]
# Largest relative error of loss and gradients in bf16 against fp32: a few roundings of 2^-8 per layer.
LOSS_BAND, GRADIENT_BAND = 5e-3, 8e-2
# A token near a tie goes to another expert. Measured on a CPU, bf16 against fp32 math over three seeds: the
# router's gradient moves by up to 0.29, all others by up to 0.08; one more token may tip on another device.
ROUTER_BAND, ROUTED_BAND = 0.5, 0.2

needs_varlen = pytest.mark.skipif(not has_torch_varlen(), reason="needs a CUDA device with torch >= 2.11")
needs_flash = pytest.mark.skipif(not has_flash(), reason="needs a CUDA device with the flash-attn package")
needs_liger = pytest.mark.skipif(
    bool(missing_for_liger()), reason=f"needs a CUDA device with {', '.join(missing_for_liger())}"
)
needs_triton = pytest.mark.skipif(
    bool(missing_for_triton()), reason=f"needs a CUDA device with {', '.join(missing_for_triton())}"
)
ATTENTIONS = [
    "sdpa",
    "math",
    "cudnn",
    pytest.param("varlen", marks=needs_varlen),
    pytest.param("flash", marks=needs_flash),
]


def built(family: str, dtype: torch.dtype, kernels: Kernels, count: int = 1, **options: object) -> list:
    config = tiny_config(family, **WIDER.get(family, {}))
    return [
        build_stage(config, cut, dtype, "cuda", 7, None, kernels, **options)
        for cut in plan_cuts(config, count)
    ]


# The fused attention kernels want heads of at least 32.
WIDER = {
    family: {"hidden_size": 128, **({"head_dim": 32} if family in ("qwen3", "gemma3") else {})}
    for family in FAMILIES
}


def cuda_rows() -> list[torch.Tensor]:
    return [tensor.cuda() for tensor in packed_rows(2, 128)]


def results(stages: list) -> list[torch.Tensor]:
    loss = loss_of(stages, *cuda_rows())
    loss.backward()
    return [loss.detach(), *(p.grad for stage in stages for p in stage.parameters())]


def assert_close(stages: list, family: str) -> None:
    """Loss and every gradient against the fp32 reference with the same (rounded) weights."""
    exact = built(family, torch.float32, REFERENCE, len(stages))
    for ours, theirs in zip(stages, exact, strict=True):
        theirs.load_state_dict(ours.state_dict())
    found, wanted = results(stages), results(exact)
    errors = [
        ((a.float() - b).norm() / b.norm().clamp(min=1e-6)).item() for a, b in zip(found, wanted, strict=True)
    ]
    assert errors[0] < LOSS_BAND
    names = [name for stage in stages for name, _ in stage.named_parameters()]
    for name, error in zip(names, errors[1:], strict=True):
        routed = ROUTER_BAND if "mlp.gate." in name else ROUTED_BAND
        assert error < (routed if family == "mixtral" else GRADIENT_BAND), f"{name}: {error}"


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_attention_gives_the_reference_loss_and_gradients(family: str, attention: str) -> None:
    assert_close(built(family, torch.bfloat16, Kernels(attention=attention)), family)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_attention_leaks_nothing_between_documents(family: str, attention: str) -> None:
    (stage,) = built(family, torch.bfloat16, Kernels(attention=attention))
    assert stage.kernels.attention == attention
    _, positions, labels = cuda_rows()
    labels[0, :5], labels[1, :6] = -100, -100
    width = stage.hf.config.hidden_size
    given = torch.randn(2, 128, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    stage.loss(stage.hidden(positions, inputs_embeds=given), labels).backward()
    assert not given.grad[0, :5].any() and not given.grad[1, :6].any()
    assert given.grad[0, 5].any() and given.grad[1, 6].any()


@needs_liger
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mixtral", "olmo2"])
def test_cuda_liger_gives_the_reference_loss_and_gradients(family: str) -> None:
    liger = Kernels(attention="cudnn", norm="liger", rope="liger", mlp="liger")
    assert_close(built(family, torch.bfloat16, liger), family)


@needs_triton
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_cuda_fused_gives_the_reference_loss_and_gradients(family: str) -> None:
    assert_close(built(family, torch.bfloat16, choose_kernels("fused", "cuda", "bf16")), family)


@needs_liger
def test_cuda_selective_with_ligers_rotation_gives_the_reference_gradients() -> None:
    liger = Kernels(attention="cudnn", norm="liger", rope="liger", mlp="liger")
    assert_close(built("llama", torch.bfloat16, liger, recompute="selective"), "llama")


@pytest.mark.parametrize("seq", [64, 192])
def test_cuda_masked_attention_of_64_modulo_128_has_finite_gradients(seq: int) -> None:
    """pytorch#196678: every logit near -120, a mask, and a length that cuDNN's gradient spoils."""
    query, key, value = (torch.randn(1, 1, seq, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    query[..., 0], key[..., 0] = 1.0, -120 * 8.0
    parts = [part.requires_grad_() for part in (query, key, value)]
    mask = torch.ones(1, 1, seq, seq, device="cuda", dtype=torch.bool).tril()
    module = torch.nn.Module()
    cudnn_attention(module, *parts, mask)[0].float().sum().backward()
    assert all(part.grad.isfinite().all() for part in parts)


def test_cuda_auto_builds_and_trains_stages() -> None:
    kernels = choose_kernels("auto", "cuda", "bf16")
    assert_close(built("llama_tied", torch.bfloat16, kernels, count=2), "llama_tied")


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_cuda_recompute_gives_the_reference_loss_and_gradients(recompute: str) -> None:
    kernels = choose_kernels("auto", "cuda", "bf16")
    assert_close(built("llama", torch.bfloat16, kernels, recompute=recompute), "llama")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_weights_are_the_same_bits_at_every_cut(dtype: torch.dtype) -> None:
    whole = built("llama_tied", dtype, Kernels())[0]
    for stage in built("llama_tied", dtype, Kernels(), count=3):
        for name, parameter in stage.named_parameters():
            assert torch.equal(parameter, whole.get_parameter(f"hf.{stage.canonical_name(name)}"))


@pytest.mark.parametrize("chunked", ["chunked", pytest.param("fused", marks=needs_triton)])
def test_cuda_chunked_loss_saves_memory_and_gives_the_same_gradients(chunked: str) -> None:
    from torch import nn

    from llmtrain.model.loss import HeadFormula, adds_in_fp32, make_loss_head
    from llmtrain.plan.head import head_bytes

    assert adds_in_fp32(torch.device("cuda", torch.cuda.current_device()), torch.bfloat16)
    found = []
    hidden = torch.randn(8192, 256, device="cuda", dtype=torch.bfloat16)
    labels = torch.randint(0, 32_000, (8192,), device="cuda")
    weight = torch.randn(32_000, 256, device="cuda", dtype=torch.bfloat16) / 16
    for mode in ("whole", chunked):
        head = nn.Linear(256, 32_000, bias=False, device="cuda", dtype=torch.bfloat16)
        head.weight.data.copy_(weight)
        make_loss_head(head, HeadFormula(), mode)
        given = hidden.clone().requires_grad_()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = head(given, labels)
        loss.backward()
        peak = torch.cuda.max_memory_allocated() - before
        found.append((loss.detach(), given.grad.float(), head.weight.grad.float(), peak))
    (loss, by_hidden, by_weight, whole_peak), (again, other_hidden, other_weight, peak) = found
    torch.testing.assert_close(loss, again, rtol=1e-4, atol=0)
    assert (by_hidden - other_hidden).norm() < 0.02 * by_hidden.norm()
    assert (by_weight - other_weight).norm() < 0.02 * by_weight.norm()
    assert peak < whole_peak / 3
    assert peak < 1.1 * head_bytes(8192, 32_000, 256, 2, chunked)


def test_cuda_fused_adamw_is_the_same_arithmetic() -> None:
    weights = [torch.ones(1000, device="cuda", requires_grad=True) for _ in range(2)]
    for weight, fused in zip(weights, (True, False), strict=True):
        optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, fused=fused, foreach=False)
        for _ in range(3):
            optimizer.zero_grad()
            (weight * torch.arange(1000, device="cuda")).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1])
