"""Where the parts of a Hugging Face causal LM are: embedding, decoder layers, final norm, head.

The names come from the model's own pipeline plan (`_pp_plan`, transformers' `base_model_pp_plan`), so no
family is written down here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmtrain.errors import ConfigError, Problem

# Families that are tried in the tests at several stages: what is offered when another one can't be cut.
CUTTABLE = ("llama", "qwen3", "gemma3_text", "mixtral", "olmo2", "gpt_neox", "mistral", "qwen2", "phi3")


@dataclass(frozen=True)
class Structure:
    """Full module names inside the causal LM.

    entry   what runs before the decoder layers (embedding, its dropout, …)
    layers  the ModuleList of decoder layers
    exit    what runs after them (the final norm)
    head    what turns hidden states into logits
    """

    entry: tuple[str, ...]
    layers: str
    exit: tuple[str, ...]
    head: str


def skeleton(config: Any, dtype: torch.dtype, attention: str | None = None) -> Any:
    """The whole model on the meta device: all its modules and shapes, no memory for its parameters.

    `config` is copied, as transformers writes dtype and attention into it.
    """
    own = copy.deepcopy(config)
    own.use_cache = False
    options = {} if attention is None else {"attn_implementation": attention}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(own, dtype=dtype, **options)


def body(hf: Any) -> Any:
    """What makes hidden states of tokens: the model without its head.

    Llama 4's text model is named by a prefix that it does not have, so its base model would be itself.
    """
    if hf.base_model is not hf:
        return hf.base_model
    return next((child for child in hf.children() if isinstance(child, PreTrainedModel)), hf)


def has_plan(hf: Any) -> bool:
    """Whether transformers knows how to cut this family into stages."""
    return _layers_name(hf) is not None and len(hf._pp_plan) > 2


def read_structure(hf: Any) -> Structure:
    """The parts of `hf` by its pipeline plan; ConfigError for a family without one."""
    layers = _layers_name(hf)
    if layers is None or not has_plan(hf):
        raise _no_plan(hf)
    head = _module_name(hf, hf.get_output_embeddings())
    body = [name for name in hf._pp_plan if name.startswith(f"{hf.base_model_prefix}.")]
    place = {name: index for index, (name, _) in enumerate(hf.named_modules())}
    if head is None or any(name not in place for name in body):
        raise _no_plan(hf)
    at = body.index(layers)
    return Structure(tuple(body[:at]), layers, tuple(body[at + 1 :]), head)


def find_layers(hf: Any) -> str | None:
    """The name of the list of decoder layers: by the plan, else the longest ModuleList of the base model."""
    named = _layers_name(hf)
    if named is not None:
        return named
    lists = [(len(module), name) for name, module in hf.named_modules() if isinstance(module, nn.ModuleList)]
    return max(lists, default=(0, None), key=lambda found: found[0])[1]


def _layers_name(hf: Any) -> str | None:
    for name in hf._pp_plan or {}:
        try:
            module = hf.get_submodule(name)
        except AttributeError:
            return None
        if isinstance(module, nn.ModuleList):
            return name
    return None


def _module_name(hf: Any, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in hf.named_modules() if module is wanted), None)


def _no_plan(hf: Any) -> ConfigError:
    family = hf.config.model_type
    return ConfigError(
        Problem(
            "parallel.pipeline",
            None,
            f"model_type {family}",
            f"transformers has no pipeline plan for {family}, so it can't be cut into stages; use "
            f"parallel.pipeline: 1 with ZeRO-3, or a family that can be cut, such as {', '.join(CUTTABLE)}",
        )
    )
