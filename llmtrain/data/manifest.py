"""`manifest.json`: what a dataset folder holds and vouches for, and its fingerprint.

    FOLDER/manifest.json   tokenizer/   train/00000.bin 00000.idx …   valid/00000.bin 00000.idx …

The manifest names every shard with its size and sha256. The fingerprint is a hash of content alone
(tokens, boundaries, loss masks, dtype, tokenizer), so it survives a copy, a rename and a rebuild.

Version 1 is text. Version 3 is fine-tuning data: `kind` says which, and every shard has a `.mask`
(`llmtrain.data.shards`); in version 2 that has only the bit of what is trained on. Text is still written as
version 1, which older readers know; they must not read the others, because they would train on what is only
to be read.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from llmtrain.config.schema import Section
from llmtrain.data.shards import REBUILD, ShardFacts, mask_path, shard_paths
from llmtrain.errors import DataError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
FORMAT = "llmtrain-dataset"  # the first key of every manifest
VERSION, MASKED_VERSION = 1, 3
KNOWN = (VERSION, 2, MASKED_VERSION)
Kind = Literal["text", "chat", "prompt_completion", "preference"]


class FileEntry(Section):
    """One file: its size and its sha256."""

    bytes: int
    sha256: str


class ShardEntry(Section):
    """One shard, `name` relative to the folder and without suffix; it can't lead out of the folder."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")
    documents: int
    tokens: int
    bin: FileEntry
    idx: FileEntry
    mask: FileEntry | None = None

    @classmethod
    def of(cls, name: str, facts: ShardFacts) -> ShardEntry:
        """The entry of a shard that was just written."""
        return cls(
            name=name,
            documents=facts.documents,
            tokens=facts.tokens,
            bin=FileEntry(bytes=facts.bin.bytes, sha256=facts.bin.sha256),
            idx=FileEntry(bytes=facts.idx.bytes, sha256=facts.idx.sha256),
            mask=FileEntry(bytes=facts.mask.bytes, sha256=facts.mask.sha256) if facts.mask else None,
        )


class SplitEntry(Section):
    """One split; `text_bytes` is the UTF-8 size of the text its tokens came from.

    `trained_tokens` is how many of them the masks mark; None in a dataset without masks.
    """

    documents: int
    tokens: int
    text_bytes: int
    trained_tokens: int | None = None
    shards: tuple[ShardEntry, ...]


class TokenizerEntry(Section):
    """The tokenizer in `tokenizer/`; `sha256` is that of its `tokenizer.json`."""

    name: str
    sha256: str
    vocab_size: int
    eos: str
    eos_id: int
    special: dict[str, int]
    engine: str
    bos: str | None = None  # what every document of this dataset begins with; None: with its text
    bos_id: int | None = None


class SourceEntry(Section):
    """One source as it was read; `digest` covers names, sizes and contents of its files."""

    source: str
    files: int
    bytes: int
    digest: str
    documents: int
    tokens: int


class Counts(Section):
    """The law of a build: documents_in == documents_out + sum(rejected), each once.

    `repeats` are further copies written for sources with a weight above 1, beyond documents_out.
    `found` counts what steps found or changed in documents, by name.
    """

    documents_in: int
    documents_out: int
    rejected: dict[str, int]
    examples: dict[str, tuple[str, ...]]  # a few `file:line` per reason
    repeats: int = 0
    found: dict[str, int] = {}


class Manifest(Section):
    """Everything known about a dataset folder.

    `kind: preference` holds pairs: documents 2k and 2k + 1 of a split answer one prompt, the first is the
    chosen one.
    """

    format: Literal["llmtrain-dataset"] = "llmtrain-dataset"
    version: int = VERSION
    kind: Kind = "text"
    turn_ends: dict[str, int] = {}  # token and id of what ends a turn that is learnt, by the chat template
    name: str
    created_by: str
    fingerprint: str
    dtype: Literal["uint16", "int32"]
    vocab_size: int
    append_eos: bool
    tokenizer: TokenizerEntry
    splits: dict[str, SplitEntry]
    sources: tuple[SourceEntry, ...]
    counts: Counts
    pipeline: dict[str, Any]
    pipeline_sha256: str

    @property
    def numpy_dtype(self) -> np.dtype:
        """How a token is stored."""
        return np.dtype("<u2" if self.dtype == "uint16" else "<i4")

    @property
    def masked(self) -> bool:
        """True when only some tokens are trained on, as the shards' masks say."""
        return self.kind != "text"


def fingerprint(
    splits: dict[str, SplitEntry],
    dtype: str,
    vocab_size: int,
    tokenizer_sha256: str,
    append_eos: bool,
    kind: Kind = "text",
) -> str:
    """sha256 over what the tokens are and mean, and over no name of a path or a machine."""
    content = {
        "dtype": dtype,
        "vocab_size": vocab_size,
        "tokenizer": tokenizer_sha256,
        "append_eos": append_eos,
        "splits": {
            name: [
                [file.sha256 for file in (shard.bin, shard.idx, shard.mask) if file] for shard in split.shards
            ]
            for name, split in sorted(splits.items())
        },
    } | ({} if kind == "text" else {"kind": kind})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` by rename: it is there whole or not at all."""
    path = folder / MANIFEST
    part = path.with_name(MANIFEST + ".part")
    content = manifest.model_dump(mode="json")
    if not manifest.masked:  # as version 1 was before there were masks
        del content["kind"]
        for split in content["splits"].values():
            del split["trained_tokens"]
            for shard in split["shards"]:
                del shard["mask"]
    if not manifest.turn_ends:
        del content["turn_ends"]
    if manifest.tokenizer.bos_id is None:  # and before there were marks at the start
        del content["tokenizer"]["bos"], content["tokenizer"]["bos_id"]
    with open(part, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_manifest(folder: str | Path, hashes: bool = False) -> Manifest:
    """The manifest of a dataset folder, sizes and the indexes' hashes checked, all hashes when asked.

    An index is small, and one wrong number in it moves the bounds of documents: it is not read unhashed.

    Raises DataError when the folder is no dataset, the manifest is damaged or from a newer version, or a
    file is missing or differs from what the manifest says.
    """
    folder = Path(folder)
    manifest = _parse(folder)
    for split in manifest.splits.values():
        for shard in split.shards:
            for path, entry in zip(shard_paths(folder / shard.name), (shard.bin, shard.idx), strict=True):
                check_file(path, entry, hashes or entry is shard.idx)
            if shard.mask is not None:
                check_file(mask_path(folder / shard.name), shard.mask, hashes)
    tokenizer = folder / TOKENIZER / "tokenizer.json"
    if not tokenizer.is_file():
        raise DataError(f"{tokenizer} is missing: {REBUILD}")
    if hashes and file_sha256(tokenizer) != manifest.tokenizer.sha256:
        raise DataError(f"{tokenizer} is not the tokenizer this dataset was built with: {REBUILD}")
    return manifest


def _parse(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        what = "is an unfinished or foreign folder" if folder.is_dir() else "does not exist"
        raise DataError(f"{folder} {what} (no {MANIFEST}): make it with `llmtrain data build CORPUS.yaml`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not readable JSON ({error}): {REBUILD}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is not the manifest of a {FORMAT}")
    if content.get("version") not in KNOWN:
        raise DataError(
            f"{path} has format version {content.get('version')!r}, this llmtrain reads {VERSION} to "
            f"{MASKED_VERSION}: use the llmtrain that wrote it, or build the dataset again"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is damaged at {where} ({first['msg']}): {REBUILD}") from None
    expected = fingerprint(
        manifest.splits,
        manifest.dtype,
        manifest.vocab_size,
        manifest.tokenizer.sha256,
        manifest.append_eos,
        manifest.kind,
    )
    if manifest.fingerprint != expected:
        raise DataError(f"{path} was edited: its fingerprint does not follow from its contents: {REBUILD}")
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    agreed = (manifest.version != VERSION) == manifest.masked
    if not agreed or any((shard.mask is not None) != manifest.masked for shard in shards):
        raise DataError(
            f"{path} is damaged: its version, its kind ({manifest.kind}) and its masks do not agree: "
            f"{REBUILD}"
        )
    return manifest


def check_file(path: Path, entry: FileEntry, hashes: bool) -> None:
    """Raises DataError unless the file is there with the size (and the sha256) of its entry."""
    if not path.is_file():
        raise DataError(f"{path} is missing: {REBUILD}")
    size = path.stat().st_size
    if size != entry.bytes:
        raise DataError(f"{path} has {size} bytes, the manifest says {entry.bytes}: {REBUILD}")
    if hashes and file_sha256(path) != entry.sha256:
        raise DataError(f"{path} is damaged (its sha256 differs from the manifest's): {REBUILD}")


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
