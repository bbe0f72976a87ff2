"""The tokenizer of an export: the checkpoint's files, and its settings made to fit the model beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmtrain.checkpoint import Checkpoint
from llmtrain.checkpoint.files import read_plain, write_file
from llmtrain.data.tokenizer_files import TOKENIZER_CONFIG, place_in_tokenizer
from llmtrain.errors import CheckpointError
from llmtrain.export.weights import PUBLIC_FILE

_PROGRAMS = "auto_map"  # names Python files, which are never copied


def write_tokenizer(checkpoint: Checkpoint, folder: Path, reach: int | None) -> Any:
    """Copies the tokenizer's files and returns it as transformers loads it; None when there is none.

    Only what the manifest vouches for is copied: what else lies in the checkpoint is a stranger's. `reach` is
    how many tokens the model reads.
    """
    places = {entry.name: place_in_tokenizer(entry.name) for entry in checkpoint.manifest.files}
    found = {name: place for name, place in places.items() if place is not None}
    for name, place in found.items():
        content = read_plain(checkpoint.path, name)
        if place == TOKENIZER_CONFIG:
            content = _settings(content, checkpoint.manifest.data.get("document_end"), reach)
        (folder / place).parent.mkdir(exist_ok=True)
        write_file(folder / place, content, PUBLIC_FILE)
    if not found:
        return None
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{checkpoint.path} has a tokenizer that transformers refuses: {error}"
        ) from None


def _settings(content: bytes, document_end: str | None, reach: int | None) -> bytes:
    """tokenizer_config.json that names the document's end, says the model's reach, and asks for no code."""
    try:
        settings = json.loads(content)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        return content  # transformers has its own word for it
    settings.pop(_PROGRAMS, None)
    if settings.get("eos_token") is None and document_end is not None:
        settings["eos_token"] = document_end
    if reach is not None:
        settings["model_max_length"] = reach
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
