"""Computing layers again changes memory, not numbers."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, loss_of, packed_rows, stage_models, tiny_config, whole_model
from transformers import AutoConfig

from llmtrain.errors import ConfigError
from llmtrain.model.kernels import Kernels


def trained(stages: list) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Loss, gradients, and the bytes kept for backward."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    rows = packed_rows()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(stages, *rows)
    loss.backward()
    return loss, [p.grad for stage in stages for p in stage.parameters()], kept


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_do_not_change(family: str, recompute: str, count: int) -> None:
    config = tiny_config(family)
    loss, grads, _ = trained(stage_models(config, count))
    again, others, _ = trained(stage_models(config, count, recompute=recompute))
    assert torch.equal(again, loss)
    for ours, theirs in zip(others, grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_bounds_of_documents_reach_the_second_forward_pass() -> None:
    config, kernels = tiny_config("gemma3"), Kernels(attention="varlen")
    whole = whole_model(config, kernels=kernels, recompute="full")
    first, second = packed_rows(seed=0), packed_rows(seed=1)
    other = second[1].roll(1, 0)  # other documents
    losses = [
        whole(*first),
        whole(second[0], other, second[2]),
    ]  # two micro-batches in flight, as in a pipeline
    sum(losses).backward()
    plain = whole_model(config, kernels=kernels)
    (plain(*first) + plain(second[0], other, second[2])).backward()
    for ours, theirs in zip(whole.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-7)


def test_more_is_computed_again_and_less_is_kept() -> None:
    config = tiny_config("llama")
    kept = {
        recompute: trained([whole_model(config, recompute=recompute)])[2]
        for recompute in ("none", "selective", "full")
    }
    assert kept["full"] < kept["none"] / 2
    assert kept["selective"] < kept["none"]


def test_a_family_that_can_not_is_refused() -> None:
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=2, vocab_size=97)
    stage = whole_model(config)
    stage.hf.__class__.supports_gradient_checkpointing, before = False, True
    try:
        with pytest.raises(ConfigError, match="recompute = 'full' .*gpt2.*recompute: none"):
            whole_model(config, recompute="full")
    finally:
        stage.hf.__class__.supports_gradient_checkpointing = before
