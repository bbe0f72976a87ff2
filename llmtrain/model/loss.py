"""The head and its loss: the SUM of cross entropy over the labels that are trained on, in fp32.

The loss is computed inside the head's own `forward`, because ZeRO-3 gathers a module's parameters in the
hooks around it. When the logits are small they are made whole; otherwise a chunk at a time, with the
gradients of hidden states and weight made on the way, so the logits of a whole batch never exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llmtrain.data.rows import IGNORED

WHOLE_LOGITS_BYTES = 512 * 2**20  # fp32 logits up to this size are made whole: fewer, larger products
CHUNK_BYTES = 128 * 2**20  # fp32 logits of one chunk


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


class ChunkedLoss(torch.autograd.Function):
    """Loss sum of a linear head, chunk by chunk, gradients made in forward.

    forward(hidden [n, d], weight [v, d], bias [v] or None, labels [n], formula, rows per chunk)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        formula: HeadFormula,
        rows: int,
    ) -> torch.Tensor:
        """The loss sum, and the gradients for backward where they are needed."""
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros(weight.shape[0], device=weight.device) if wants_bias else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], rows):
            part, label = hidden[start : start + rows], labels[start : start + rows]
            logits = formula.apply(F.linear(part, weight, bias))
            loss += F.cross_entropy(logits, label, ignore_index=IGNORED, reduction="sum")
            if not (wants_hidden or wants_weight or wants_bias):
                continue
            grad = formula.backward(logits, _cross_entropy_grad(logits, label))
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[start : start + rows])
            if grad_weight is not None:
                grad_weight += grad.t() @ part
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients made in forward, times that of the loss."""
        hidden, weight, bias = ctx.saved_tensors
        scale = outer[0]
        return (
            None if hidden is None else hidden * scale.to(hidden.dtype),
            None if weight is None else (weight * scale).to(ctx.weight_dtype),
            None if bias is None else (bias * scale).to(ctx.weight_dtype),
            None,
            None,
            None,
        )


def _cross_entropy_grad(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """softmax(logits) minus the one-hot label, zero where the label is ignored."""
    grad = torch.softmax(logits, dim=-1)
    valid = labels != IGNORED
    grad.scatter_add_(1, labels.clamp(min=0).unsqueeze(1), -torch.ones_like(grad[:, :1]))
    return grad.mul_(valid.unsqueeze(1))


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
        vocab = self.weight.shape[0]
        whole = self.mode == "whole" or (
            self.mode == "auto" and flat.shape[0] * vocab * 4 <= WHOLE_LOGITS_BYTES
        )
        if whole:
            return whole_loss(F.linear(flat, self.weight, self.bias), flat_labels, self.formula)
        rows = max(1, CHUNK_BYTES // (4 * vocab))
        return ChunkedLoss.apply(flat, self.weight, self.bias, flat_labels, self.formula, rows)


def make_loss_head(head: nn.Module, formula: HeadFormula, mode: str) -> None:
    """Turns a linear head into a LossHead in place: its parameters, hooks and name stay."""
    assert isinstance(head, nn.Linear), f"{type(head).__name__} is no linear head"
    head.__class__ = type("LossHead", (LossHead, type(head)), {})
    vars(head).update(formula=formula, mode=mode)
