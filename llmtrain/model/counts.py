"""Exact parameter counts of any causal LM, from its modules on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llmtrain.model.structure import find_layers, skeleton


@dataclass(frozen=True)
class Counts:
    """Parameters; a tied weight counts once in `total`.

    total      all
    matmul     those that multiply every token, the head included, the embedding table not
    embedding  the embedding table
    active     of `matmul`, what one token meets: its share of the experts of a mixture
    """

    total: int
    matmul: int
    embedding: int
    active: int


def parameter_counts(config: Any) -> Counts:
    """Counts of the model of `config`; no memory is taken for parameters."""
    hf = skeleton(config, torch.float32)
    total = sum(p.numel() for p in hf.parameters())
    embedding = hf.get_input_embeddings().weight.numel()
    head = hf.get_output_embeddings()
    tables = {id(hf.get_input_embeddings().weight)} | ({id(head.weight)} if head is not None else set())
    inside = [p for p in hf.parameters() if id(p) not in tables and p.ndim >= 2]
    matmul = sum(p.numel() for p in inside) + (head.weight.numel() if head is not None else 0)
    idle = sum(layer_costs(hf, total=True)) - sum(layer_costs(hf))
    return Counts(total, matmul, embedding, matmul - idle)


def layer_costs(hf: Any, total: bool = False) -> list[int]:
    """Parameters of each decoder layer that one token meets, or all of them."""
    name = find_layers(hf)
    if name is None:
        return []
    share = 1.0 if total else expert_share(hf.config)
    costs = []
    for layer in hf.get_submodule(name):
        experts = sum(p.numel() for key, p in layer.named_parameters() if ".experts." in f".{key}")
        others = sum(p.numel() for p in layer.parameters()) - experts
        costs.append(others + round(share * experts))
    return costs


def expert_share(config: Any) -> float:
    """The part of a mixture's experts that computes one token; 1 for a dense model."""
    text = config.get_text_config()
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((n for name in names if isinstance(n := getattr(text, name, None), int) and n), 0)
    used = getattr(text, "num_experts_per_tok", None)
    return min(1.0, used / experts) if experts and isinstance(used, int) else 1.0
