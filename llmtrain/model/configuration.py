"""From the run's `model` section to a transformers configuration, every wrong key named."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmtrain.config.hub_names import looks_like_a_path, no_such_path
from llmtrain.config.schema import ModelSection
from llmtrain.errors import ConfigError, Problem, nearest
from llmtrain.model.probes import few_or_all_layers
from llmtrain.model.structure import skeleton
from llmtrain.model.undeclared import is_read, takes_effect
from llmtrain.plan.families import ROPE_KEYS

ORIGIN = "the run"
# Said of files that are not read: Python, and weights of another form.
_FORGOTTEN = ("auto_map", "custom_pipelines", "quantization_config")


def hf_config(
    section: ModelSection, vocab_size: int, eos_id: int | None = None, bos_id: int | None = None
) -> Any:
    """The configuration of the model to train; ConfigError with all that is wrong with `section`.

    vocab_size, eos_id and bos_id are the dataset's. A new model takes them where the section does not say;
    a model with weights must have at least that many token ids.
    """
    if section.source is not None:
        config = _from_source(section.source)
        field, value = "model.source", section.source
    else:
        ids = {"vocab_size": vocab_size, "eos_token_id": eos_id, "bos_token_id": bos_id, "pad_token_id": None}
        config = _from_dict(section.config or {}, ids)
        field, value = "model.config", None
    problems = _unfit(config, field, value, vocab_size)
    if problems:
        raise ConfigError(problems)
    _require_made(config, field, value)
    config.use_cache = False
    return config


def read_config(place: str | Path, *, local_files_only: bool = False) -> Any:
    """The transformers configuration of a folder or a Hub id, as OSError, ValueError or KeyError allow.

    It is a stranger's: code of its own is never run, and what it names of it, or as an implementation of
    attention or experts that transformers might fetch from the Hub and run, is forgotten, in its parts too.
    So is how its weights were quantized: where they are, `WeightFiles` refuses them.
    """
    here = Path(place).expanduser()
    place = here if here.exists() else place
    config = AutoConfig.from_pretrained(place, local_files_only=local_files_only, trust_remote_code=False)
    if isinstance(config.get_text_config(), dict):
        raise ValueError(f"its model type, {config.model_type}, has no such parts as its config.json says")
    config._attn_implementation = config._experts_implementation = None
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        for name in _FORGOTTEN:
            if hasattr(part, name):
                delattr(part, name)
    return config


def text_model(config: Any) -> Any:
    """The configuration that is trained, evaluated and generated with: of a multimodal model, its text part.

    ValueError, saying why, when there is no causal language model in it.
    """
    text = config.get_text_config()
    if text is config and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return config
    if text is config:
        raise ValueError(f"its model_type {config.model_type} is no causal language model in transformers")
    if text.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"its model_type {config.model_type} is multimodal, and its text part, {text.model_type}, is no "
            "causal language model that transformers makes by itself"
        )
    text.dtype = text.dtype or config.dtype
    text.tie_word_embeddings = getattr(config, "tie_word_embeddings", text.tie_word_embeddings)
    return text


def causal_families() -> list[str]:
    """The model types that transformers can make a causal LM of."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _from_source(source: str) -> Any:
    if looks_like_a_path(source) and not Path(source).expanduser().exists():
        raise ConfigError(Problem("model.source", source, ORIGIN, no_such_path(source)))
    try:
        config = read_config(source)
    except (OSError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()[0]
        fix = f"transformers can't read a configuration there ({said}); name a folder with config.json or a "
        fix += "Hub id whose model type transformers knows (code from the Hub is never run)"
        raise ConfigError(Problem("model.source", source, ORIGIN, fix)) from error
    try:
        return text_model(config)
    except ValueError as error:
        raise ConfigError(Problem("model.source", source, ORIGIN, str(error))) from error


def _from_dict(given: dict[str, Any], ids: dict[str, int | None]) -> Any:
    values = dict(given)
    family = values.pop("model_type", None)
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(_unknown_family(family))
    known = config_keys(family)
    undeclared = [key for key in values if key not in known]
    unknown = [key for key in undeclared if not is_read(family, key)]
    if unknown:
        raise ConfigError([_unknown_key(key, values[key], family, known) for key in unknown])
    for key, value in ids.items():
        if key in known:
            values.setdefault(key, value)
    try:
        config = CONFIG_MAPPING[family](**values)
    except Exception as error:
        said = " ".join(str(error).split())
        fix = f"transformers refuses this configuration: {said}"
        raise ConfigError(Problem("model.config", None, ORIGIN, fix)) from error
    text = config.get_text_config()
    if text is not config:
        fix = f"{family} is multimodal, and text trains its text part alone: write "
        fix += f"model_type: {text.model_type} and the keys of its text_config here"
        raise ConfigError(Problem("model.config.model_type", family, ORIGIN, fix))
    without = [key for key in undeclared if not _follows(config, key)]
    if without:
        raise ConfigError([_unknown_key(key, values[key], family, known) for key in without])
    return config


def _follows(config: Any, key: str) -> bool:
    """Whether the model follows an undeclared key; a value that it can't be made with is refused."""
    try:
        return takes_effect(config, key)
    except Exception as error:
        fix = f"transformers can't make a {config.model_type} with it: {' '.join(str(error).split())}"
        raise ConfigError(Problem(f"model.config.{key}", getattr(config, key), ORIGIN, fix)) from error


def config_keys(family: str) -> set[str]:
    """The keys that `model.config` may have for this model type."""
    made = CONFIG_MAPPING[family]
    known = set(made.attribute_map) | set(inspect.signature(made.__init__).parameters)
    if dataclasses.is_dataclass(made):
        known |= {field.name for field in dataclasses.fields(made)}
    if "rope_parameters" in known:
        known |= set(ROPE_KEYS)
    return known - {"self", "kwargs", "args"}


def _unknown_family(family: Any) -> Problem:
    if family is None:
        fix = "say which architecture the model has, for example model_type: llama"
    else:
        near = difflib.get_close_matches(str(family), causal_families(), n=4, cutoff=0.5)
        fix = f"transformers knows no causal language model of that type; near ones: {', '.join(near)}"
        if not near:
            fix = (
                "transformers knows no causal language model of that type; common ones: llama, qwen3, mixtral"
            )
    return Problem("model.config.model_type", family, ORIGIN, fix)


def _unknown_key(key: str, value: Any, family: str, known: set[str]) -> Problem:
    guess = nearest(key, known)
    fix = f"{family} has no such key" + (f"; {guess}" if guess else "")
    return Problem(f"model.config.{key}", value, ORIGIN, fix)


def _require_made(config: Any, field: str, value: Any) -> None:
    """ConfigError when transformers takes the configuration and then can't make a model of it."""
    try:
        skeleton(few_or_all_layers(config), torch.float32)
    except Exception as error:
        said = " ".join(str(error).split())
        fix = f"transformers can't make a {config.model_type} of it: {type(error).__name__}: {said}"
        raise ConfigError(Problem(field, value, ORIGIN, fix)) from error


def _unfit(config: Any, field: str, value: Any, vocab_size: int) -> list[Problem]:
    problems = []
    text = config.get_text_config()
    if text.vocab_size < vocab_size:
        name, shown = ("model.config.vocab_size", text.vocab_size) if value is None else (field, value)
        fix = f"its vocabulary of {text.vocab_size} is smaller than the dataset's {vocab_size}; "
        fix += (
            "leave it out, and the dataset's is taken"
            if value is None
            else "build the dataset with this model's tokenizer"
        )
        problems.append(Problem(name, shown, ORIGIN, fix))
    if getattr(text, "output_router_logits", False):
        fix = "the auxiliary loss of the router is not part of the training loss; set it to false"
        name = "model.config.output_router_logits" if value is None else field
        problems.append(Problem(name, True if value is None else value, ORIGIN, fix))
    return problems
