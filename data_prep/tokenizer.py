"""The tokenizer of a dataset: taken from a folder or the Hub, or trained here, and written so that
`transformers.AutoTokenizer` loads it. Text is encoded as text: a special token spelled out in a document
does not become that token, so no document can forge a document end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from data_prep.corpus import TokenizerSection
from data_prep.engines import Engine
from llmtrain.config.hub_names import looks_like_a_path, no_such_path
from llmtrain.data.links import refuse_link_out
from llmtrain.data.manifest import TokenizerEntry, file_sha256
from llmtrain.data.pointers import refuse_pointer
from llmtrain.data.tokenizer_files import NAMES, TEMPLATES, tokenizer_files
from llmtrain.errors import DataError

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

# Where words are cut before merging, in this order: what an apostrophe shortens; a word with at most one sign
# or blank before it; one digit; signs with the line ends after them; blank lines; indentation up to the last
# blank; blanks. It is the split of Qwen 3.5, to the letter, because the fastest engines know no split but
# those of known models.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_bpe(texts: Iterable[str], vocab_size: int, eos: str, special: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; bytes after GPT-2): any text round-trips, digits stay single."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eos, *special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    return tokenizer


def write_trained(
    tokenizer: Tokenizer, folder: Path, eos: str, special: Sequence[str] = (), bos: str | None = None
) -> None:
    """A tokenizer folder: `tokenizer.json` and the `tokenizer_config.json` that `transformers` wants.

    With `bos`, which must be a token, transformers begins each text with it, as the documents begin.
    """
    if bos is not None and (number := tokenizer.token_to_id(bos)) is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, number)]
        )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "pad_token": eos,
        **({} if bos is None else {"bos_token": bos}),
        **({"additional_special_tokens": list(special)} if special else {}),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,  # transformers' own word for: no limit
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def find_tokenizer(section: TokenizerSection) -> Path:
    """The folder of a tokenizer that exists: as given, or fetched from the Hub.

    Raises DataError when there is none, or none that `tokenizers` can load.
    """
    assert section.source is not None, "a tokenizer to be trained can't be found"
    folder = Path(section.source).expanduser()
    if not folder.is_dir():
        if looks_like_a_path(section.source):
            said = "it is a file: give its folder" if folder.exists() else no_such_path(section.source)
            raise DataError(f"tokenizer.source = {section.source!r}: {said}")
        folder = _fetch(section.source, section.revision)
    if (folder / "tokenizer.json").is_file():
        refuse_link_out(folder / "tokenizer.json")
        refuse_pointer(folder / "tokenizer.json")
    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"tokenizer.source = {section.source!r} has no tokenizer.json: convert it once with "
            "`transformers.AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)` and give that folder"
        )
    return folder


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=["config.json", *NAMES, f"{TEMPLATES}/*.jinja"]
            )
        )
    except Exception as error:  # offline, no such repository, no access: the same to the user
        raise DataError(
            f"tokenizer.source = {name!r} is no folder here and can't be fetched from the Hub: {error}"
        ) from error


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies what makes up a tokenizer, and nothing else that lies in its folder.

    Raises DataError for a file that is a link out of it.
    """
    folder.mkdir(parents=True)
    for path in tokenizer_files(source):
        place = folder / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def name_marks(folder: Path, marks: Mapping[str, str | None]) -> None:
    """Says in a tokenizer folder which tokens are what (`eos_token`), as far as they are given.

    So all who load it, and who export the model, end documents as the dataset does.
    """
    given = {role: token for role, token in marks.items() if token is not None}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if given and (path.is_file() or name == "tokenizer_config.json"):
            content |= given
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder. Raises DataError when its file is damaged."""
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises a bare Exception
        raise DataError(f"{folder / 'tokenizer.json'} can't be read by tokenizers: {error}") from None


def describe_tokenizer(
    folder: Path, section: TokenizerSection, name: str, prepend_bos: bool = False
) -> TokenizerEntry:
    """What the manifest says of a tokenizer folder.

    Raises DataError when no end of document is known, or no start of one that every document shall have.
    """
    tokenizer = load_tokenizer(folder)
    eos, eos_id = _mark(tokenizer, folder, name, "eos", section.eos)
    bos, bos_id = _mark(tokenizer, folder, name, "bos", section.bos) if prepend_bos else (None, None)
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    return TokenizerEntry(
        name=name,
        sha256=file_sha256(folder / "tokenizer.json"),
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        eos=eos,
        eos_id=eos_id,
        special=dict(sorted(special.items(), key=lambda item: item[1])),
        engine=f"tokenizers {tokenizers.__version__}",
        bos=bos,
        bos_id=bos_id,
    )


def _mark(tokenizer: Tokenizer, folder: Path, name: str, kind: str, chosen: str | None) -> tuple[str, int]:
    """The token that begins (bos) or ends (eos) a document, and its id."""
    token = chosen or _named(folder, f"{kind}_token")
    if token is None:
        raise DataError(f"tokenizer {name} names no {kind}_token: set tokenizer.{kind} to the token to use")
    number = tokenizer.token_to_id(token)
    if number is None:
        raise DataError(f"tokenizer {name} has no token {token!r} (tokenizer.{kind}): name one it has")
    return token, number


def _named(folder: Path, role: str) -> str | None:
    """The token that a tokenizer folder names for a role, such as eos_token."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.is_file():
            token: Any = json.loads(path.read_text(encoding="utf-8")).get(role)
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                return token
    return None


@dataclass
class Encoder:
    """Documents to token ids, each begun by `bos_id` and ended by `eos_id` unless those are None."""

    engine: Engine
    eos_id: int | None
    bos_id: int | None = None

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """uint32 ids of all texts back to back, and int64 lengths of each."""
        own, sizes = self.engine(texts)
        lengths = sizes + (self.bos_id is not None) + (self.eos_id is not None)
        ends = np.cumsum(lengths)
        ids = np.empty(int(lengths.sum()), np.uint32)
        text = np.ones(len(ids), bool)
        for mark, places in ((self.bos_id, ends - lengths), (self.eos_id, ends - 1)):
            if mark is not None:
                ids[places] = mark
                text[places] = False
        ids[text] = own
        return ids, lengths
