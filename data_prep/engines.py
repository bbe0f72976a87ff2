"""Three engines that turn text into token ids, of which the fastest that gives the same ids is used.

    gigatoken   byte-level BPE with a split it knows, and what is like Llama 2; remembers words it has seen
    tiktoken    byte-level BPE with any split, made of the tokenizer.json's own merges
    tokenizers  everything; what it answers is what is right

The other two are used only when they answered as `tokenizers` did on a part of the very corpus, on every kind
of token and character, and on strings made to part them. Without them a build says what it costs.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from llmtrain.data.vocabulary import token_numbers
from llmtrain.errors import ConfigError, DataError, Problem

SAMPLE_BYTES = 2_000_000  # of the corpus, on which engines must agree
RENEW_BYTES = 1 << 27  # gigatoken keeps every word it has seen: after so much text it starts afresh
NOT_INSTALLED = "it is not installed"
ODD = (
    "I'll don't CAN'T we'RE o'clock ''s 'S'ſ x'\u0301s",
    "1 12 123 1234 12345678901234567890 ١٢٣٤ ⅷ²½ 3.14 1_000",
    "a  b   c\t\td \t e\n\n\nf\r\n\r\ng \n h\u00a0\u00a0i\u2003j\u3000k\x85l\u2028m \n",
    "  \n   x\n    y  \n\n\t\tz   ",
    "e\u0301 n\u0303\u0303 \u0301x ก็ำ नमस्ते שָׁלוֹם عَرَبِي ﷺ",
    "漢字かな한국어。、「」混ぜたtext漢字",
    "🙂👩‍👩‍👧🏽 🇩🇪🇫🇷 \U0001f9ff\ufe0f",
    "<|endoftext|></s><s><pad><|im_start|>user\n[INST] <unk> <0x0A> ▁x",
    "\x00\x01\x7f\u200b\ufeff\ufffd\ue000\U000f0000\U0010ffff",
    "(?:x)[y]{2}\\p{L}$^ !!!???... --- ___ ///\\\\\\ \"'\"' ;;\n;;\r\n",
    "a" * 3000 + " " * 3000 + "." * 3000 + "\n" * 3000 + "ab" * 1500 + "é" * 1500,
    "",
    " ",
    "\n",
)


class NotUsableError(Exception):
    """An engine is not there, or can't do what this tokenizer does; the message says why."""


class Engine(Protocol):
    """Text to token ids; a special token spelled out in a text is text."""

    name: str

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """uint32 ids of all texts back to back, and int64 lengths of each."""


class Reference:
    """Hugging Face tokenizers."""

    name = "tokenizers"

    def __init__(self, folder: Path):
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True  # text stays text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As every engine."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return joined([np.array(encoding.ids, np.uint32) for encoding in encodings])


class Gigatoken:
    """gigatoken, on the calling thread alone."""

    name = "gigatoken"

    def __init__(self, folder: Path):
        try:
            from gigatoken.gigatoken_rs import load_hf_json
        except ImportError:
            raise NotUsableError(NOT_INSTALLED) from None
        content = _content(folder)
        content["added_tokens"] = [token for token in content.get("added_tokens", []) if not token["special"]]
        text = json.dumps(content)

        def load() -> Any:
            try:
                return load_hf_json(text)
            except (RuntimeError, ValueError, KeyError) as error:
                said = (str(error).splitlines() or [type(error).__name__])[0]
                raise NotUsableError(f"it can't read this tokenizer ({said[:60]} …)") from None

        self._load: Callable[[], Any] = load
        self._loaded = load()
        self._seen = 0

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As every engine."""
        if self._seen > RENEW_BYTES:
            self._loaded, self._seen = self._load(), 0
        self._seen += sum(map(len, texts))
        return joined([self._loaded.encode(text) for text in texts])


class Tiktoken:
    """tiktoken, with ranks made of the merges. A text it gives up on goes to `tokenizers`."""

    name = "tiktoken"

    def __init__(self, folder: Path):
        try:
            import tiktoken
        except ImportError:
            raise NotUsableError(NOT_INSTALLED) from None
        content = _content(folder)
        split = _split_of(content)
        ranks, ids = _ranks(content["model"])
        self._encoding = tiktoken.Encoding(
            "of tokenizer.json", pat_str=split, mergeable_ranks=ranks, special_tokens={}
        )
        self._ids = ids
        self._reference = Reference(folder)

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As every engine."""
        return joined([self._one(text) for text in texts])

    def _one(self, text: str) -> np.ndarray:
        try:
            return self._ids[self._encoding.encode_to_numpy(text, disallowed_special=())]
        except ValueError:  # its pattern matcher runs out of stack on a million blanks
            return self._reference([text])[0]


def joined(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of ids back to back, and the length of each."""
    lengths = np.array([len(part) for part in parts], np.int64)
    return (np.concatenate(parts) if parts else np.zeros(0, np.uint32)), lengths


FASTEST_FIRST: dict[str, Callable[[Path], Engine]] = {
    Gigatoken.name: Gigatoken,
    Tiktoken.name: Tiktoken,
    Reference.name: Reference,
}


@dataclass(frozen=True)
class Choice:
    """The engine to use, as the manifest names it, and what was said of those that are not used."""

    name: str
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name + (f" ({'; '.join(self.passed_over)})" if self.passed_over else "")


def choose_engine(folder: Path, wanted: str, texts: Iterable[str]) -> Choice:
    """The fastest engine that answers as `tokenizers` does; with `wanted` not auto, that one or none.

    `texts` are of the corpus; their first SAMPLE_BYTES are compared. Raises ConfigError when the wanted one
    can't be used.
    """
    sample: list[str] | None = None
    passed_over: list[str] = []
    for name, engine in FASTEST_FIRST.items():
        if name == Reference.name or wanted not in ("auto", name):
            continue
        try:
            made = engine(folder)
            sample = [*_first(texts), *odd_texts(folder)] if sample is None else sample
            _check_equal(made, Reference(folder), sample)
            return Choice(f"{name} {_version(name)}", tuple(passed_over))
        except NotUsableError as reason:
            if wanted == name:
                raise ConfigError(Problem("tokenizer.engine", name, "corpus", _fix(str(reason)))) from None
            passed_over.append(f"{name}: {reason}")
    return Choice(f"{Reference.name} {_version(Reference.name)}", tuple(passed_over))


def _fix(reason: str) -> str:
    if reason == NOT_INSTALLED:
        return f"{reason}: `pip install gigatoken tiktoken`, or say auto"
    return f"{reason}; say auto, or tokenizers"


def open_engine(folder: Path, name: str) -> Engine:
    """The engine a manifest names, or `tokenizers`, which gives the same ids, where that is not installed.

    Raises DataError when tokenizer.json is damaged.
    """
    kind = name.split()[0]
    if kind != Reference.name and kind in FASTEST_FIRST:
        with contextlib.suppress(NotUsableError):
            return FASTEST_FIRST[kind](folder)
    try:
        return Reference(folder)
    except Exception as error:  # tokenizers raises a bare Exception
        raise DataError(f"{folder / 'tokenizer.json'} can't be read by tokenizers: {error}") from None


def odd_texts(folder: Path) -> Iterator[str]:
    """Strings made to part engines: every kind of token alone and side by side, of character, of run."""
    yield from ODD
    tokens = sorted(token_numbers(folder))
    texts = [text for text in map(_text_of, tokens[:: 1 + len(tokens) // 4096]) if text]
    yield from texts
    yield from ("".join(pair) for pair in zip(texts, reversed(texts), strict=True))
    points = (*range(0x600), *range(0x600, 0x3000, 7), *range(0x3000, 0x110000, 997))
    points = tuple(point for point in points if not 0xD800 <= point < 0xE000)
    for first in range(0, len(points), 64):
        yield "".join(f" a{chr(point)}b1{chr(point)}.{chr(point)}" for point in points[first : first + 64])


def _first(texts: Iterable[str]) -> Iterator[str]:
    left = SAMPLE_BYTES
    for text in texts:
        yield text[:left]
        left -= len(text.encode())
        if left <= 0:
            return


def _check_equal(engine: Engine, reference: Engine, texts: list[str]) -> None:
    for first in range(0, len(texts), 256):
        some = texts[first : first + 256]
        ours, right = engine(some), reference(some)
        if not all(np.array_equal(a, b) for a, b in zip(ours, right, strict=True)):
            text = next(text for text in some if not np.array_equal(engine([text])[0], reference([text])[0]))
            raise NotUsableError(f"its ids differ from those of tokenizers on {_where(text)}")


def _where(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _version(name: str) -> str:
    return importlib.metadata.version(name)


def _content(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return content


def _byte_characters() -> list[str]:
    """How byte-level vocabularies write each byte: as itself where that can be seen, else from 256 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(256)
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


_BYTE_OF = {character: byte for byte, character in enumerate(_byte_characters())}


def _text_of(token: str) -> str:
    """The text of a token, if it is any; a byte-level one, or one of SentencePiece."""
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token).decode("utf-8", "ignore")
    return token.replace("\u2581", " ")


def _split_of(content: dict[str, Any]) -> str:
    """The pattern of words of a byte-level BPE. Raises NotUsableError for any other tokenizer."""
    model, pre = content["model"], content["pre_tokenizer"] or {}
    parts = pre.get("pretokenizers", [pre])
    plain = model.get("type") == "BPE" and not any(
        model.get(key)
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    )
    last = parts[-1]
    if (
        not plain
        or content.get("normalizer")
        or any(not token["special"] for token in content.get("added_tokens", []))
        or last.get("type") != "ByteLevel"
        or last.get("add_prefix_space")
    ):
        raise NotUsableError("it does byte-level BPE of plain text only, and this tokenizer does more")
    if len(parts) == 1 and last.get("use_regex", True):
        return r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's
    if len(parts) == 2 and not last.get("use_regex", True) and parts[0].get("behavior") == "Isolated":
        pattern = parts[0].get("pattern", {}).get("Regex")
        if pattern and not parts[0].get("invert"):
            return str(pattern)
    raise NotUsableError("it splits words by one pattern, and this tokenizer does it in another way")


def _ranks(model: dict[str, Any]) -> tuple[dict[bytes, int], np.ndarray]:
    """Bytes of every token → its rank among the merges, and the id of every rank."""
    vocab = model["vocab"]
    pieces = _byte_characters()
    pieces += ["".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in model["merges"]]
    ranks: dict[bytes, int] = {}
    ids: list[int] = []
    for piece in pieces:
        spelled = bytes(_BYTE_OF[character] for character in piece)
        if piece in vocab and spelled not in ranks:
            ranks[spelled] = len(ids)
            ids.append(vocab[piece])
    if len(ids) < 256 or any(bytes([byte]) not in ranks for byte in range(256)):
        raise NotUsableError("its vocabulary lacks some bytes")
    return ranks, np.array(ids, np.uint32)
