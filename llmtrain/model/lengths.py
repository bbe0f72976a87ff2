"""Rows longer than a model's configuration says it reads: refused, or taken and written there."""

from __future__ import annotations

import copy
from typing import Any

import torch

from llmtrain.errors import ConfigError, Problem
from llmtrain.model.probes import few_or_all_layers
from llmtrain.model.rotary import reach, require_documents_rule
from llmtrain.model.structure import skeleton
from llmtrain.plan.model_rules import LENGTHS, longer_note


def take_length(config: Any, seq_len: int, field: str = "data.seq_len") -> str:
    """Lets `config` say that it reads rows of `seq_len`; returns the sentence to tell, empty for none.

    `field` names where the length came from. ConfigError when positions are looked up in a table that ends
    before, or when rotary frequencies would depend on what is beside a document.
    """
    require_documents_rule(config, seq_len, field)
    text = config.get_text_config()
    name = next((name for name in LENGTHS if isinstance(getattr(text, name, None), int)), "")
    most = int(getattr(text, name)) if name else seq_len
    if seq_len <= most or _follows_length(text):
        return ""
    if _has_table(config, name):
        family = f"model_type {config.model_type}"
        fix = f"{config.model_type} looks positions up in a table of {most}; use {most} or less"
        raise ConfigError(Problem(field, seq_len, family, fix))
    setattr(text, name, seq_len)
    return longer_note(most, seq_len)


def _follows_length(text: Any) -> bool:
    """The rotary frequencies follow from max_position_embeddings, so another one would be another model."""
    parameters = getattr(text, "rope_parameters", None) or {}
    rules = [parameters, *(rule for rule in parameters.values() if isinstance(rule, dict))]
    open_rules = [rule for rule in rules if rule.get("rope_type") == "yarn" and not rule.get("factor")]
    return reach(text) is not None or bool(open_rules)


def _has_table(config: Any, name: str) -> bool:
    """A model of twice as many positions has other tensors; a cut that can't be made is taken for one."""
    small = few_or_all_layers(config)
    longer = copy.deepcopy(small)
    setattr(longer.get_text_config(), name, 2 * getattr(small.get_text_config(), name))
    shapes = [
        [tuple(tensor.shape) for tensor in (*made.parameters(), *made.buffers())]
        for made in (skeleton(each, torch.float32) for each in (small, longer))
    ]
    return shapes[0] != shapes[1]
