"""The loss sum against plain cross entropy, whole and in chunks."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from llmtrain.model import loss as loss_module
from llmtrain.model.loss import HeadFormula, make_loss_head
from llmtrain.model.probes import head_formula
from llmtrain.plan import head as head_plan


def four_rows(monkeypatch: pytest.MonkeyPatch, rows: int = 4) -> None:
    """Chunks of so many rows."""
    monkeypatch.setattr(loss_module, "chunk_rows", lambda vocab, element, device: rows)


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
    four_rows(monkeypatch)
    hidden, head, labels = case(*shape, bias)
    expected = plain_loss(hidden, head, labels, formula)
    wanted = torch.autograd.grad(expected * 0.5, [hidden, *head.parameters()])
    make_loss_head(head, formula, mode)
    found = head(hidden, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad(found * 0.5, [hidden, *head.parameters()])
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_chunks_pass_the_numeric_gradient_check(monkeypatch: pytest.MonkeyPatch) -> None:
    four_rows(monkeypatch)
    noise = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 3, dtype=torch.float64, generator=noise, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64, generator=noise, requires_grad=True)
    labels = torch.tensor([0, 6, -100, 2, 2])

    def summed(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return loss_module.ChunkedLoss.apply(h, w, None, labels, HeadFormula(0.5, 4.0), "chunked")

    # The loss is fp32 by law, so the differences are taken over steps that fp32 resolves.
    assert torch.autograd.gradcheck(summed, (hidden, weight), eps=1e-2, atol=2e-3, rtol=2e-3)


def test_the_chunked_loss_never_makes_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    four_rows(monkeypatch)
    hidden, head, labels = case(2, 33, 130, False)
    make_loss_head(head, HeadFormula(), "chunked")
    largest = 0

    class Largest(TorchDispatchMode):
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


class Peak(TorchDispatchMode):
    """The most bytes of new storages that were alive at once."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in given}
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.alive.values()))
        return out


@pytest.mark.parametrize(("vocab", "width"), [(1000, 4), (200, 128)], ids=["logits", "gradients"])
def test_the_plan_counts_what_the_loss_holds(vocab: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loss_module, head_plan):
        monkeypatch.setattr(module, "chunk_rows", lambda vocab, element, device: 16)
    hidden, head = torch.randn(64, width, requires_grad=True), nn.Linear(width, vocab, bias=False)
    labels = torch.randint(0, vocab, (64,))
    make_loss_head(head, HeadFormula(), "chunked")
    with Peak(hidden, head.weight, labels) as peak:
        head(hidden, labels).backward()
    assert peak.most == pytest.approx(head_plan.head_bytes(64, vocab, width, 4, "chunked"), rel=0.02)


@pytest.mark.parametrize("mode", ["whole", "chunked"])
def test_rows_without_a_label_cost_nothing(mode: str) -> None:
    hidden, head, labels = case(2, 5, 11, True)
    make_loss_head(head, HeadFormula(), mode)
    found = head(hidden, torch.full_like(labels, -100))
    found.backward()
    assert found.item() == 0.0
    assert not hidden.grad.any() and not head.weight.grad.any()


def losses_and_gradients(
    dtype: torch.dtype, tied: bool, mode: str | None, factor: float = 1.2345e-2
) -> list[torch.Tensor]:
    """Of a 16-bit case, computed in `dtype`; tied: the head's weight is the embedding's too."""
    hidden, head, labels = case(2, 64, 130, False, torch.bfloat16)
    head, given = head.to(dtype), hidden.detach().to(dtype).requires_grad_()
    inputs = given + nn.functional.embedding(labels.clamp(min=0), head.weight) if tied else given
    if mode is None:
        logits = nn.functional.linear(inputs, head.weight)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    else:
        make_loss_head(head, HeadFormula(), mode)
        loss = head(inputs, labels)
    return [loss.detach(), *torch.autograd.grad(loss * factor, [given, head.weight])]


@pytest.mark.parametrize("tied", [False, True])
def test_bf16_is_as_near_to_fp64_as_its_roundings_allow(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight chunks and a factor that bf16 does not know: logits, shares, products are rounded once each.

    The bands are what plain cross entropy in bf16 has, 0.5 %, and 1.2 % where the sum before the head rounds.
    """
    four_rows(monkeypatch, 16)
    exact = losses_and_gradients(torch.float64, tied, None)
    found = losses_and_gradients(torch.bfloat16, tied, "chunked")
    errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]
    assert errors[0] < 5e-4 and max(errors[1:]) < (1.3e-2 if tied else 6e-3), errors


def test_the_losss_factor_is_not_rounded_to_the_models_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.0035 is 1 in bf16: all gradients would be smaller by that, of one sign."""
    four_rows(monkeypatch, 16)
    one, more = (losses_and_gradients(torch.bfloat16, False, "chunked", factor) for factor in (1.0, 1.0035))
    for small, large in zip(one[1:], more[1:], strict=True):
        assert (large.double().norm() / small.double().norm()).item() == pytest.approx(1.0035, abs=1e-3)


def test_products_are_added_in_fp32_where_the_device_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, with the operation that a CPU lacks played by fp32 products."""
    real_mm, real_addmm, passes = torch.mm, torch.addmm, []

    def mm(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype | None = None, **more: object) -> object:
        return real_mm(a, b, **more) if out_dtype is None else real_mm(a.float(), b.float())

    def addmm(total, a, b, *, out_dtype, out):  # noqa: ANN001, ANN202
        assert out is total and total.dtype == out_dtype == torch.float32 and a.dtype == torch.bfloat16
        passes.append(1)
        return real_addmm(total, a.float(), b.float(), out=out)

    plain = losses_and_gradients(torch.bfloat16, False, "chunked")
    four_rows(monkeypatch, 16)
    assert not loss_module.adds_in_fp32(torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch, "addmm", addmm)
    loss_module.adds_in_fp32.cache_clear()
    found = losses_and_gradients(torch.bfloat16, False, "chunked")
    loss_module.adds_in_fp32.cache_clear()
    assert len(passes) == 8, "one trial and seven of eight chunks: the first makes the sum"
    exact = losses_and_gradients(torch.float64, False, None)
    errors = [((a[2].double() - exact[2]).norm() / exact[2].norm()).item() for a in (found, plain)]
    assert errors[0] < errors[1] < 6e-3, "fewer roundings, nearer to fp64"


def test_nothing_is_differentiated_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, labels = case(2, 5, 11, False)
    make_loss_head(head, HeadFormula(), "chunked")
    monkeypatch.setattr(loss_module, "add_product", None)
    with torch.no_grad():
        assert head(hidden, labels).isfinite(), "an evaluation paid for gradients"


def test_without_labels_the_head_gives_logits() -> None:
    hidden, head, _ = case(2, 5, 11, True)
    expected = head(hidden)
    make_loss_head(head, HeadFormula(), "chunked")
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
