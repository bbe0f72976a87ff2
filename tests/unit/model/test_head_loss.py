"""The loss sum against plain cross entropy, whole and in chunks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from llmtrain.model import loss as loss_module
from llmtrain.model.loss import HeadFormula, make_loss_head
from llmtrain.model.probes import head_formula

FORMULAS = [HeadFormula(), HeadFormula(0.125), HeadFormula(1.0, 3.0), HeadFormula(2.5, 5.0)]


def plain_loss(
    hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor, formula: HeadFormula
) -> torch.Tensor:
    logits = nn.functional.linear(hidden, head.weight, head.bias).float() * formula.scale
    if formula.cap is not None:
        logits = formula.cap * torch.tanh(logits / formula.cap)
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")


def case(rows: int, seq: int, vocab: int, bias: bool, dtype: torch.dtype = torch.float32) -> tuple:
    noise = torch.Generator().manual_seed(3)
    hidden = torch.randn(rows, seq, 24, generator=noise).to(dtype).requires_grad_()
    head = nn.Linear(24, vocab, bias=bias).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=noise))
    labels = torch.randint(0, vocab, (rows, seq), generator=noise)
    labels[:, 1::3] = -100
    return hidden, head, labels


@pytest.mark.parametrize("formula", FORMULAS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", ["whole", "chunked"])
@pytest.mark.parametrize("shape", [(1, 1, 7), (3, 5, 11), (2, 33, 130)])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(
    formula: HeadFormula, bias: bool, mode: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * shape[2] * 4)  # four rows a chunk
    hidden, head, labels = case(*shape, bias)
    expected = plain_loss(hidden, head, labels, formula)
    wanted = torch.autograd.grad(expected * 0.5, [hidden, *head.parameters()])
    make_loss_head(head, formula, mode)
    found = head(hidden, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad(found * 0.5, [hidden, *head.parameters()])
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_chunks_pass_the_numeric_gradient_check() -> None:
    noise = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 3, dtype=torch.float64, generator=noise, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64, generator=noise, requires_grad=True)
    labels = torch.tensor([0, 6, -100, 2, 2])

    def summed(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return loss_module.ChunkedLoss.apply(h, w, None, labels, HeadFormula(0.5, 4.0), 2)

    # The loss is fp32 by law, so the differences are taken over steps that fp32 resolves.
    assert torch.autograd.gradcheck(summed, (hidden, weight), eps=1e-2, atol=2e-3, rtol=2e-3)


def test_the_chunked_loss_never_makes_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * 130 * 4)
    hidden, head, labels = case(2, 33, 130, False)
    make_loss_head(head, HeadFormula(), "chunked")
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            weight = (24, 130)  # transposed
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (130,) and out.shape != weight:
                largest = max(largest, out.numel() // 130)
            return out

    with Largest():
        head(hidden, labels).backward()
    assert 0 < largest <= 4


@pytest.mark.parametrize("mode", ["whole", "chunked"])
def test_rows_without_a_label_cost_nothing(mode: str) -> None:
    hidden, head, labels = case(2, 5, 11, True)
    make_loss_head(head, HeadFormula(), mode)
    found = head(hidden, torch.full_like(labels, -100))
    found.backward()
    assert found.item() == 0.0
    assert not hidden.grad.any() and not head.weight.grad.any()


def test_small_logits_are_made_whole_and_large_ones_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, labels = case(2, 5, 11, False)
    make_loss_head(head, HeadFormula(), "auto")
    assert type(head(hidden, labels).grad_fn).__name__ != "ChunkedLossBackward"
    monkeypatch.setattr(loss_module, "WHOLE_LOGITS_BYTES", 2 * 5 * 11 * 4 - 1)
    assert type(head(hidden, labels).grad_fn).__name__ == "ChunkedLossBackward"


def test_bf16_gradients_stay_close_to_fp32_over_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 130 * 4)
    hidden, head, labels = case(2, 64, 130, False, torch.bfloat16)
    exact = [t.detach().float().requires_grad_() for t in (hidden, head.weight)]
    logits = exact[0] @ exact[1].t()
    wanted = torch.autograd.grad(
        nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), exact
    )
    make_loss_head(head, HeadFormula(), "chunked")
    got = torch.autograd.grad(head(hidden, labels), [hidden, head.weight])
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours.float() - theirs).norm() < 0.01 * theirs.norm()


def test_without_labels_the_head_gives_logits() -> None:
    hidden, head, _ = case(2, 5, 11, True)
    expected = head(hidden)
    make_loss_head(head, HeadFormula(), "auto")
    assert torch.equal(head(hidden), expected)
    assert isinstance(head, nn.Linear)


SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 64, "vocab_size": 50, "pad_token_id": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "changes", "formula"),
    [
        ("llama", {}, HeadFormula()),
        ("granite", {"logits_scaling": 8.0}, HeadFormula(1 / 8)),
        ("cohere", {"logit_scale": 0.0625}, HeadFormula(0.0625)),
        ("gemma2", {"final_logit_softcapping": 30.0, "head_dim": 16}, HeadFormula(1.0, 30.0)),
        ("gemma3_text", {"final_logit_softcapping": None, "head_dim": 16}, HeadFormula()),
    ],
)
def test_the_formula_of_a_familys_head_is_found_by_running_it(
    family: str, changes: dict, formula: HeadFormula
) -> None:
    found = head_formula(AutoConfig.for_model(family, **{**SMALL, **changes}))
    assert found is not None
    assert found.scale == pytest.approx(formula.scale) and found.cap == formula.cap
