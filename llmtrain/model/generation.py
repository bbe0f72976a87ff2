"""`generation_config.json`: where generation stops and how it samples, from the source to the export.

A run keeps what its source says, and adds what its data teaches as an end: of a document, and of a turn. Each
checkpoint carries the result, so the export, `generate` and any server stop where training said.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from llmtrain.config.hub_names import looks_like_a_path
from llmtrain.config.schema import ModelSection
from llmtrain.data.dataset import Dataset

FILE = "generation_config.json"
# What transformers writes by itself from a config, whose ids are often no more than its family's defaults.
_GUESSED = "_from_model_config"
# What says nothing of the text that comes out, and use_cache, which training turns off.
_NO_SETTINGS = {_GUESSED, "transformers_version", "use_cache", "return_dict_in_generate"}
_NO_SETTINGS |= {f"output_{what}" for what in ("attentions", "hidden_states", "logits", "scores")}


def settings_of_run(model: ModelSection, config: Any, datasets: Sequence[Dataset]) -> dict[str, Any]:
    """What generation by the model of this run goes by: the content of its `generation_config.json`.

    The source's settings; as ends, those that it names and those that the datasets teach. Ids that nobody
    chose, but a family has by default, count if they are special tokens here.
    """
    special = {number for each in datasets for number in each.manifest.tokenizer.special.values()}
    said = _of_source(model.source) if model.source is not None else {}
    chosen = model.config is not None or (said and not said.get(_GUESSED))
    ends = token_ids(said.get("eos_token_id") if said else _end_of(config))
    ends = [number for number in ends if chosen or number in special]
    for dataset in datasets:
        ends += [dataset.eos_id, *dataset.turn_ends]
    settings = {key: value for key, value in said.items() if key in _known_settings()}
    for name in ("bos_token_id", "pad_token_id"):
        if not chosen and settings.get(name) not in special:
            settings.pop(name, None)
    return {**settings, "eos_token_id": list(dict.fromkeys(ends))}


def settings_in(folder: Path) -> dict[str, Any] | None:
    """The settings that a folder keeps; None when it has none that can be read."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def completed(said: dict[str, Any] | None, config: Any, tokenizer: Any) -> dict[str, Any]:
    """Settings with what the tokenizer knows besides: its own end, its start, something to pad with.

    `said` is None for a checkpoint of an older version: then the config's ends count that are special tokens.
    """
    settings = {key: value for key, value in (said or {}).items() if key in _known_settings()}
    ends = token_ids(settings.get("eos_token_id"))
    if said is None:
        own = tokenizer.added_tokens_decoder
        ends = [number for number in token_ids(_end_of(config)) if number in own]
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    ends = list(dict.fromkeys(ends))
    settings["eos_token_id"] = first_or_all(ends)
    if settings.get("bos_token_id") is None:
        settings["bos_token_id"] = tokenizer.bos_token_id
    if settings.get("pad_token_id") is None:
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, *ends)
        settings["pad_token_id"] = next((number for number in known if number is not None), None)
    return {key: value for key, value in settings.items() if value is not None}


def token_ids(value: Any) -> list[int]:
    """One id, several or none, as a list."""
    found = value if isinstance(value, list) else [value]
    return [number for number in found if isinstance(number, int) and not isinstance(number, bool)]


def first_or_all(ends: Iterable[int]) -> int | list[int] | None:
    """One id as itself, several as a list, none as None: so Hugging Face's files have it."""
    found = list(ends)
    return found[0] if len(found) == 1 else found or None


def _end_of(config: Any) -> Any:
    return getattr(config.get_text_config(), "eos_token_id", None)


def _known_settings() -> Collection[str]:
    return vars(GenerationConfig()).keys() - _NO_SETTINGS


def _of_source(source: str) -> dict[str, Any]:
    if looks_like_a_path(source):
        return settings_in(Path(source).expanduser()) or {}
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return settings_in(Path(hf_hub_download(source, FILE)).parent) or {}
    except (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        OSError,
    ):  # it has none, or none is at hand
        return {}
