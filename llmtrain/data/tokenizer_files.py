"""Which files make up a tokenizer: they go on from its source to dataset, checkpoint and export.

The list is closed. What else lies in a folder is a stranger's, and some tools would open it.
"""

from __future__ import annotations

import re
from pathlib import Path

from llmtrain.data.links import refuse_link_out

TOKENIZER_CONFIG = "tokenizer_config.json"
SENTENCEPIECE = "tokenizer.model"  # converters to GGUF want it beside tokenizer.json
NAMES = (
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    SENTENCEPIECE,
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
TEMPLATES = "additional_chat_templates"  # a folder: NAME.jinja each
_TEMPLATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\.jinja")
_FLAT = f"{TEMPLATES}--"  # in a checkpoint, whose files lie in one folder
_PIECES = b"\n"  # a SentencePiece model is a protocol buffer, and its first field the list of its pieces


def tokenizer_files(folder: Path | None) -> list[Path]:
    """The files of `folder` that are a tokenizer's (it may be a model's folder, with weights).

    Raises DataError for one that is a link out of the folder.
    """
    if folder is None:
        return []
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    templates = folder / TEMPLATES
    if templates.is_dir():
        refuse_link_out(templates)
        found += sorted(path for path in templates.iterdir() if _TEMPLATE.fullmatch(path.name))
    for path in found:
        refuse_link_out(path)
    return [path for path in found if path.suffix != ".model" or _is_sentencepiece(path)]


def name_in_checkpoint(path: Path) -> str:
    """The name of a tokenizer's file in a folder without folders."""
    return (_FLAT if path.parent.name == TEMPLATES else "") + path.name


def place_in_tokenizer(name: str) -> str | None:
    """The place in a tokenizer's folder of a checkpoint's file; None for what is no tokenizer's."""
    if name.startswith(_FLAT) and _TEMPLATE.fullmatch(name.removeprefix(_FLAT)):
        return f"{TEMPLATES}/{name.removeprefix(_FLAT)}"
    return name if name in NAMES else None


def _is_sentencepiece(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(1) == _PIECES
