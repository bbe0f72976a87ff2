"""The head's loss: bytes moved per logit, counted, and time per micro-batch, by how the loss is computed.

    python benchmarks/head_loss.py [--tokens 1024] [--width 512] [--vocab 32768] [--record]

`whole` is plain cross entropy with all logits in fp32, `chunked` is PyTorch's operations chunk by chunk,
`fused` one Triton kernel a chunk (on a GPU). The floor is the three products at the peak named in the table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from record import machine, publish  # noqa: E402

from llmtrain.model.kernels import missing_for_triton  # noqa: E402
from llmtrain.model.loss import HeadFormula, make_loss_head  # noqa: E402
from llmtrain.plan.head import chunk_rows, head_bytes  # noqa: E402

PEAK = 989e12  # bf16 FLOP/s of an H100 or H200, dense: the assumption behind `floor`

# Bytes a 16-bit logit causes in memory beside the reading and writing of the products themselves (2 to write
# it, 2 + 2 to read its gradient twice): each pass over it, by its element's size.
PASSES = {
    "whole": {"to fp32": 6, "log softmax": 12, "its gradient": 12, "to 16 bit": 6},
    "chunked": {"log softmax in fp32": 8, "softmax": 6, "ignored rows to zero": 4},
    "fused": {"sum of exponentials": 2, "gradient over the logits": 4},
}
PRODUCTS = 6


def seconds(mode: str, tokens: int, width: int, vocab: int, device: str, rounds: int = 5) -> float:
    """The median time of forward and backward in bf16, on random numbers."""
    noise = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=noise).to(device, torch.bfloat16).requires_grad_()
    head = nn.Linear(width, vocab, bias=False).to(device, torch.bfloat16)
    labels = torch.randint(0, vocab, (tokens,), generator=noise).to(device)
    make_loss_head(head, HeadFormula(), mode)
    found = []
    for _ in range(rounds + 1):
        hidden.grad = head.weight.grad = None
        start = time.perf_counter()
        (head(hidden, labels) / tokens).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens, width, vocab = (16384, 2048, 32768) if device == "cuda" else (1024, 512, 32768)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=tokens, help="of a micro-batch")
    parser.add_argument("--width", type=int, default=width)
    parser.add_argument("--vocab", type=int, default=vocab)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    chosen = parser.parse_args()
    body = f"{machine()}\n\n{table(chosen.tokens, chosen.width, chosen.vocab, device)}"
    publish("The head's loss", "python " + " ".join(sys.argv), body, chosen.record)


def table(tokens: int, width: int, vocab: int, device: str) -> str:
    """Bytes moved, counted, and milliseconds, measured, for each way to compute the loss."""
    modes = ["whole", "chunked", *(["fused"] if device == "cuda" and not missing_for_triton() else [])]
    floor = 6 * tokens * width * vocab / PEAK
    rows = min(tokens, chunk_rows(vocab, 2, device))
    lines = [
        f"{tokens} tokens × {width} × {vocab} ids, bf16, random numbers, {device}, {rows} rows a chunk.",
        f"Floor of an H100 or H200: {floor * 1e3:.2f} ms, three products of 2 FLOPs per token, width and id",
        f"at an assumed {PEAK / 1e12:.0f} TFLOP/s.",
        "",
        "| loss | bytes moved per logit | kB per token | MiB held on a GPU | ms |",
        "|---|---|---|---|---|",
    ]
    for mode, passes in PASSES.items():
        moved = sum(passes.values()) + PRODUCTS
        held = head_bytes(tokens, vocab, width, 2, mode) / 2**20
        ms = f"{seconds(mode, tokens, width, vocab, device) * 1e3:.1f}" if mode in modes else "needs a GPU"
        lines.append(f"| {mode} | {moved} | {moved * vocab / 1e3:,.0f} | {held:.0f} | {ms} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
