"""What is chosen where, what is refused, and Liger's kernels in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import loss_of, packed_rows, tiny_config, whole_model
from transformers import AutoConfig

from llmtrain.errors import ConfigError
from llmtrain.model import kernels as kernels_module
from llmtrain.model.kernels import Kernels, choose_kernels, fit, missing_for_triton
from llmtrain.model.structure import skeleton

TOLERANCE = {
    "rms_norm": 1e-6,
    "swiglu": 1e-6,
    "rope": 1e-6,
    "cross_entropy": 1e-6,
    "whole_llama": 1e-5,
    "recomputed_llama": 1e-5,
    "recomputed_families": 1e-5,
}


@pytest.fixture
def full_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that `fused` needs, whatever this machine has."""
    monkeypatch.setattr(kernels_module, "missing_for_triton", list)
    monkeypatch.setattr(kernels_module, "missing_for_liger", list)
    monkeypatch.setattr(kernels_module, "has_flash", lambda: False)
    monkeypatch.setattr(kernels_module, "has_torch_varlen", lambda: True)


def test_auto_on_a_cpu_is_plain_torch() -> None:
    assert choose_kernels("auto", "cpu", "bf16") == Kernels(
        attention="sdpa",
        norm="torch",
        rope="torch",
        mlp="torch",
        loss="chunked",
        optimizer="fused",
        compile=False,
    )


def test_auto_on_cuda_takes_the_fast_ones(full_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = choose_kernels("auto", "cuda", "bf16")
    assert (chosen.attention, chosen.norm, chosen.rope, chosen.mlp) == ("varlen", "liger", "liger", "liger")
    assert chosen.loss == "fused"
    assert not chosen.compile and not chosen.strict
    assert choose_kernels("auto", "cuda", "bf16", mask_documents=False).attention == "cudnn"
    assert choose_kernels("auto", "cuda", "fp32").attention == "cudnn"
    monkeypatch.setattr(kernels_module, "has_flash", lambda: True)
    assert choose_kernels("auto", "cuda", "bf16").attention == "flash"


def test_auto_without_a_c_compiler_does_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert any("C compiler" in what for what in missing_for_triton())
    chosen = choose_kernels("auto", "cuda", "bf16")
    assert (chosen.norm, chosen.rope, chosen.mlp, chosen.loss) == ("torch", "torch", "torch", "chunked")


def test_fused_compiles_blocks_and_takes_no_excuse(full_machine: None) -> None:
    chosen = choose_kernels("fused", "cuda", "bf16")
    assert chosen.compile and chosen.strict and chosen.loss == "fused"
    assert (chosen.norm, chosen.rope, chosen.mlp) == ("torch", "torch", "torch"), (
        "inductor fuses these itself"
    )


def test_fused_that_can_not_be_had_names_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(kernels_module, "has_flash", lambda: False)
    monkeypatch.setattr(kernels_module, "has_torch_varlen", lambda: False)
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(ConfigError) as caught:
        choose_kernels("fused", "cpu", "bf16")
    said = str(caught.value)
    for what in ("a CUDA device", "triton", "C compiler", "variable-length attention"):
        assert f"needs {what}" in said or what in said
    assert len(caught.value.problems) == 4
    assert "kernels = 'fused'" in said and "kernels: auto" in said


def test_reference_is_mathematics_only_and_gives_the_same_loss() -> None:
    chosen = choose_kernels("reference", "cuda", "bf16")
    assert (chosen.attention, chosen.loss, chosen.optimizer, chosen.compile) == (
        "math",
        "whole",
        "torch",
        False,
    )
    config, rows = tiny_config("llama"), packed_rows()
    reference = loss_of([whole_model(config, kernels=chosen)], *rows)
    auto = loss_of([whole_model(config, kernels=choose_kernels("auto", "cpu", "fp32"))], *rows)
    torch.testing.assert_close(reference, auto, rtol=1e-6, atol=0)


def test_describe_is_plain_data_for_the_log() -> None:
    described = Kernels(attention="cudnn").describe()
    assert described["attention"] == "cudnn" and json.loads(json.dumps(described)) == described


@pytest.mark.parametrize(("family", "attention"), [("gemma2", "eager"), ("llama", "varlen")])
def test_a_family_gets_the_attention_it_can_have(family: str, attention: str) -> None:
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    hf = skeleton(AutoConfig.for_model(family, **small, intermediate_size=64, vocab_size=50), torch.float32)
    assert fit(Kernels(attention="varlen"), hf).attention == attention
    assert fit(Kernels(attention="varlen", documents=False), hf).attention in ("eager", "cudnn")
    if attention == "eager":
        with pytest.raises(ConfigError, match="kernels = 'fused' .*gemma2.*its own eager code"):
            fit(Kernels(attention="varlen", strict=True), hf)


def test_an_attention_without_windows_is_not_given_sliding_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module, "has_window", lambda attention: False)
    plain, sliding = (skeleton(tiny_config(family), torch.float32) for family in ("llama", "gemma3"))
    assert fit(Kernels(attention="varlen"), plain).attention == "varlen"
    assert fit(Kernels(attention="varlen"), sliding).attention == "cudnn"
    with pytest.raises(ConfigError, match="gemma3_text can't have its attention by variable lengths"):
        fit(Kernels(attention="varlen", strict=True), sliding)


def test_what_was_really_taken_is_on_the_stage() -> None:
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = AutoConfig.for_model("gemma2", **small, head_dim=16, intermediate_size=64, vocab_size=97)
    config.pad_token_id = None
    stage = whole_model(config, kernels=Kernels(attention="cudnn"))
    assert stage.kernels.describe()["attention"] == "eager"
    assert stage.hf.config._attn_implementation == "eager"


def test_the_optimizers_are_the_same_arithmetic() -> None:
    weights = [torch.ones(5, requires_grad=True) for _ in range(2)]
    for weight, fused in zip(weights, (True, False), strict=True):
        optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, fused=fused, foreach=False)
        for _ in range(3):
            optimizer.zero_grad()
            (weight * torch.arange(5)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1])


needs_triton = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("liger_kernel", "triton")),
    reason="needs liger-kernel and triton",
)


@needs_triton
def test_the_kernel_of_the_loss_compiles_for_hopper() -> None:
    """The interpreter takes what the compiler refuses; the compiler needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from llmtrain.model.fused_cross_entropy import BLOCK, cross_entropy_kernel

    constants = {"CAPPED": True, "GRADIENT": True, "UNTRAINED": -100, "SIZE": BLOCK}
    types = {"raw_pointer": "*bf16", "stride": "i32", "label_pointer": "*i64", "loss_pointer": "*fp32"}
    types |= {"vocab": "i32", "scale": "fp32", "cap": "fp32", **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=cross_entropy_kernel, signature=types, constexprs=constants)
    target = GPUTarget("cuda", 90, 32)
    assert triton.compile(source, target=target, options={"num_warps": 8}).asm["cubin"]


@needs_triton
def test_ligers_kernels_equal_torch_in_tritons_interpreter() -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(here / "triton_on_cpu.py")],
        capture_output=True, text=True, env=environment, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.strip().splitlines()[-1])
    assert errors.keys() == TOLERANCE.keys()
    for name, error in errors.items():
        assert isinstance(error, float) and error < TOLERANCE[name], f"{name}: {error}"
