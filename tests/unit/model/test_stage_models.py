"""A model cut into stages is the model: losses, gradients, names, memory."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, loss_of, packed_rows, stage_models, tiny_config, whole_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from llmtrain.errors import ConfigError
from llmtrain.model.build import build_stage, plan_cuts
from llmtrain.model.kernels import Kernels
from llmtrain.model.stages import Cut, balance


def gradients(stages: list) -> dict[str, torch.Tensor]:
    """By canonical name, tied ones summed."""
    found: dict[str, torch.Tensor] = {}
    for stage in stages:
        for name, parameter in stage.named_parameters():
            key = stage.canonical_name(name)
            found[key] = found[key] + parameter.grad if key in found else parameter.grad
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_one_stage_is_the_model_of_transformers(family: str) -> None:
    config = tiny_config(family)
    whole = whole_model(config)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(whole.hf.state_dict())
    tokens, positions, labels = packed_rows()
    logits = plain(input_ids=tokens, position_ids=positions).logits
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss = whole(tokens, positions, labels)
    expected.backward()
    loss.backward()
    assert loss.dtype == torch.float32 and loss.ndim == 0
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    ours = gradients([whole])
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=3e-5, msg=name)  # of up to 24


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_stages_give_the_loss_and_the_gradients_of_the_whole(family: str, count: int) -> None:
    config = tiny_config(family)
    whole, stages, rows = whole_model(config), stage_models(config, count), packed_rows()
    expected, loss = loss_of([whole], *rows), loss_of(stages, *rows)
    assert torch.equal(loss, expected)
    expected.backward()
    loss.backward()
    ours, theirs = gradients(stages), gradients([whole])
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_stage_holds_only_its_own_parameters_under_their_canonical_names() -> None:
    config = tiny_config("llama")
    stages = stage_models(config, 2)
    names = [{stage.canonical_name(name) for name, _ in stage.named_parameters()} for stage in stages]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {name for name, _ in whole_model(config).hf.named_parameters()}
    assert "model.embed_tokens.weight" in names[0] and "lm_head.weight" in names[1]
    assert [stage.tied_weight for stage in stages] == [None, None]


def test_a_tied_weight_is_on_the_first_and_the_last_stage_under_one_name() -> None:
    first, middle, last = stage_models(tiny_config("llama_tied"), 3)
    assert first.tied_weight is first.hf.model.embed_tokens.weight
    assert middle.tied_weight is None
    assert last.tied_weight is last.hf.lm_head.weight
    assert last.canonical_name("hf.lm_head.weight") == "model.embed_tokens.weight"
    assert last.hf.model.embed_tokens is None
    assert torch.equal(first.tied_weight, last.tied_weight)
    assert whole_model(tiny_config("llama_tied")).tied_weight is None


class BytesMade(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the bytes of the empty tensors that are made outside the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type != "meta" and "empty" in str(function):
            self.bytes += out.numel() * out.element_size()
        return out


def test_a_stage_is_built_without_memory_for_the_rest() -> None:
    config = tiny_config("llama", num_hidden_layers=8, hidden_size=128)
    cuts = plan_cuts(config, 4)
    build_stage(config, cuts[1], torch.float32, "cpu", 0)  # so that the proofs are done and remembered
    with BytesMade() as made:
        stage = build_stage(config, cuts[1], torch.float32, "cpu", 0)
    own = sum(p.numel() * 4 for p in stage.parameters())
    whole = sum(p.numel() * 4 for p in whole_model(config).parameters())
    assert own <= made.bytes < 1.1 * own < 0.3 * whole


def test_bf16_is_initialised_one_layer_at_a_time() -> None:
    config = tiny_config("llama", num_hidden_layers=8)
    cut = plan_cuts(config, 1)[0]
    build_stage(config, cut, torch.bfloat16, "cpu", 0)
    with BytesMade() as made:
        stage = build_stage(config, cut, torch.bfloat16, "cpu", 0)
    own = sum(p.numel() * 2 for p in stage.parameters())
    assert made.bytes < 3.1 * own  # each parameter once in bf16 and, in passing, once in fp32


def test_cuts_are_balanced_with_the_head_on_the_last_stage() -> None:
    big_head = tiny_config("llama", num_hidden_layers=12, vocab_size=2000)
    bounds = [(cut.first_layer, cut.last_layer) for cut in plan_cuts(big_head, 3)]
    sizes = [last - first for first, last in bounds]
    assert sum(sizes) == 12 and sizes[-1] < sizes[0]
    plain = [cut.last_layer - cut.first_layer for cut in plan_cuts(tiny_config("llama"), 4)]
    assert plain == [1, 1, 1, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_no_other_bounds_are_cheaper(count: int) -> None:
    costs = [3, 1, 4, 1, 5, 9, 2]
    bounds = balance(costs, costs, count)
    assert bounds[0] == 0 and bounds[-1] == len(costs) and len(bounds) == count + 1
    dearest = max(sum(costs[a:b]) for a, b in zip(bounds, bounds[1:], strict=False))
    best = {1: 25, 2: 14, 3: 11, 5: 9}
    assert dearest == best[count]


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel.pipeline = 5 .*4 decoder layers.*at most 4"):
        plan_cuts(tiny_config("llama"), 5)


def test_a_family_without_a_plan_is_refused_with_some_that_work() -> None:
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=4, n_head=2, vocab_size=50)
    with pytest.raises(ConfigError, match="no pipeline plan for gpt2.*ZeRO-3.*llama, qwen3"):
        plan_cuts(config, 2)
    assert whole_model(config).cut == Cut(0, 1, 0, 4)


def test_a_family_that_scales_its_embeddings_outside_their_module_is_refused() -> None:
    scaled = AutoConfig.for_model(
        "granite", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=64, vocab_size=50, embedding_multiplier=12.0,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="granite.*changes its embeddings"):
        build_stage(scaled, Cut(0, 2, 0, 1), torch.float32, "cpu", 0)
    scaled.embedding_multiplier = 1.0
    assert build_stage(scaled, Cut(0, 2, 0, 1), torch.float32, "cpu", 0).cut.is_first


def test_a_head_that_is_not_understood_is_computed_by_the_model_or_refused() -> None:
    config = AutoConfig.for_model("bloom", hidden_size=32, n_layer=2, n_head=2, vocab_size=97)
    stage = whole_model(config, kernels=Kernels(documents=False))
    assert stage.kernels.loss == "model"
    tokens, positions, labels = packed_rows()
    logits = stage.hf(input_ids=tokens).logits
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(stage(tokens, positions, labels), expected)
    with pytest.raises(ConfigError, match="kernels = 'fused' .*bloom.*its loss can't be fused"):
        whole_model(config, kernels=Kernels(attention="eager", documents=False, strict=True))
