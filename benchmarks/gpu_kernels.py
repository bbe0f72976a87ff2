"""What the kernels of a training step reach on this device: matrix products at the model's shapes, attention.

    python benchmarks/gpu_kernels.py [--model 1.3b] [--toy] [--record]

Random data (zeros run faster than real numbers). A product of [m, k] and [k, n] is 2·m·k·n FLOP. Attention is
counted CAUSAL: 2·rows·heads·s²·d FLOP forward, 3.5 times that forward and backward.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
import time
from collections.abc import Callable, Iterator

import torch
from presets import PRESETS
from record import device_name, machine, publish

from llmtrain.model import attention
from llmtrain.plan.compute import peak_flops

TOKENS = 16_384  # of a micro-batch
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The best of three rounds, per call."""
    work()
    best = float("inf")
    for _ in range(3):
        wait()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        wait()
        best = min(best, (time.perf_counter() - began) / repeats)
    return best


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def products(config: dict[str, int], tokens: int, repeats: int) -> Iterator[tuple[str, float, float]]:
    """(what, seconds, FLOP) of each weight's product with a micro-batch."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    for what, k, n in (("attention", d, d), ("gate and up", d, 2 * f), ("down", f, d), ("head", d, v)):
        took = seconds(functools.partial(torch.matmul, noise(tokens, k), noise(k, n)), repeats)
        yield f"{what} [{tokens}, {k}] x [{k}, {n}]", took, 2.0 * tokens * k * n


def attentions(
    width: int, tokens: int, lengths: tuple[int, ...], repeats: int
) -> Iterator[tuple[str, float, float]]:
    """(what, seconds, FLOP) of cuDNN's and the varlen kernel, forward and with the backward pass."""
    for d in (64, 128):
        for s in lengths:
            heads, rows = max(1, width // d), tokens // s
            flop = 2.0 * rows * heads * s * s * d
            for name, run in (("cudnn", dense(rows, heads, s, d)), ("varlen", by_lengths(rows, heads, s, d))):
                if run is None:
                    continue
                forward, backward = run
                where = f"{name} d={d} s={s}"
                yield f"{where} forward", seconds(forward, repeats), flop
                yield f"{where} forward and backward", seconds(backward, repeats), 3.5 * flop


Pair = tuple[Callable[[], object], Callable[[], object]]


def dense(rows: int, heads: int, s: int, d: int) -> Pair:
    """Causal rows of one document each, by cuDNN where there is one."""
    q, k, v = (noise(rows, heads, s, d).requires_grad_() for _ in "qkv")

    def run() -> torch.Tensor:
        backends = attention.CUDNN_FIRST if CUDA else [torch.nn.attention.SDPBackend.MATH]
        with torch.nn.attention.sdpa_kernel(backends, set_priority=True):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return both(run)


def by_lengths(rows: int, heads: int, s: int, d: int) -> Pair | None:
    """The same rows laid end to end, by variable lengths."""
    q, k, v = (noise(rows * s, heads, d).requires_grad_() for _ in "qkv")
    bounds = torch.arange(0, rows * s + 1, s, dtype=torch.int32, device=DEVICE)
    if CUDA and not attention.has_torch_varlen():
        return None
    kernel = attention.torch_varlen if CUDA else attention.reference_varlen
    return both(lambda: kernel(q, k, v, bounds, s, None, None))


def both(run: Callable[[], torch.Tensor]) -> Pair:
    outer = torch.randn_like(run())

    def forward() -> object:
        with torch.no_grad():
            return run()

    return forward, lambda: run().backward(outer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=sorted(PRESETS), default="1.3b")
    parser.add_argument("--toy", action="store_true", help="sizes that a CPU runs in seconds")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/DEVICE-DATE.md")
    args = parser.parse_args()
    config = PRESETS["tiny" if args.toy else args.model].config
    tokens, lengths, repeats = (128, (64,), 1) if args.toy else (TOKENS, (2048, 4096), 20)
    peak = peak_flops(device_name(), "bf16")
    lines = ["| bf16, random data | ms | TFLOP/s | of the peak |", "|---|---|---|---|"]
    for part in (
        products(config, tokens, repeats),
        attentions(config["hidden_size"], tokens, lengths, max(1, repeats // 4)),
    ):
        for what, took, flop in part:
            share = f"{flop / took / peak:.0%}" if peak else "-"
            lines.append(f"| {what} | {took * 1e3:.3f} | {flop / took / 1e12:.4g} | {share} |")
    said = (
        f"{peak / 1e12:,.1f} TFLOP/s (dense, from the data sheet)" if peak else "none known for this device"
    )
    body = "\n".join([*lines, "", f"Peak: {said}. Attention counted CAUSAL; best of three rounds."])
    command = shlex.join(["python", *(each for each in sys.argv if each != "--record")])
    publish("Kernels of a step", command, f"{machine()}\n\n{body}", args.record)


if __name__ == "__main__":
    main()
