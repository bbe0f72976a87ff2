"""The kernels that a GPU would take, on CPU tensors: choice, arguments, one step in training mode."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import pytest
import torch
from tiny_models import loss_of, packed_rows, tiny_config, whole_model
from torch.nn.attention import SDPBackend
from torch.nn.attention.varlen import _varlen_attn, _varlen_attn_backward
from transformers import AutoConfig

from llmtrain.errors import ConfigError
from llmtrain.model import attention as attention_module
from llmtrain.model import kernels as kernels_module
from llmtrain.model.attention import has_flash, is_varlen, reference_varlen
from llmtrain.model.kernels import Kernels, choose_kernels
from llmtrain.model.probes import narrow
from llmtrain.model.structure import CUTTABLE

VARLEN = Kernels(attention="varlen")
CALLS: list[str] = []


@_varlen_attn.register_kernel("cpu")
def _forward(q, k, v, bounds, bounds_k, longest, longest_k, causal, scale, window, gqa, *_):  # noqa: ANN001, ANN202
    """What torch's kernel for GPUs computes, where there is none."""
    CALLS.append("forward")
    assert (
        bounds.dtype == torch.int32
        and torch.equal(bounds, bounds_k)
        and longest == longest_k == q.shape[0] // 2
    )
    assert gqa == (q.shape[1] != k.shape[1]) and list(window)[1] == 0
    out = reference_varlen(q, k, v, bounds, longest, scale, None if window[0] < 0 else window[0] + 1)
    return out, q.new_zeros(q.shape[1], q.shape[0], dtype=torch.float32), q.new_zeros(2)


@_varlen_attn_backward.register_kernel("cpu")
def _backward(grad, q, k, v, out, lse, bounds, bounds_k, longest, longest_k, causal, rng, scale, window):  # noqa: ANN001, ANN202
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    groups = q.shape[1] // k.shape[1]
    wide_k, wide_v = (part.repeat_interleave(groups, 1) for part in (k, v))
    at = torch.arange(q.shape[0])
    document = torch.bucketize(at, bounds[1:], right=True)
    seen = (document[:, None] == document) & (at[:, None] >= at)
    seen &= (at[:, None] - at <= window[0]) if window[0] >= 0 else True
    scores = torch.einsum("qhd,khd->hqk", q, wide_k) * scale
    p = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    by_p = torch.einsum("qhd,khd->hqk", grad, wide_v)
    by_scores = p * (by_p - (by_p * p).sum(-1, keepdim=True)) * scale
    by_k = torch.einsum("hqk,qhd->khd", by_scores, q).unflatten(1, (-1, groups)).sum(2)
    by_v = torch.einsum("hqk,qhd->khd", p, grad).unflatten(1, (-1, groups)).sum(2)
    return torch.einsum("hqk,khd->qhd", by_scores, wide_k), by_k, by_v


@pytest.fixture
def torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """`varlen` on a CPU goes the way it goes on a GPU, through torch's operation; its calls."""
    monkeypatch.setattr(attention_module, "reference_varlen", attention_module.torch_varlen)
    CALLS.clear()
    yield CALLS


# Those that are tried at several stages, and other common ones; GPT-2 drops attention weights by default
SUPPORTED = [*CUTTABLE, "gpt2", "gemma2", "granite", "cohere", "phi", "qwen3_moe", "olmo3", "smollm3"]


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_step_in_training_mode_with_the_kernels_of_a_gpu(
    family: str, torchs_kernel: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels_module, "missing_for_triton", lambda: ["Triton, which needs a GPU"])
    monkeypatch.setattr(kernels_module, "has_flash", lambda: False)
    config = narrow(AutoConfig.for_model(family))
    config.vocab_size = 97
    whole = whole_model(config, kernels=choose_kernels("auto", "cuda", "bf16"))
    assert whole.training
    loss = loss_of([whole], *packed_rows())
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in whole.parameters())
    assert sum(bool(p.grad is not None and p.grad.any()) for p in whole.parameters()) > 4
    assert (whole.kernels.attention == "varlen") == bool(torchs_kernel)


def test_dropout_of_attention_weights_is_kept_and_takes_another_kernel(torchs_kernel: list[str]) -> None:
    config = tiny_config("llama", attention_dropout=0.5)
    whole = whole_model(config, kernels=VARLEN)
    assert whole.kernels.attention == "cudnn"
    rows = packed_rows()
    torch.manual_seed(0)
    first, second = loss_of([whole], *rows), loss_of([whole], *rows)
    assert first.isfinite() and first != second and not torchs_kernel
    with pytest.raises(ConfigError, match="kernels = 'fused' .*attention_dropout is 0.5: set it to 0"):
        whole_model(config, kernels=Kernels(attention="varlen", strict=True))


def test_a_proof_draws_nothing_from_the_runs_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    whole_model(tiny_config("llama", attention_dropout=0.37))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_selective_keeps_attention_over_documents(family: str, torchs_kernel: list[str]) -> None:
    config, rows, grads, calls = tiny_config(family), packed_rows(), [], []
    for recompute in ("none", "selective", "full"):
        whole = whole_model(config, kernels=VARLEN, recompute=recompute)
        torchs_kernel.clear()
        loss_of([whole], *rows).backward()
        calls.append(len(torchs_kernel))
        grads.append([p.grad for p in whole.parameters()])
    assert calls == [4, 4, 8], "calls of attention's forward kernel in four layers"
    plain = whole_model(config)
    loss_of([plain], *rows).backward()
    for found in grads:
        torch.testing.assert_close(found, [p.grad for p in plain.parameters()], rtol=1e-4, atol=1e-5)


def test_rows_of_one_document_take_cudnn_and_equal_the_kernel_over_documents(
    torchs_kernel: list[str],
) -> None:
    whole, (tokens, positions, labels) = whole_model(tiny_config("gemma3"), kernels=VARLEN), packed_rows()
    torchs_kernel.clear()
    whole(tokens, positions, labels)
    assert len(torchs_kernel) == 4
    torchs_kernel.clear()
    single = torch.arange(positions.shape[1]).expand_as(positions)
    loss = whole(tokens, single, labels)
    assert len(torchs_kernel) == 2, "the two layers with windows stay with the kernel that knows them"
    plain = whole_model(tiny_config("gemma3"))(tokens, single, labels)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("length", "masked", "cudnn"),
    [(64, True, False), (192, True, False), (128, True, True), (64, False, True)],
)
def test_cudnn_is_left_out_where_its_gradient_is_nan(
    length: int, masked: bool, cudnn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytorch#196678: a mask and a length of 64 modulo 128."""
    given: list[list[SDPBackend]] = []
    real = attention_module.sdpa_kernel

    def noted(backends: list[SDPBackend], **options: bool) -> object:
        given.append(backends)
        return real(backends, **options)

    monkeypatch.setattr(attention_module, "sdpa_kernel", noted)
    module = types.SimpleNamespace(is_causal=True, training=True)
    parts = [torch.randn(1, 2, length, 8) for _ in range(3)]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril() if masked else None
    attention_module.cudnn_attention(module, *parts, mask)
    assert (SDPBackend.CUDNN_ATTENTION in given[0]) == cudnn


def test_flash_attention_is_only_what_has_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_flash()
    monkeypatch.setitem(sys.modules, "flash_attn", package := types.ModuleType("flash_attn"))
    package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    assert not has_flash(), "flash-attn 4 alone lives under the same name, with other functions"
    package.flash_attn_varlen_func = lambda *a, **k: None  # type: ignore[attr-defined]
    assert has_flash()
    monkeypatch.setattr(kernels_module, "has_flash3", lambda: True)
    assert choose_kernels("auto", "cuda", "bf16").attention == "flash3"


@pytest.mark.parametrize(
    ("attention", "package"), [("flash", "flash_attn"), ("flash3", "flash_attn_interface")]
)
def test_flash_attention_is_called_as_it_wants(
    attention: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(q, k, v, bounds, bounds_k, *, softmax_scale, causal, window_size, deterministic, **longest):  # noqa: ANN001, ANN202, ANN003
        assert causal and window_size in ((-1, -1), (3, 0)) and deterministic is False
        assert longest == dict.fromkeys(("max_seqlen_q", "max_seqlen_k"), q.shape[0] // 2)
        window = None if window_size[0] < 0 else window_size[0] + 1
        out = reference_varlen(q, k, v, bounds, 0, softmax_scale, window)
        return (out, None) if attention == "flash3" else out

    flash_varlen = attention_module.flash_varlen
    monkeypatch.setitem(sys.modules, package, types.SimpleNamespace(flash_attn_varlen_func=stand_in))
    config, rows = tiny_config("gemma3"), packed_rows()
    plain = whole_model(config)(*rows)
    kernel = attention_module.NAMES[attention]
    monkeypatch.setattr(
        attention_module, "reference_varlen", lambda *args: flash_varlen(*args, package=package)
    )
    whole = whole_model(config, kernels=Kernels(attention=attention))
    assert is_varlen(attention) and whole.hf.config._attn_implementation == kernel
    torch.testing.assert_close(whole(*rows), plain, rtol=1e-5, atol=0)


def test_compiled_blocks_need_one_graph_for_every_number_of_documents(
    torchs_kernel: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[str] = []

    def run_as_it_is(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph.code)
        return graph.forward

    def compile_module(module: torch.nn.Module) -> None:
        module._compiled_call_impl = torch.compile(module._call_impl, backend=run_as_it_is, fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    kernels = Kernels(attention="varlen", compile=True)
    compiled, plain = whole_model(tiny_config("llama"), kernels=kernels), whole_model(tiny_config("llama"))
    tokens, positions, labels = packed_rows()
    for starts in ((), (8,), (4, 8), (2, 4, 8)):  # more and more documents in the second row
        for start in starts:
            positions[1, start:] = torch.arange(16 - start)
        loss = compiled(tokens, positions, labels)
        torch.testing.assert_close(loss, plain(tokens, positions, labels), rtol=1e-5, atol=0)
    assert len(graphs) == 1
