"""Cross entropy in one Triton kernel, its gradient written over the logits: 6 bytes a 16-bit logit.

Imported only where Triton is: `llmtrain.model.loss` asks for it by name.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmtrain.data.rows import IGNORED

BLOCK = 4096


@triton.jit
def _shown(raw, scale, cap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202, N803
    """softcap(scale · raw) in fp32."""
    logits = raw.to(tl.float32) * scale
    if CAPPED:
        logits = cap * (2 * tl.sigmoid(2 * (logits / cap)) - 1)
    return logits


@triton.jit
def cross_entropy_kernel(  # type: ignore[no-untyped-def]
    raw_pointer,  # noqa: ANN001
    stride,  # noqa: ANN001
    label_pointer,  # noqa: ANN001
    loss_pointer,  # noqa: ANN001
    vocab,  # noqa: ANN001
    scale,  # noqa: ANN001
    cap,  # noqa: ANN001
    CAPPED: tl.constexpr,  # noqa: N803
    GRADIENT: tl.constexpr,  # noqa: N803
    UNTRAINED: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
):
    """One row of logits: its loss, and over the logits the gradient."""
    row = tl.program_id(0).to(tl.int64)
    raw_pointer += row * stride
    label = tl.load(label_pointer + row)
    trained = label != UNTRAINED
    # read before the first reduction, and so before any thread writes over it
    own = _shown(tl.load(raw_pointer + tl.where(trained, label, 0)), scale, cap, CAPPED)
    columns = tl.arange(0, SIZE)
    most = float("-inf")
    total = 0.0
    for start in range(0, vocab, SIZE):
        here = start + columns
        raw = tl.load(raw_pointer + here, mask=here < vocab, other=0.0)
        logits = tl.where(here < vocab, _shown(raw, scale, cap, CAPPED), float("-inf"))
        now = tl.maximum(most, tl.max(logits))
        total = total * tl.exp(most - now) + tl.sum(tl.exp(logits - now))
        most = now
    sum_of_logits = most + tl.log(total)
    tl.store(loss_pointer + row, tl.where(trained, sum_of_logits - own, 0.0))
    if GRADIENT:
        for start in range(0, vocab, SIZE):
            here = start + columns
            raw = tl.load(raw_pointer + here, mask=here < vocab, other=0.0)
            logits = _shown(raw, scale, cap, CAPPED)
            gradient = tl.exp(logits - sum_of_logits) - tl.where(here == label, 1.0, 0.0)
            if CAPPED:
                gradient *= 1 - (logits / cap) * (logits / cap)
            gradient = tl.where(trained, gradient * scale, 0.0)
            tl.store(raw_pointer + here, gradient.to(raw_pointer.dtype.element_ty), mask=here < vocab)


def fused_cross_entropy(
    raw: torch.Tensor, labels: torch.Tensor, scale: float, cap: float | None, wants_gradient: bool
) -> torch.Tensor:
    """The loss sum (fp32 scalar) of `raw` [rows, vocab], which becomes its own gradient when wanted."""
    rows, vocab = raw.shape
    losses = torch.empty(rows, dtype=torch.float32, device=raw.device)
    cross_entropy_kernel[(rows,)](
        raw,
        raw.stride(0),
        labels,
        losses,
        vocab,
        scale,
        1.0 if cap is None else cap,
        CAPPED=cap is not None,
        GRADIENT=wants_gradient,
        UNTRAINED=IGNORED,
        SIZE=min(BLOCK, triton.next_power_of_2(vocab)),
        num_warps=8,
    )
    return losses.sum()
