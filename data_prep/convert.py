"""Tokens made elsewhere become a dataset folder, and a dataset's split the token file of another tool."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.corpus import TokenizerSection
from data_prep.formats.registry import FORMATS
from data_prep.formats.token_files import BLOCK_TOKENS, TokenFile, TokenFormat, Vocabulary
from data_prep.output import SplitWriter
from data_prep.tokenizer import copy_tokenizer, describe_tokenizer, find_tokenizer
from llmtrain import __version__
from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import (
    TOKENIZER,
    Counts,
    Manifest,
    SourceEntry,
    SplitEntry,
    TokenizerEntry,
    file_sha256,
    fingerprint,
    write_manifest,
)
from llmtrain.data.pointers import refuse_pointer
from llmtrain.data.shards import token_dtype
from llmtrain.data.vocabulary import token_bytes
from llmtrain.errors import DataError

SHARD_TOKENS = 1 << 29
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Conversion:
    """What was written: files, or a dataset folder."""

    written: tuple[str, ...]
    documents: int
    tokens: int
    note: str = ""

    def render(self) -> str:
        """One line of plain text."""
        where = ", ".join(self.written)
        return f"{where}: {self.documents:,} documents, {self.tokens:,} tokens{self.note}"


def import_tokens(
    name: str,
    paths: Sequence[str],
    tokenizer: str,
    output: str | Path,
    split: str = "train",
    eos: str | None = None,
    tell: Progress | None = None,
) -> Conversion:
    """Files of the format `name` become one split of a new dataset folder, documents in their order.

    Raises DataError when a file is damaged, when it holds an id that the tokenizer lacks, and when `output`
    exists. Whatever is raised, there is no output folder afterwards.
    """
    form = FORMATS[name]
    files = _found(form, name, paths)
    output = Path(output).expanduser()
    section = TokenizerSection(source=tokenizer, eos=eos)
    with _new_folder(output) as folder:
        copy_tokenizer(find_tokenizer(section), folder / TOKENIZER)
        entry = describe_tokenizer(folder / TOKENIZER, section, tokenizer)
        read = _Reading(form, files, Vocabulary(entry.vocab_size, entry.eos_id, entry.name), tell)
        written = _write_split(read, folder, split, entry)
        if not written.documents:
            raise DataError(f"{', '.join(map(str, files))}: there is no document in it")
        manifest = _manifest(output.name, name, read, {split: written}, entry)
        write_manifest(folder, manifest)
    ended = "" if read.all_ended else f"; not all end with {entry.eos}, so none is expected to"
    return Conversion((str(output),), written.documents, written.tokens, ended)


def _found(form: TokenFormat, name: str, paths: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = form.find(Path(path).expanduser())
        if not found:
            raise DataError(f"{path}: no {name} file there (formats: {', '.join(FORMATS)})")
        for part in (part for file in found for part in form.parts(file)):
            refuse_pointer(part)
        files += found
    return files


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder that becomes `output` when the block ends well, and disappears when it does not."""
    if output.exists():
        raise DataError(f"output = '{output}' exists already: choose another, nothing was touched")
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f"{output.name}.{os.getpid()}.partial")
    folder.mkdir()
    try:
        yield folder
        folder.rename(output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class _Reading:
    """Token files read one after another, every id checked before it is narrowed."""

    def __init__(
        self, form: TokenFormat, files: Sequence[Path], vocabulary: Vocabulary, tell: Progress | None
    ):
        self.form = form
        self.files = files
        self.vocabulary = vocabulary
        self.tell = tell
        self.parts = [part for file in files for part in form.parts(file)]
        self.bytes = sum(part.stat().st_size for part in self.parts if part.is_file())
        self.all_ended = True  # every document so far ends with the end mark

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        done = 0
        for file in self.files:
            for part in self.form.read(file, self.vocabulary):
                for tokens, lengths in part.blocks():
                    self._check(part, tokens)
                    ends = np.cumsum(lengths)
                    self.all_ended &= bool(
                        (lengths > 0).all() and (tokens[ends - 1] == self.vocabulary.eos_id).all()
                    )
                    yield tokens, lengths
                    done += tokens.nbytes
                    if self.tell is not None:
                        self.tell("importing", done, self.bytes)

    def _check(self, file: TokenFile, tokens: np.ndarray) -> None:
        low, high = (int(tokens.min()), int(tokens.max())) if len(tokens) else (0, 0)
        if low < 0 or high >= self.vocabulary.size:
            raise DataError(
                f"{file.path} holds token id {low if low < 0 else high}, tokenizer "
                f"{self.vocabulary.name} has ids 0 to {self.vocabulary.size - 1}: "
                "give the tokenizer that the file was made with"
            )

    def digest(self) -> str:
        """sha256 over the names and contents of all files."""
        identity = [[part.name, file_sha256(part)] for part in self.parts]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _write_split(read: _Reading, folder: Path, split: str, tokenizer: TokenizerEntry) -> SplitEntry:
    sizes = token_bytes(folder / TOKENIZER)
    writer = SplitWriter(folder, split, tokenizer.vocab_size, SHARD_TOKENS)
    for tokens, lengths in read:
        text_bytes = 0
        if sizes is not None:
            cuts = range(0, len(tokens), BLOCK_TOKENS)
            text_bytes = sum(int(sizes[tokens[cut : cut + BLOCK_TOKENS]].sum()) for cut in cuts)
        writer.add(tokens, lengths, text_bytes)
    return writer.close()


def _manifest(
    dataset: str, form: str, read: _Reading, splits: dict[str, SplitEntry], tokenizer: TokenizerEntry
) -> Manifest:
    dtype = token_dtype(tokenizer.vocab_size).name
    digest = read.digest()
    (split,) = splits.values()
    pipeline = {"import": form, "content": digest, "tokenizer": tokenizer.sha256, "eos": tokenizer.eos}
    source = SourceEntry(
        source=f"{form}: " + ", ".join(file.name for file in read.files),
        files=len(read.parts),
        bytes=read.bytes,
        digest=digest,
        documents=split.documents,
        tokens=split.tokens,
    )
    return Manifest(
        name=dataset,
        created_by=f"llmtrain {__version__}",
        fingerprint=fingerprint(splits, dtype, tokenizer.vocab_size, tokenizer.sha256, read.all_ended),
        dtype="uint16" if dtype == "uint16" else "int32",
        vocab_size=tokenizer.vocab_size,
        append_eos=read.all_ended,
        tokenizer=tokenizer,
        splits=splits,
        sources=(source,),
        counts=Counts(documents_in=split.documents, documents_out=split.documents, rejected={}, examples={}),
        pipeline=pipeline,
        pipeline_sha256=hashlib.sha256(json.dumps(pipeline, sort_keys=True).encode()).hexdigest(),
    )


def export_tokens(
    folder: str | Path,
    name: str,
    output: str | Path,
    split: str = "train",
    tell: Progress | None = None,
) -> Conversion:
    """One split of a dataset becomes one token file of the format `name`.

    Raises DataError when the dataset is damaged, when it has what the format has no place for, and when
    there is such a file already. Whatever is raised, nothing new lies there afterwards.
    """
    dataset = open_dataset(folder, split, hashes=True)
    manifest = dataset.manifest
    if manifest.masked:
        raise DataError(f"{folder} says which tokens are trained on, for which {name} has no place")
    form = FORMATS[name]
    output = form.named(Path(output).expanduser())
    if output.is_dir() or form.find(output):
        raise DataError(f"{output} exists already: give the name of a new file")
    output.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = manifest.tokenizer
    writer = form.write(output, Vocabulary(manifest.vocab_size, tokenizer.eos_id, tokenizer.name))
    done = 0
    try:
        for shard in dataset.shards:
            for tokens, lengths in TokenFile(shard.prefix, shard.tokens, shard.ends).blocks():
                writer.add(tokens, lengths)
                done += len(tokens)
                if tell is not None:
                    tell("exporting", done, dataset.tokens)
        written = writer.close()
    except BaseException:
        writer.discard()
        raise
    entry = dataset.entry
    return Conversion(tuple(map(str, written)), entry.documents, entry.tokens)
