"""The same initial weights, bit for bit, in every topology."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, loss_of, packed_rows, stage_models, tiny_config, whole_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from llmtrain.errors import ConfigError
from llmtrain.model.build import build_partitioned
from llmtrain.model.kernels import Kernels

DTYPES = [torch.float32, torch.bfloat16]


class FakeZero3:
    """Stands for DeepSpeed's zero.Init: parameters are empty outside `gathered`, in the run's dtype, and
    so are the buffers it makes; on a rank that does not write, what is written is lost."""

    def __init__(self, dtype: torch.dtype, is_writer: bool = True):
        self.dtype, self.is_writer = dtype, is_writer
        self.whole: dict[nn.Parameter, torch.Tensor] = {}
        self.most_gathered = 0

    @contextmanager
    def construct(self) -> Iterator[None]:
        register, buffer = nn.Module.register_parameter, nn.Module.register_buffer

        def partitioned(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
            register(module, name, param)
            if param is not None and param not in self.whole:
                self.whole[param] = torch.full_like(param.data, 9.0, dtype=self.dtype)

        def narrowed(module: nn.Module, name: str, tensor: torch.Tensor, persistent: bool = True) -> None:
            buffer(module, name, tensor.to(self.dtype) if tensor.is_floating_point() else tensor, persistent)

        nn.Module.register_parameter, nn.Module.register_buffer = partitioned, narrowed
        try:
            yield
        finally:
            nn.Module.register_parameter, nn.Module.register_buffer = register, buffer
            for param in self.whole:
                param.data = torch.empty(0, dtype=self.dtype)

    @contextmanager
    def gathered(self, params: list[nn.Parameter]) -> Iterator[None]:
        self.most_gathered = max(self.most_gathered, sum(self.whole[p].numel() for p in params))
        for param in params:
            param.data = self.whole[param].clone()
        yield
        for param in params:
            assert param.dtype == self.dtype and param.data.shape == self.whole[param].shape
            if self.is_writer:
                self.whole[param] = param.data.clone()
            param.data = torch.empty(0, dtype=self.dtype)


def parameters(stages: list) -> dict[str, torch.Tensor]:
    return {stage.canonical_name(n): p for stage in stages for n, p in stage.named_parameters()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cut_starts_from_the_same_bits(family: str, dtype: torch.dtype) -> None:
    config = tiny_config(family)
    whole = parameters([whole_model(config, dtype=dtype)])
    for count in (2, 3):
        cut = parameters(stage_models(config, count, dtype=dtype))
        assert cut.keys() == whole.keys()
        assert all(cut[name].dtype == dtype and torch.equal(cut[name], whole[name]) for name in whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_zero3_starts_from_the_same_bits_one_layer_at_a_time(family: str, dtype: torch.dtype) -> None:
    config = tiny_config(family)
    whole = whole_model(config, dtype=dtype)
    zero3 = FakeZero3(dtype)
    stage = build_partitioned(config, dtype, "cpu", 7, zero3=zero3)
    expected = dict(whole.named_parameters())
    assert dict(stage.named_parameters()).keys() == expected.keys()
    for name, parameter in stage.named_parameters():
        assert parameter.numel() == 0, "gathered outside the context"
        assert torch.equal(zero3.whole[parameter], expected[name]), name
    assert zero3.most_gathered < sum(p.numel() for p in expected.values()) / 3
    buffers = dict(whole.named_buffers())
    for name, buffer in stage.named_buffers():
        assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers[name]), name
    for parameter in stage.parameters():
        parameter.data = zero3.whole[parameter]
    rows = packed_rows()
    assert torch.equal(loss_of([stage], *rows), loss_of([whole], *rows))


def test_a_rank_that_does_not_write_under_zero3_touches_no_parameter() -> None:
    zero3 = FakeZero3(torch.float32, is_writer=False)
    stage = build_partitioned(tiny_config("llama"), torch.float32, "cpu", 7, zero3=zero3)
    assert all((zero3.whole[parameter] == 9.0).all() for parameter in stage.parameters())
    assert stage.hf.model.rotary_emb.inv_freq.isfinite().all()


def test_another_seed_gives_other_weights_and_the_global_generator_is_left_alone() -> None:
    config = tiny_config("llama")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = whole_model(config, seed=1), whole_model(config, seed=2)
    assert torch.equal(torch.rand(3), expected)
    weight = "hf.model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(one.get_parameter(weight), other.get_parameter(weight))


def test_bf16_weights_are_the_rounded_fp32_weights() -> None:
    config = tiny_config("mixtral")
    wide = dict(whole_model(config).named_parameters())
    for name, parameter in whole_model(config, dtype=torch.bfloat16).named_parameters():
        assert torch.equal(parameter, wide[name].bfloat16()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_drawn_as_transformers_draws_them(family: str) -> None:
    config = tiny_config(family)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ours = whole_model(config)
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.hf.named_parameters():
        for measure in (torch.mean, torch.std):
            if parameter.numel() > 1000:
                assert measure(parameter).item() == pytest.approx(measure(theirs[name]).item(), abs=3e-3), (
                    name
                )
        if theirs[name].std() == 0:
            assert torch.equal(parameter, theirs[name]), name
    buffers = dict(plain.named_buffers())
    for name, buffer in ours.hf.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_rotary_frequencies_are_fp32_in_a_bf16_model() -> None:
    config = tiny_config("llama", rope_theta=500000.0)
    frequencies = whole_model(config, dtype=torch.bfloat16).hf.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32
    torch.testing.assert_close(frequencies, 500000.0 ** -(torch.arange(0, 16, 2) / 16))


def test_weights_that_a_family_leaves_unset_are_refused_by_name() -> None:
    config = AutoConfig.for_model(
        "apertus", hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=50, pad_token_id=None,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="does not initialise .*alpha_p.* of apertus.*model.source"):
        whole_model(config, kernels=Kernels(documents=False))


def test_dropout_layers_of_an_embedding_stay_on_the_first_stage() -> None:
    first, last = stage_models(tiny_config("gpt_neox", hidden_dropout=0.5), 2)
    assert isinstance(first.hf.gpt_neox.emb_dropout, nn.Dropout)
    given = torch.ones(1, 4, 64)
    assert not isinstance(last.hf.gpt_neox.emb_dropout, nn.Dropout)
    kept: Any = last.hf.gpt_neox.emb_dropout(given)
    assert torch.equal(kept, given)
