"""Keys that a family's modelling code reads though its configuration class does not declare them.

Some 80 families read `head_dim` so. Such a key is taken when a model made with another value differs: a key
that nothing follows from would be a setting silently ignored.
"""

from __future__ import annotations

import copy
import inspect
import re
import sys
from typing import Any

import torch
from torch import nn
from transformers import modeling_rope_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llmtrain.model.probes import few_or_all_layers
from llmtrain.model.structure import skeleton


def is_read(family: str, key: str) -> bool:
    """Whether the family's code, or that of rotary frequencies, names this key of its configuration."""
    named = rf"config\.{re.escape(key)}\b|config,\s*[\"']{re.escape(key)}[\"']"
    model = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]]
    modules = (sys.modules[model.__module__], modeling_rope_utils)
    return any(re.search(named, inspect.getsource(module)) for module in modules)


def takes_effect(config: Any, key: str) -> bool:
    """Whether the model follows the value that `config` has under `key`. Raises what its making raises."""
    other = _another(getattr(config, key))
    if other is None:
        return False
    small = few_or_all_layers(config)
    changed = copy.deepcopy(small)
    setattr(changed, key, other)
    facts = _facts(skeleton(small, torch.float32))
    try:
        return facts != _facts(skeleton(changed, torch.float32))
    except Exception:  # noqa: BLE001 - it read the other value, which does not fit
        return True


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return 2 * value if isinstance(value, int | float) and value else None


def _facts(hf: nn.Module) -> list[Any]:
    """All that tells two models apart before they have weights: modules, shapes, settings."""
    facts: list[Any] = []
    for name, module in hf.named_modules():
        tensors = [*module._parameters.items(), *module._buffers.items()]
        shapes = [(key, tuple(tensor.shape)) for key, tensor in tensors if tensor is not None]
        kept = {key: said for key, said in vars(module).items() if isinstance(said, int | float | str)}
        facts.append((name, type(module).__name__, shapes, sorted(kept.items())))
    return facts
