"""Which implementation computes what: one frozen value, chosen once, logged, never changed silently."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from llmtrain.errors import ConfigError, Problem
from llmtrain.model.attention import has_flash, has_flash3, has_torch_varlen, has_window, is_varlen


@dataclass(frozen=True)
class Kernels:
    """The implementation of every part that has more than one.

    attention  eager | sdpa | math | cudnn | varlen (torch) | flash (flash-attn) | flash3
    norm, rope, mlp  torch | liger
    loss       whole | chunked | fused (in chunks, by one Triton kernel) | model (the model's own)
    optimizer  torch (for loop) | fused
    compile    torch.compile per decoder block, which fuses norm, rope and mlp itself: they stay torch's
    documents  attention must stay inside documents; a family that can't is refused
    strict     what can't be had is an error; otherwise the next best is taken and shown by `describe`
    """

    attention: str = "sdpa"
    norm: str = "torch"
    rope: str = "torch"
    mlp: str = "torch"
    loss: str = "chunked"
    optimizer: str = "fused"
    compile: bool = False
    documents: bool = True
    strict: bool = False

    def describe(self) -> dict[str, str | bool]:
        """What was chosen, for the log and the run folder."""
        return asdict(self)


REFERENCE = Kernels(attention="math", loss="whole", optimizer="torch")


def choose_kernels(mode: str, device: str, precision: str, mask_documents: bool = True) -> Kernels:
    """`kernels: auto|reference|fused` of a run as a value for this device ("cpu" or "cuda").

    `fused` raises a ConfigError that names everything it lacks.
    """
    assert mode in ("auto", "reference", "fused"), f"unknown kernels mode {mode}"
    if mode == "reference":
        return replace(REFERENCE, documents=mask_documents)
    strict = mode == "fused"
    if strict:
        _refuse(missing_for_fused(device, precision, mask_documents))
    if device != "cuda":
        return Kernels(documents=mask_documents)
    liger = "torch" if strict or missing_for_liger() else "liger"
    loss = "chunked" if missing_for_triton() else "fused"
    attention = _cuda_attention(precision, mask_documents)
    return Kernels(
        attention, liger, liger, liger, loss, compile=strict, documents=mask_documents, strict=strict
    )


def _cuda_attention(precision: str, mask_documents: bool) -> str:
    if mask_documents and precision != "fp32":
        if has_flash3():
            return "flash3"
        if has_flash():
            return "flash"
        if has_torch_varlen():
            return "varlen"
    return "cudnn"


def missing_for_liger() -> list[str]:
    """What stands between this machine and Liger's kernels, which are written in Triton."""
    missing = []
    if importlib.util.find_spec("liger_kernel") is None:
        missing.append("the liger-kernel package (pip install liger-kernel)")
    return missing + missing_for_triton()


def missing_for_triton() -> list[str]:
    """What stands between this machine and kernels in Triton, which compiles a launcher in C."""
    missing = []
    if importlib.util.find_spec("triton") is None:
        missing.append("the triton package")
    if not c_compiler():
        missing.append("a C compiler for Triton's launchers (install gcc, or set CC)")
    return missing


def c_compiler() -> str | None:
    """The C compiler that Triton would call."""
    named = os.environ.get("CC")
    if named:
        return shutil.which(named)
    return shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")


def missing_for_fused(device: str, precision: str, mask_documents: bool) -> list[str]:
    """All that `kernels: fused` needs and this machine lacks."""
    missing = [] if device == "cuda" else ["a CUDA device"]
    missing += missing_for_triton()
    if mask_documents and precision != "fp32" and not (has_flash3() or has_flash() or has_torch_varlen()):
        missing.append("variable-length attention (torch >= 2.11, or the flash-attn package)")
    return missing


def _refuse(missing: list[str]) -> None:
    if missing:
        raise ConfigError(
            [
                Problem("kernels", "fused", "the run", f"needs {what}; `kernels: auto` takes the next best")
                for what in missing
            ]
        )


def fit(kernels: Kernels, hf: Any) -> Kernels:
    """What of `kernels` this family can have; with `strict` a ConfigError for what it can't."""
    family, missing = hf.config.model_type, []
    fitted = kernels
    if kernels.attention != "eager" and not hf._supports_sdpa:
        fitted = replace(fitted, attention="eager")
        missing.append(f"{family} computes attention only by its own eager code")
    elif is_varlen(kernels.attention) and not kernels.documents:
        fitted = replace(fitted, attention="cudnn")
    elif is_varlen(kernels.attention) and not _has_varlen(kernels.attention, hf):
        fitted = replace(fitted, attention="cudnn")
        missing.append(f"{family} can't have its attention by variable lengths with this torch")
    elif is_varlen(kernels.attention) and (dropout := attention_dropout(hf.config)):
        fitted = replace(fitted, attention="cudnn")
        name, share = dropout
        missing.append(f"attention by variable lengths has no dropout, and {name} is {share}: set it to 0")
    if "liger" in (kernels.norm, kernels.rope, kernels.mlp) and not has_liger_for(family):
        fitted = replace(fitted, norm="torch", rope="torch", mlp="torch")
        missing.append(f"liger-kernel has no kernels for {family}")
    if kernels.strict and missing:
        raise ConfigError([Problem("kernels", "fused", f"model_type {family}", why) for why in missing])
    return fitted


def _has_varlen(attention: str, hf: Any) -> bool:
    text = hf.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ()
    slides = bool(getattr(text, "sliding_window", None)) or any("sliding" in kind for kind in kinds)
    return hf._supports_flash_attn and (has_window(attention) or not slides)


def attention_dropout(config: Any) -> tuple[str, float] | None:
    """Name and value of a configuration's dropout of attention weights, None when it has none."""
    for name, value in vars(config.get_text_config()).items():
        of_attention = "drop" in name and ("attn" in name or "attention" in name)
        if of_attention and isinstance(value, int | float) and value > 0:
            return name, value
    return None


def has_liger_for(family: str) -> bool:
    """liger-kernel patches this model type."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return family in MODEL_TYPE_TO_APPLY_LIGER_FN


def apply_liger(hf: Any, kernels: Kernels) -> None:
    """Puts Liger's norm, MLP and rotary kernels into this model only.

    Liger's patches also replace names in transformers' modeling file, which would change every model of the
    process: they are put back, and what an attention calls by name is bound to this model's own copy.
    Must see the whole model, so it comes before the cut.
    """
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    modeling = sys.modules[type(hf).__module__]
    before = dict(vars(modeling))
    mlp = kernels.mlp == "liger"
    try:
        _apply_liger_kernel_to_instance(
            hf,
            rope=kernels.rope == "liger",
            rms_norm=kernels.norm == "liger",
            layer_norm=kernels.norm == "liger",
            swiglu=mlp,
            geglu=mlp,
            cross_entropy=False,
            fused_linear_cross_entropy=False,
        )
        functions = {
            name: _out_of_place(value) if "rotary" in value.__name__ else value
            for name, value in vars(modeling).items()
            if isinstance(value, types.FunctionType) and before.get(name) is not value
        }
    finally:
        for name, value in before.items():
            setattr(modeling, name, value)
    for module in hf.modules():
        _bind_copy(module, modeling, functions)


def _out_of_place(rotate: Callable[..., Any]) -> Callable[..., Any]:
    """Liger's rotation of copies: it writes into query and key without torch noticing.

    Selective recomputation keeps those very tensors as the products' outputs, and would rotate them again.
    """

    @functools.wraps(rotate)
    def rotary_of_copies(query: torch.Tensor, key: torch.Tensor, *others: Any, **named: Any) -> Any:
        return rotate(query.clone(), key.clone(), *others, **named)

    return rotary_of_copies


def _bind_copy(module: nn.Module, modeling: Any, functions: dict[str, Any]) -> None:
    """Lets `module.forward` see `functions` in place of the modeling file's of the same names."""
    forward = type(module).forward
    if getattr(forward, "__globals__", None) is not vars(modeling):
        return
    if not set(functions) & set(forward.__code__.co_names):
        return
    scope = {**vars(modeling), **functions}
    own = types.FunctionType(
        forward.__code__, scope, forward.__name__, forward.__defaults__, forward.__closure__
    )
    own.__kwdefaults__ = forward.__kwdefaults__
    module.forward = types.MethodType(own, module)
