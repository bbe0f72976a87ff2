"""Attention implementations of llmtrain, registered with transformers by name.

Each is called as transformers calls its own: query, key, value are [rows, heads, seq, head width], the answer
is [rows, seq, heads, width]. As a registered function it also runs inside recomputation, which happens
after any context around the forward pass has ended.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

# On Hopper cuDNN's attention is 1.7-2.3 times as fast as the flash kernel that torch would take first.
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

# cuDNN's gradient of query is NaN for a length of 64 modulo 128 with a mask (torch 2.11 on, on Hopper).
WITHOUT_CUDNN = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

# Name in `Kernels.attention` → name transformers knows it by; it would look for a package by "flash" in one.
NAMES = {
    "eager": "eager",
    "sdpa": "sdpa",
    "math": "llmtrain_math",
    "cudnn": "llmtrain_cudnn",
    "varlen": "llmtrain_varlen",
    "flash": "llmtrain_fa2",
    "flash3": "llmtrain_fa3",
}


# query, key, value [tokens, heads, width], document bounds, longest row, scaling, sliding window
Tensor = torch.Tensor
Varlen = Callable[[Tensor, Tensor, Tensor, Tensor, int, float | None, int | None], Tensor]


def math_attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """Scaled dot product attention as plain matrix products."""
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa_attention_forward(*args, **kwargs)


def cudnn_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot product attention, cuDNN's kernel where it can and is right, the next best where not."""
    spoiled = attention_mask is not None and key.shape[-2] % 128 == 64
    with sdpa_kernel(WITHOUT_CUDNN if spoiled else CUDNN_FIRST, set_priority=True):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    kernel: Varlen,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside documents, without a mask; plain SDPA when no bounds are handed in.

    Where every row is one document (there is one bound for each row, and the end) and no window cuts it,
    that is causal attention over rows, which cuDNN computes faster.
    """
    rows, heads, seq, _ = query.shape
    options = {"dropout": dropout, "scaling": scaling, **kwargs}
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return cudnn_attention(module, query, key, value, attention_mask, **options)
    if softcap is not None or dropout or kwargs.get("s_aux") is not None:
        raise NotImplementedError("attention over documents knows no softcap, no dropout and no sinks")
    if attention_mask.shape[-1] == rows + 1 and (sliding_window is None or sliding_window >= seq):
        return cudnn_attention(module, query, key, value, None, **options)
    q, k, v = (part.transpose(1, 2).reshape(rows * seq, part.shape[1], -1) for part in (query, key, value))
    chosen = kernel if query.is_cuda else reference_varlen
    out = chosen(q, k, v, attention_mask.flatten(), seq, scaling, sliding_window)
    return out.reshape(rows, seq, heads, -1), None


def reference_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """One document after the other with SDPA: what the fused kernels must equal. [tokens, heads, width]."""
    parts = []
    groups = query.shape[1] // key.shape[1]
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mask = torch.ones(end - start, end - start, dtype=torch.bool, device=query.device).tril()
        if window is not None:
            mask = mask.triu(-window + 1)
        parts.append(
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)[0].transpose(0, 1)
        )
    return torch.cat(parts)


def torch_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """torch.nn.attention.varlen, whose options have grown from version to version."""
    from torch.nn.attention.varlen import varlen_attn

    options = inspect.signature(varlen_attn).parameters
    given: dict[str, Any] = {}
    if "window_size" in options:
        given["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        if window is not None:
            raise NotImplementedError("this torch's varlen_attn knows no sliding window")
        given["is_causal"] = True
    if "enable_gqa" in options:
        given["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if scaling is not None and "scale" in options:
        given["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    out: Any = varlen_attn(query, key, value, bounds, bounds, longest, longest, **given)
    return out


def flash_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
    package: str = "flash_attn",
) -> torch.Tensor:
    """The flash-attn package, or FlashAttention-3's of the same arguments."""
    out = importlib.import_module(package).flash_attn_varlen_func(
        query,
        key,
        value,
        bounds,
        bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1 if window is None else window - 1, -1 if window is None else 0),
        deterministic=torch.are_deterministic_algorithms_enabled(),  # torch's own see to it
    )
    return out[0] if isinstance(out, tuple) else out  # the first ones of version 3 return sums of logits too


def has_flash() -> bool:
    """The flash-attn package is installed and works; version 4 alone, under the same name, has other ones."""
    return _offers_varlen("flash_attn")


def has_flash3() -> bool:
    """FlashAttention-3 is installed and this is the GPU it is for, Hopper."""
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    return hopper and _offers_varlen("flash_attn_interface")


def _offers_varlen(package: str) -> bool:
    if importlib.util.find_spec(package) is None:
        return False
    try:
        return hasattr(importlib.import_module(package), "flash_attn_varlen_func")
    except (ImportError, OSError):  # built for another torch
        return False


def has_torch_varlen() -> bool:
    """This torch has variable-length attention."""
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


def has_window(attention: str) -> bool:
    """This variable-length attention knows sliding windows; the first ones of torch do not."""
    if attention != "varlen":
        return True
    from torch.nn.attention.varlen import varlen_attn

    return "window_size" in inspect.signature(varlen_attn).parameters


def attention_by_torch(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """`varlen_attention` over torch's kernel."""
    return varlen_attention(*args, kernel=torch_varlen, **kwargs)


def attention_by_flash(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """`varlen_attention` over the flash-attn package."""
    return varlen_attention(*args, kernel=flash_varlen, **kwargs)


def attention_by_flash3(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """`varlen_attention` over FlashAttention-3."""
    return varlen_attention(
        *args, kernel=functools.partial(flash_varlen, package="flash_attn_interface"), **kwargs
    )


def is_varlen(attention: str) -> bool:
    """Documents travel as bounds and not as a mask."""
    return attention in ("varlen", "flash", "flash3")


def register() -> None:
    """Makes the names in NAMES known to transformers; again and again does no harm."""
    functions = {
        "llmtrain_math": math_attention,
        "llmtrain_cudnn": cudnn_attention,
        "llmtrain_varlen": attention_by_torch,
        "llmtrain_fa2": attention_by_flash,
        "llmtrain_fa3": attention_by_flash3,
    }
    for name, function in functions.items():
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)


register()
