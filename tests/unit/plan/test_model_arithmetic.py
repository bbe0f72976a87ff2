"""Parameters, operations and bytes against numbers known from elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain.config.deepspeed import load_template, resolve
from llmtrain.config.schema import RunConfig
from llmtrain.plan.compute import flops_per_token, mfu, peak_flops
from llmtrain.plan.head import chunk_rows
from llmtrain.plan.memory import Kept, activation_bytes, estimate, kept_by, rows_that_fit
from llmtrain.plan.model_shape import ModelShape, shape_of

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
MIXTRAL = {
    **LLAMA_8B,
    "model_type": "mixtral",
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def shape(config: dict[str, Any], **more: Any) -> ModelShape:
    found = shape_of({**config, **more})
    assert found is not None
    return found


def test_parameters_of_published_models() -> None:
    assert shape(LLAMA_8B).parameters == 8_030_261_248
    assert shape(MIXTRAL).parameters == 46_702_792_704
    small = shape(LLAMA_8B, hidden_size=2048, num_hidden_layers=16, intermediate_size=8192, head_dim=64)
    assert shape_of({**LLAMA_8B, "vocab_size": None}) is None
    assert small.head_dim == 64


def test_counts_equal_the_built_model() -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 96, "vocab_size": 128}
    for tied in (True, False):
        config = transformers.LlamaConfig(**sizes, tie_word_embeddings=tied)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        assert shape(config.to_dict()).parameters == sum(p.numel() for p in model.parameters())
        found = shape_of(config)
        assert found is not None
        assert found.tied == tied


def test_operations_per_token() -> None:
    llama = shape(LLAMA_8B)
    assert flops_per_token(llama, 2048) / 1e9 == pytest.approx(48.25, abs=0.005)
    assert flops_per_token(llama, 2048, "causal") / 1e9 == pytest.approx(46.64, abs=0.005)
    assert flops_per_token(llama, 4096) / 1e9 == pytest.approx(51.47, abs=0.005)
    assert flops_per_token(llama, 0, matmul_parameters=10) == 60


def test_a_window_bounds_the_attention() -> None:
    kinds = ["sliding_attention", "full_attention"] * 16
    windowed = shape(LLAMA_8B, layer_types=kinds, sliding_window=512)
    whole = shape(LLAMA_8B)
    saved = flops_per_token(whole, 4096) - flops_per_token(windowed, 4096)
    assert saved == 12 * 4096 * 16 * (4096 - 512)


def test_only_active_experts_work() -> None:
    mixtral = shape(MIXTRAL)
    assert mixtral.active_matmul_parameters / 1e9 == pytest.approx(12.75, abs=0.05)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA B200", 2250.0),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_peaks(name: str, tflops: float) -> None:
    assert peak_flops(name) == pytest.approx(tflops * 1e12)
    assert peak_flops(name, "fp32") is None


def test_mfu_needs_a_peak() -> None:
    assert peak_flops("AMD EPYC 9654") is None
    assert mfu(1000, 1e9, None) is None
    assert mfu(10_000, 1e9, 1e14, devices=2) == pytest.approx(0.05)


def resolved(name: str, precision: str, world: int = 8) -> dict[str, Any]:
    run = RunConfig.model_validate(
        {
            "name": "x",
            "model": {"config": {}},
            "data": {"train": [{"path": "d"}]},
            "schedule": {"steps": 1},
            "precision": precision,
        }
    )
    return resolve(load_template(name), run, 1, 1, world, "cuda")


@pytest.mark.parametrize(
    ("name", "precision", "dp", "per_parameter"),
    [
        ("zero0", "fp32", 1, 16),
        ("zero0", "bf16", 8, 16),
        ("zero1", "bf16", 1, 18),
        ("zero1", "bf16", 8, 6 + 12 / 8),
        ("zero1", "fp16", 8, 4 + 16 / 8),
        ("zero2", "bf16", 1, 20),
        ("zero2", "bf16", 8, 2 + 18 / 8),
        ("zero3", "bf16", 8, 20 / 8),
        ("zero2_offload", "bf16", 8, 2 + 6 / 8),
        ("zero3_offload", "bf16", 8, 6 / 8),
        ("zero3_nvme", "bf16", 8, 6 / 8),
    ],
)
def test_bytes_per_parameter(name: str, precision: str, dp: int, per_parameter: float) -> None:
    llama = shape(LLAMA_8B)
    memory = estimate(llama, resolved(name, precision), dp=dp, seq_len=1, micro=1)
    states = memory.weights + memory.gradients + memory.optimizer
    assert states / llama.parameters == pytest.approx(per_parameter, rel=1e-3)
    assert (memory.host > 0) == name.endswith(("offload", "nvme"))


def test_nvme_needs_its_buffers_in_main_memory() -> None:
    llama = shape(LLAMA_8B)
    for dp, group in ((8, 100_000_000), (128, llama.parameters // 128)):  # a whole sub-group, or all there is
        memory = estimate(llama, resolved("zero3_nvme", "bf16", dp), dp=dp, seq_len=1, micro=1)
        assert memory.host == 5 * 4 * group + 2 * llama.parameters // dp


def test_activations_follow_recompute_and_pipeline() -> None:
    llama = shape(LLAMA_8B)
    none, selective, full = (
        activation_bytes(llama, 4096, 32, 2, kind)
        for kind in ("none", "selective", "full")  # type: ignore[arg-type]
    )
    assert none / 2**30 == pytest.approx(17, rel=0.05)
    assert none > selective > full
    one = estimate(llama, resolved("zero1", "bf16"), dp=8, seq_len=4096, micro=1)
    two = estimate(llama, resolved("zero1", "bf16"), dp=4, pipeline=2, accumulation=8, seq_len=4096, micro=1)
    assert two.weights < one.weights
    assert two.activations == pytest.approx(one.activations)  # half the layers, two micro-batches in flight


def test_plain_norms_and_mlp_keep_half_as_much_again() -> None:
    llama = shape(LLAMA_8B)
    fused, eager = (activation_bytes(llama, 4096, 32, 2, "none", fused) for fused in (True, False))
    assert eager / fused == pytest.approx(1.56, abs=0.01)
    assert activation_bytes(llama, 1, 1, 2, "none") == pytest.approx(139_400, rel=2e-3), "traced"
    for kind in ("reference", "auto"):
        assert not kept_by(kind, "cpu").fused_layers
    assert kept_by("reference", "cuda").loss == "whole" and kept_by("fused", "cuda") == Kept()


def test_the_head_of_a_large_vocabulary_holds_its_fp32_gradient() -> None:
    llama = shape(LLAMA_8B)  # 128,256 ids of width 4096: 5 GiB that a limit of 512 MiB did not know
    table = llama.vocab * llama.hidden
    memory = estimate(llama, resolved("zero1", "bf16"), dp=8, seq_len=4096, micro=4)
    assert memory.head == 6 * table + 4 * 16384 * llama.hidden
    assert chunk_rows(llama.vocab, 2, "cuda") == 2092 and chunk_rows(32_000, 2, "cuda") == 4096
    assert chunk_rows(262_144, 2, "cuda") == 2048


def test_rows_that_fit_is_the_last_that_does() -> None:
    llama = shape(LLAMA_8B)
    dict_ = resolved("zero3", "bf16")
    memory = 80 * 2**30
    rows = rows_that_fit(llama, dict_, memory, seq_len=4096, dp=8)
    assert rows >= 1
    assert estimate(llama, dict_, seq_len=4096, micro=rows, dp=8).device <= 0.9 * memory
    assert estimate(llama, dict_, seq_len=4096, micro=rows + 1, dp=8).device > 0.9 * memory
    assert rows_that_fit(llama, resolved("zero0", "bf16"), memory, seq_len=4096, dp=8) == 0
