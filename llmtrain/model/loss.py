"""The head and its loss: the SUM of cross entropy over the labels that are trained on, in fp32.

The loss is computed inside the head's own `forward`, because ZeRO-3 gathers a module's parameters in the
hooks around it. It goes chunk by chunk, with the gradients of hidden states and weight made on the way, so
the logits of a whole batch never exist; a chunk's gradient takes the place of its logits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llmtrain.data.rows import IGNORED
from llmtrain.plan.head import chunk_rows


@dataclass(frozen=True)
class HeadFormula:
    """logits = softcap(scale · (hidden Wᵀ + b)), softcap(x) = cap · tanh(x / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def apply(self, raw: torch.Tensor) -> torch.Tensor:
        """fp32 logits from the linear map's output."""
        logits = raw.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits

    def backward(self, logits: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of the linear map's output from that of `logits`; changes `grad` in place."""
        if self.cap is not None:
            grad.mul_(1 - (logits / self.cap).square())
        if self.scale != 1.0:
            grad.mul_(self.scale)
        return grad


def whole_loss(raw: torch.Tensor, labels: torch.Tensor, formula: HeadFormula) -> torch.Tensor:
    """Loss sum from the linear map's output [..., vocab] and labels [...]."""
    logits = formula.apply(raw)
    return F.cross_entropy(
        logits.view(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
    )


def cross_entropy_and_gradient(
    raw: torch.Tensor, labels: torch.Tensor, formula: HeadFormula, wants_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss sum from the linear map's output [n, vocab], and the gradient by it, in its type, when wanted."""
    plain = formula == HeadFormula()
    logits = raw if plain else formula.apply(raw)
    shares = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    trained, at = labels != IGNORED, labels.clamp(min=0).unsqueeze(1)
    own = torch.where(trained.unsqueeze(1), shares.gather(1, at), 0.0)
    loss = -own.sum()
    if not wants_gradient:
        return loss, raw
    if plain and raw.dtype in (torch.bfloat16, torch.float16):
        del shares
        grad = torch.softmax(raw, dim=-1)  # in fp32 inside, rounded once
    else:
        grad = shares.exp_()
    # where the model is sure, this share is near 1: taken off after rounding, nothing would be left
    grad.scatter_(1, at, torch.expm1(own).to(grad.dtype))
    grad = formula.backward(logits, grad).mul_(trained.unsqueeze(1))
    return loss, grad.to(raw.dtype)


def fused_cross_entropy_and_gradient(
    raw: torch.Tensor, labels: torch.Tensor, formula: HeadFormula, wants_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in one Triton kernel, which writes the gradient over `raw`."""
    from llmtrain.model.fused_cross_entropy import fused_cross_entropy

    return fused_cross_entropy(raw, labels, formula.scale, formula.cap, wants_gradient), raw


CROSS_ENTROPY = {"chunked": cross_entropy_and_gradient, "fused": fused_cross_entropy_and_gradient}


class ChunkedLoss(torch.autograd.Function):
    """Loss sum of a linear head, chunk by chunk, gradients made in forward.

    forward(hidden [n, d], weight [v, d], bias [v] or None, labels [n], formula, name in CROSS_ENTROPY)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        formula: HeadFormula,
        name: str,
    ) -> torch.Tensor:
        """The loss sum, and the gradients for backward where they are needed."""
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wants = wants_hidden or wants_weight or wants_bias
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight: torch.Tensor | None = None
        grad_bias = torch.zeros(weight.shape[0], device=weight.device) if wants_bias else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = chunk_rows(weight.shape[0], hidden.element_size(), hidden.device.type)
        for start in range(0, hidden.shape[0], rows):
            part, label = hidden[start : start + rows], labels[start : start + rows]
            part_loss, grad = CROSS_ENTROPY[name](F.linear(part, weight, bias), label, formula, wants)
            loss += part_loss
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=torch.float32)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[start : start + rows])
            if wants_weight:
                grad_weight = add_product(grad_weight, grad, part)
            del grad  # before the next chunk's logits are made
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients made in forward, times that of the loss, in fp32 and rounded once."""
        hidden, weight, bias = ctx.saved_tensors
        scale = outer[0].float().view(1)  # of one dimension: a scalar would be rounded to the other's type
        return (
            None if hidden is None else _scaled(hidden, scale, hidden.dtype),
            None if weight is None else _scaled(weight, scale, ctx.weight_dtype),
            None if bias is None else _scaled(bias, scale, ctx.weight_dtype),
            None,
            None,
            None,
        )


def _scaled(tensor: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.mul(tensor, scale, out=torch.empty_like(tensor, dtype=dtype))


def add_product(total: torch.Tensor | None, grad: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """total + gradᵀ · part in fp32 (None is zero), 16-bit products unrounded where the device can."""
    if grad.dtype not in (torch.bfloat16, torch.float16):
        return grad.t() @ part if total is None else total.addmm_(grad.t(), part)
    if not adds_in_fp32(grad.device, grad.dtype):
        product = grad.t() @ part
        return product.float() if total is None else total.add_(product)
    if total is None:
        return torch.mm(grad.t(), part, out_dtype=torch.float32)
    return torch.addmm(total, grad.t(), part, out_dtype=torch.float32, out=total)


@functools.cache
def adds_in_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """This device adds 16-bit products to an fp32 matrix in one pass (CUDA with torch 2.11); tried once."""
    total = torch.ones(16, 16, device=device)
    part = torch.ones(16, 16, device=device, dtype=dtype)
    try:
        torch.addmm(total, part.t(), part, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return True


class LossHead(nn.Module):
    """What a linear head becomes: without labels the raw logits as ever, with labels the loss sum."""

    formula: HeadFormula
    mode: str
    weight: torch.Tensor
    bias: torch.Tensor | None

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [..., d]; labels [...] with IGNORED → fp32 scalar, or None → the linear map [..., v]."""
        if labels is None:
            return F.linear(hidden, self.weight, self.bias)
        flat, flat_labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
        if self.mode == "whole":
            return whole_loss(F.linear(flat, self.weight, self.bias), flat_labels, self.formula)
        weight, bias = self.weight, self.bias
        if not torch.is_grad_enabled():  # inside an autograd function this can't be told
            flat, weight, bias = flat.detach(), weight.detach(), None if bias is None else bias.detach()
        return ChunkedLoss.apply(flat, weight, bias, flat_labels, self.formula, self.mode)


def make_loss_head(head: nn.Module, formula: HeadFormula, mode: str) -> None:
    """Turns a linear head into a LossHead in place: its parameters, hooks and name stay.

    mode: whole, or a name in CROSS_ENTROPY.
    """
    assert isinstance(head, nn.Linear), f"{type(head).__name__} is no linear head"
    head.__class__ = type("LossHead", (LossHead, type(head)), {})
    vars(head).update(formula=formula, mode=mode)
