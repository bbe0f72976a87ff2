"""From the run's `model` section to a transformers configuration, every wrong key named."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmtrain.config.schema import ModelSection
from llmtrain.errors import ConfigError, Problem, nearest


def hf_config(
    section: ModelSection, vocab_size: int, eos_id: int | None = None, bos_id: int | None = None
) -> Any:
    """The configuration of the model to train; ConfigError with all that is wrong with `section`.

    vocab_size, eos_id and bos_id are the dataset's: a new model takes them, a model with weights must be
    at least as large.
    """
    config = _from_source(section.source) if section.source else _from_dict(section.config or {}, vocab_size)
    text = config.get_text_config()
    if text.vocab_size < vocab_size:
        field = "model.source" if section.source else "model.config.vocab_size"
        raise ConfigError(
            Problem(
                field,
                section.source or text.vocab_size,
                "the run",
                f"its vocabulary of {text.vocab_size} is smaller than the dataset's {vocab_size}; "
                "build the dataset with this model's tokenizer, or take a model with a larger vocabulary",
            )
        )
    given = section.config or {}
    for key, value in (("eos_token_id", eos_id), ("bos_token_id", bos_id)):
        if section.source is None and key not in given:
            setattr(config, key, value)
    config.use_cache = False
    return config


def _from_source(source: str) -> Any:
    return AutoConfig.from_pretrained(source, trust_remote_code=False)


def _from_dict(given: dict[str, Any], vocab_size: int) -> Any:
    values = dict(given)
    family = values.pop("model_type", None)
    if family not in CONFIG_MAPPING:
        raise ConfigError(
            Problem("model.config.model_type", family, "the run", nearest(str(family), causal_families()))
        )
    values.setdefault("vocab_size", vocab_size)
    return CONFIG_MAPPING[family](**values)


def causal_families() -> list[str]:
    """The model types that transformers can make a causal LM of."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
