"""Trading compute for memory: what a decoder layer's backward pass computes again instead of keeping."""

from __future__ import annotations

import functools
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from llmtrain.errors import ConfigError, Problem

# Matrix products and attention are dear to compute and small to keep; all else is computed again. By name: a
# torch or a package that lacks one of them is no mistake. Not seen: what Triton computes (Liger's experts).
KEPT = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::_grouped_mm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_varlen_forward",
        "flash_attn_3::_flash_attn_forward",
        "flash_attn_3::fwd",
    }
)


def apply_recompute(hf: Any, recompute: str) -> None:
    """`none`: keep everything; `full`: keep a layer's input; `selective`: keep matrix products besides.

    ConfigError for a family whose layers can't be computed again.
    """
    if recompute == "none":
        return
    assert recompute in ("selective", "full"), f"unknown recompute {recompute}"
    options: dict[str, Any] = {"use_reentrant": False}
    if recompute == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    enable = getattr(hf, "activation_checkpointing_enable", None)  # since transformers 5.20 or so
    try:
        if enable is not None:
            enable(activation_checkpointing_kwargs=options)
        else:
            hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    except ValueError as error:
        family = hf.config.model_type
        raise ConfigError(
            Problem(
                "recompute",
                recompute,
                f"model_type {family}",
                f"transformers can't compute the layers of {family} again; set recompute: none",
            )
        ) from error


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return (
        CheckpointPolicy.MUST_SAVE
        if operation.name().partition(".")[0] in KEPT
        else CheckpointPolicy.PREFER_RECOMPUTE
    )
