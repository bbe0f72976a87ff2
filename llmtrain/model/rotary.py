"""Rotary frequencies that depend on a length, made to depend on each document's own.

transformers takes the frequencies of `dynamic` and `longrope` by the longest position of the micro-batch and
keeps them for the next one: the loss would change with batch.micro, with the rank and with the stage. Here
every document has the frequencies that transformers gives it when it comes alone, to a model just loaded, so
training, evaluation and the exported model's users compute the same.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmtrain.errors import ConfigError, Problem
from llmtrain.model.structure import skeleton

LOG = logging.getLogger(__name__)


def follow_documents(hf: nn.Module) -> None:
    """Puts the documents' own frequencies in place of the micro-batch's, wherever `hf` has such a rule."""
    for module in _by_length(hf):
        module.forward = DocumentRotary(module)


def reach(config: Any) -> int | None:
    """Up to so many tokens no length changes a frequency of this model; None: none ever does."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    rules = [parameters] if "rope_type" in parameters else [each for each in parameters.values() if each]
    reaches = [_reach(config.get_text_config(), rule) for rule in rules if isinstance(rule, dict)]
    return min((length for length in reaches if length is not None), default=None)


def require_documents_rule(config: Any, seq_len: int, field: str) -> None:
    """ConfigError when rows of `seq_len` reach lengths where this family's frequencies are not understood."""
    limit = reach(config)
    if limit is None or seq_len <= limit or _proves(config):
        return
    family = config.model_type
    fix = f"rotary frequencies of {family} change above {limit} tokens in a way that is not proven to depend "
    fix += "on a document alone, so the loss would depend on what is beside it in a micro-batch; use at most "
    fix += str(limit)
    raise ConfigError(Problem(field, seq_len, f"model_type {family}", fix))


def document_lengths(positions: torch.Tensor) -> torch.Tensor:
    """The length of the document that each position belongs to; int64 [rows, seq], as `positions`."""
    seq = positions.shape[-1]
    at = torch.arange(seq, device=positions.device).expand_as(positions)
    goes_on = torch.zeros_like(positions, dtype=torch.bool)
    goes_on[:, :-1] = positions[:, 1:] == positions[:, :-1] + 1
    ends = torch.where(goes_on, seq, at).flip(-1).cummin(-1).values.flip(-1)
    return positions.gather(-1, ends) + 1


class DocumentRotary:
    """Takes the place of a rotary embedding's forward pass: the same arithmetic, a rule without memory."""

    def __init__(self, module: Any):
        self.module = module
        self.plain = inspect.unwrap(type(module).forward)  # without the rule of the micro-batch
        self.tables: dict[Any, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
        """As the module's own forward: of hidden states and int64 [rows, seq]."""
        given = {} if layer_type is None else {"layer_type": layer_type}
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        seq = position_ids.shape[-1]
        limit = _reach(self.module.config, self._rule(layer_type))
        if limit is None or seq <= limit:
            return self.plain(self.module, x, position_ids, **given)
        lengths = document_lengths(position_ids).flatten()
        table = self._table(seq, layer_type, x.device)

        def at(position: torch.Tensor, frequencies: torch.Tensor) -> Any:
            self.module._buffers[name] = frequencies
            return self.plain(self.module, x, position.view(1, 1), **given)

        kept = self.module._buffers[name]
        try:
            found = torch.vmap(at)(position_ids.flatten(), table[lengths - 1])
        finally:
            self.module._buffers[name] = kept
        return tree_map(lambda part: part.view(*position_ids.shape, *part.shape[3:]), found)

    def _rule(self, layer_type: str | None) -> dict[str, Any]:
        parameters: dict[str, Any] = self.module.config.rope_parameters
        return parameters if layer_type is None else parameters[layer_type]

    def _table(self, seq: int, layer_type: str | None, device: torch.device) -> torch.Tensor:
        """The frequencies of a document of 1 … `seq` tokens, [seq, frequencies]."""
        key = (seq, layer_type, device)
        if key not in self.tables:
            config, rule = self.module.config, self._rule(layer_type)
            make = functools.partial(
                ROPE_INIT_FUNCTIONS[rule["rope_type"]], config, device, layer_type=layer_type
            )
            lengths = torch.arange(1, seq + 1, device=device)
            if rule["rope_type"] == "longrope":
                limit = rule["original_max_position_embeddings"]
                short, long = (make(seq_len=length)[0] for length in (limit, limit + 1))
                self.tables[key] = torch.where(lengths[:, None] > limit, long, short)
            else:
                self.tables[key] = torch.vmap(lambda length: make(seq_len=length)[0])(lengths)
        return self.tables[key]


def _reach(config: Any, rule: dict[str, Any]) -> int | None:
    kind = rule.get("rope_type", "default")
    if kind == "longrope":
        return int(rule["original_max_position_embeddings"])
    return int(config.max_position_embeddings) if "dynamic" in kind else None


def _by_length(hf: nn.Module) -> Iterator[Any]:
    """The rotary embeddings that have a rule of lengths."""
    for module in hf.modules():
        kinds = getattr(module, "rope_type", None)
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
        if any(isinstance(kind, str) and ("dynamic" in kind or kind == "longrope") for kind in kinds):
            yield module


def _proves(config: Any) -> bool:
    """Two documents in a row have the frequencies that transformers gives each of them alone.

    On the real rotary embeddings, with reaches of a few tokens.
    """
    own = copy.deepcopy(config)
    text = own.get_text_config()
    text.max_position_embeddings = 8
    rules = [text.rope_parameters, *text.rope_parameters.values()]
    for rule in (
        rule for rule in rules if isinstance(rule, dict) and "original_max_position_embeddings" in rule
    ):
        rule["original_max_position_embeddings"] = 8
    try:
        modules = list(_by_length(skeleton(own, torch.float32)))
        return bool(modules) and all(_same_alone(module) for module in modules)
    except Exception:  # it takes other arguments, or its own look at the positions
        LOG.debug("a proof could not be run", exc_info=True)
        return False


def _same_alone(shape: Any) -> bool:
    kinds = shape.rope_type
    layer_types: list[str | None] = list(kinds) if isinstance(kinds, dict) else [None]
    rows = [torch.arange(length)[None] for length in (3, 12, 9)]
    for layer_type in layer_types:
        given = {} if layer_type is None else {"layer_type": layer_type}
        packed = DocumentRotary(type(shape)(shape.config))(torch.zeros(1), torch.cat(rows, 1), **given)
        alone = [type(shape)(shape.config)(torch.zeros(1), row, **given) for row in rows]
        parts = zip(*alone, strict=True) if isinstance(packed, tuple) else [alone]
        whole = packed if isinstance(packed, tuple) else [packed]
        for found, expected in zip(whole, parts, strict=True):
            if not torch.allclose(found, torch.cat(list(expected), 1), rtol=1e-5, atol=1e-6):
                return False
    return True
