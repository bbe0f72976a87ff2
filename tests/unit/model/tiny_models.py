"""Small models of every family the tests cover, and rows for them."""

from __future__ import annotations

from typing import Any

import torch

from llmtrain.config.schema import ModelSection
from llmtrain.model.build import build_stage, hf_config, plan_cuts
from llmtrain.model.stages import StageModel

VOCAB = 97
BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **BASE},
    "llama_tied": {"model_type": "llama", **BASE, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **BASE, "head_dim": 16},
    "gemma3": {
        "model_type": "gemma3_text",
        **BASE,
        "head_dim": 16,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "mixtral": {"model_type": "mixtral", **BASE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {"model_type": "olmo2", **BASE},
    "gpt_neox": {
        "model_type": "gpt_neox",
        **{key: value for key, value in BASE.items() if key != "num_key_value_heads"},
        "hidden_dropout": 0.0,
    },
}


def tiny_config(family: str, **changes: Any) -> Any:
    """The transformers configuration of a small model."""
    return hf_config(ModelSection(config={**FAMILIES[family], **changes}), VOCAB, eos_id=1, bos_id=0)


def whole_model(config: Any, seed: int = 7, dtype: torch.dtype = torch.float32, **options: Any) -> StageModel:
    """All of it, on CPU."""
    return build_stage(config, plan_cuts(config, 1)[0], dtype, "cpu", seed, **options)


def stage_models(
    config: Any, count: int, seed: int = 7, dtype: torch.dtype = torch.float32, **options: Any
) -> list[StageModel]:
    """`count` stages, on CPU."""
    return [build_stage(config, cut, dtype, "cpu", seed, **options) for cut in plan_cuts(config, count)]


def packed_rows(rows: int = 2, seq: int = 16, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """tokens, positions (two documents a row), labels (some ignored)."""
    noise = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (rows, seq), generator=noise)
    labels = torch.randint(0, VOCAB, (rows, seq), generator=noise)
    labels[:, ::5] = -100
    positions = torch.arange(seq).repeat(rows, 1)
    for row in range(rows):
        start = 5 + row
        positions[row, start:] -= start
    return tokens, positions, labels


def loss_of(
    stages: list[StageModel], tokens: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The loss sum of a model, whatever its number of stages."""
    if len(stages) == 1:
        return stages[0](tokens, positions, labels)
    given = tokens
    for stage in stages[:-1]:
        given, positions = stage(given, positions)
    return stages[-1].loss(stages[-1](given, positions), labels)
