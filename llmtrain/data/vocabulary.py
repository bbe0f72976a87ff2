"""What a `tokenizer.json` says without any tokenizer library: each token's number, and its bytes of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TOKENIZER_JSON = "tokenizer.json"


def token_numbers(folder: Path) -> dict[str, int]:
    """Token → number, special tokens included; empty when the folder has no readable tokenizer.json."""
    content = _content(folder)
    added = {token["content"]: int(token["id"]) for token in content.get("added_tokens", [])}
    return {**_pieces(content), **added}


def token_bytes(folder: Path) -> np.ndarray | None:
    """int64 [vocabulary]: the bytes of text each token stands for; None when the file does not tell.

    Byte-level vocabularies (GPT-2's, Llama 3's) write one character per byte. SentencePiece ones write a
    space as U+2581 and a lone byte as <0xAB>. Special tokens stand for no text.
    """
    content = _content(folder)
    decoders = _decoder_types(content.get("decoder"))
    if "ByteLevel" in decoders:
        lengths_of = {piece: len(piece) for piece in _pieces(content)}
    elif decoders & {"ByteFallback", "Metaspace", "Replace"}:
        lengths_of = {piece: _sentencepiece_bytes(piece) for piece in _pieces(content)}
    else:
        return None
    added = {int(token["id"]): token for token in content.get("added_tokens", [])}
    pieces = _pieces(content)
    lengths = np.zeros(max([*pieces.values(), *added], default=-1) + 1, np.int64)
    for piece, number in pieces.items():
        lengths[number] = lengths_of[piece]
    for number, token in added.items():
        lengths[number] = 0 if token.get("special") else len(token["content"].encode())
    return lengths


def _content(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / TOKENIZER_JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _pieces(content: dict[str, Any]) -> dict[str, int]:
    vocabulary = content.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # Unigram: [[piece, log-probability], …]
        return {str(entry[0]): number for number, entry in enumerate(vocabulary)}
    return dict(vocabulary)


def _sentencepiece_bytes(piece: str) -> int:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return 1
    return len(piece.replace("\u2581", " ").encode())


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    types = {str(decoder.get("type"))}
    for part in decoder.get("decoders", []):
        types |= _decoder_types(part)
    return types
