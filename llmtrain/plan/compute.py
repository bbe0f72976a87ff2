"""Arithmetic work per token, the peak a device could do, and the share of it that is used (MFU).

Two conventions are in use and both are printed, by name:

    FULL    6N + 12·L·d·s   attention counted over the whole square (llm-foundry, nanoGPT, torchtitan)
    CAUSAL  6N +  6·L·d·s   only the half below the diagonal (Megatron-LM)

N = parameters that multiply each token, with the head, without the embedding lookup; L layers, d attention
width (heads × head_dim), s sequence length, or the window where it is shorter. A multiply-add is two
operations, the backward pass twice the forward pass; recomputation is not counted (MFU, not HFU).
"""

from __future__ import annotations

from typing import Literal

from llmtrain.plan.model_shape import ModelShape

Convention = Literal["full", "causal"]

# Dense 16-bit peak with fp32 accumulation, TFLOP/s, from the vendors' data sheets (the figures without
# sparsity). The first name found in the device's own name counts, so longer names come first.
PEAK_TFLOPS = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("B100", 1750.0),
    ("H200", 989.4),
    ("GH200", 989.4),
    ("H100 PCIE", 756.0),
    ("H100 NVL", 835.5),
    ("H100", 989.4),
    ("H800", 989.4),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.1),
    ("L40", 181.1),
    ("L4", 121.0),
    ("V100", 125.0),
    ("T4", 65.0),
    ("RTX 6000 ADA", 364.2),
    ("RTX A6000", 154.8),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.2),
    ("MI355X", 2516.6),
    ("MI325X", 1307.4),
    ("MI300X", 1307.4),
    ("MI250X", 383.0),
)


def flops_per_token(
    shape: ModelShape, seq_len: int, convention: Convention = "full", matmul_parameters: int | None = None
) -> float:
    """Forward and backward operations for one token of a row of `seq_len` tokens.

    matmul_parameters: N, when the built model knows it better than the shape.
    """
    n = shape.active_matmul_parameters if matmul_parameters is None else matmul_parameters
    windows = shape.windows or (None,) * shape.layers
    spans = sum(seq_len if window is None else min(window, seq_len) for window in windows)
    factor = 12 if convention == "full" else 6
    return 6.0 * n + float(factor) * shape.attention_width * spans


def peak_flops(device_name: str, precision: str = "bf16") -> float | None:
    """Dense peak of one device in operations per second; None for a CPU, an unknown device, or fp32."""
    if precision == "fp32":
        return None
    name = device_name.upper()
    for known, tflops in PEAK_TFLOPS:
        if known in name:
            return tflops * 1e12
    return None


def mfu(tokens_per_s: float, flops: float, peak: float | None, devices: int = 1) -> float | None:
    """Model FLOPs utilisation, 0 to 1: tokens_per_s over all `devices`, `flops` per token."""
    return None if peak is None else tokens_per_s * flops / (peak * devices)
