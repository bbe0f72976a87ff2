"""The corpus file as one typed value: `CorpusConfig`, frozen, every unknown key refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_prep.chat.settings import FIELDS, SamplesSection
from data_prep.readers.columns import IfThere
from data_prep.steps.registry import StepSection
from llmtrain.config.schema import Number, PathText, Section
from llmtrain.data.manifest import Kind
from llmtrain.errors import nearest

Format = Literal["auto", "text", "html", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "tar", "warc"]
DEFAULT_EOS = "<|endoftext|>"  # of a tokenizer trained here
Share = Annotated[Number, Field(gt=0, lt=1)]


class Limit(Section):
    """At most so many documents of a source are written, or bytes of text, or tokens: one of them."""

    documents: int | None = Field(default=None, ge=1)
    bytes: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_of(self) -> Limit:
        if sum(most is not None for most in (self.documents, self.bytes, self.tokens)) != 1:
            raise ValueError("give exactly one of limit.documents, limit.bytes and limit.tokens")
        return self

    @property
    def unit(self) -> Literal["documents", "bytes", "tokens"]:
        """What is counted."""
        return "documents" if self.documents else "bytes" if self.bytes else "tokens"

    @property
    def most(self) -> int:
        """How many there may be."""
        return self.documents or self.bytes or self.tokens or 0


class SourceSection(Section):
    """Where text comes from: exactly one of `path`, `hub` and `stdlib`.

    path       a file, a folder (every file below it), or a glob with `*`, `?`, `[…]` and `**`
    hub        a dataset on the Hub (or a local folder that `datasets` reads), read while it is fetched, or
               with `streaming: false` fetched first
    split      of a dataset, the split that is read (of the Hub's, train unless it says another); of several,
               `train+validation`. Files of several splits in a folder are refused until it says which
    subset     of a Hub dataset, there or fetched, its configuration
    stdlib     the source text of the Python standard library of the running interpreter
    format     auto goes by the suffix: .jsonl, .jsonlines, .ndjson, .json, .csv, .tsv, .parquet, .arrow,
               .html, .tar (WebDataset), .warc, .wet; anything else is text; .gz, .zst, .bz2 and .xz on top
    field      which field is the text, `body` or `page.body`; of several, the texts are joined by blank
               lines; of fine-tuning data, what its fields are called: {messages: conversations}
    meta       fields that go along for the steps, by their own names or as `new name: field`
    separator  text only: what ends a document; without it a file is a document
    weight     how often a document of this source is written to train: 2 twice, 0.5 about one of two
    limit      read at most so many records; or {documents: N}, {bytes: N}, {tokens: N}: write at most so
               many, in the order of the source (copies for a weight above 1 come on top)
    """

    path: str | None = None
    hub: str | None = None
    stdlib: bool = False
    exclude: tuple[str, ...] = ()
    format: Format = "auto"
    field: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] = "text"
    meta: tuple[str, ...] | dict[str, str] = ()
    separator: str | None = Field(default=None, min_length=1)
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = True
    weight: Number = Field(default=1.0, gt=0)
    limit: Annotated[int, Field(ge=1)] | Limit | None = None

    @model_validator(mode="after")
    def _one_of(self) -> SourceSection:
        if sum((self.path is not None, self.hub is not None, self.stdlib)) != 1:
            raise ValueError("give exactly one of path, hub and stdlib")
        unknown = () if self.hub is not None else ("revision", "streaming", "subset", "split")
        for name in unknown if self.stdlib else unknown[:2]:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for a dataset on the Hub, and there is no hub: leave it out")
        if not self.field or "" in self.columns:
            raise ValueError("a name in field or meta is empty")
        return self

    @property
    def named_meta(self) -> dict[str, str]:
        """Name in a document's `meta` → the field it is taken from."""
        return self.meta if isinstance(self.meta, dict) else {name: name for name in self.meta}

    @property
    def columns(self) -> tuple[str, ...]:
        """All fields that are read."""
        if isinstance(self.field, dict):
            return tuple(_columns_of_fields(self.field))
        texts = (self.field,) if isinstance(self.field, str) else self.field
        return (*texts, *self.named_meta.values())

    @property
    def limit_written(self) -> Limit | None:
        """The limit, if it is one on what is written."""
        return self.limit if isinstance(self.limit, Limit) else None

    @property
    def label(self) -> str:
        """The source as shown to people."""
        if self.stdlib:
            return "Python standard library"
        if self.path is not None:
            return self.path + "".join(f" ({part})" for part in (self.subset, self.split) if part)
        return "/".join(part for part in (self.hub, self.subset, self.split or "train") if part)


def _columns_of_fields(names: Mapping[str, str | tuple[str, ...]]) -> Iterator[str]:
    """The columns of fine-tuning data; of several that make up a field, the first must be there."""
    fields = next((fields for fields in FIELDS.values() if fields.keys() == names.keys()), {})
    for field, columns in names.items():
        first, *others = (columns,) if isinstance(columns, str) else columns
        yield first if fields.get(field, True) else IfThere(first)
        yield from map(IfThere, others)


class TokenizerSection(Section):
    """`train` one on the train part of this corpus, or take that of `source` (a Hub id or a folder)."""

    train: Literal["bpe"] | None = None
    vocab_size: int = Field(default=32000, ge=300)
    sample_bytes: int = Field(default=10_000_000, ge=1000)
    source: PathText | None = None
    revision: str | None = None
    eos: str | None = None  # default: what the tokenizer itself names, or <|endoftext|> when trained here
    bos: str | None = None  # for prepend_bos; default: what the tokenizer itself names
    special: tuple[str, ...] = ()  # further tokens of a tokenizer trained here, never found in text
    engine: Literal["auto", "tokenizers", "tiktoken", "gigatoken"] = "auto"  # see `data_prep.engines`

    @model_validator(mode="after")
    def _one_of(self) -> TokenizerSection:
        if (self.train is None) == (self.source is None):
            raise ValueError("give exactly one of tokenizer.train and tokenizer.source")
        if self.special and self.train is None:
            raise ValueError("tokenizer.special is for a tokenizer trained here: leave it out, or use train")
        taken = [self.eos or DEFAULT_EOS, *self.special]
        if len(set(taken)) < len(taken) or "" in taken:
            raise ValueError("tokenizer.special names a token twice, an empty one, or the end of a document")
        return self


class CorpusConfig(Section):
    """Everything that decides a dataset, and `workers`, which decides nothing but the time it takes.

    kind     text, or fine-tuning data: chat, prompt_completion, preference (see `data_prep.chat.records`)
    samples  how records of fine-tuning data become samples
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: str | None = None  # default: data/NAME
    kind: Kind = "text"
    samples: SamplesSection = SamplesSection()
    sources: tuple[SourceSection, ...] = Field(min_length=1)
    tokenizer: TokenizerSection
    steps: tuple[StepSection, ...] = ()
    splits: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Share] = {"valid": 0.01}
    split_by: Literal["document", "file"] = "document"
    append_eos: bool = True
    prepend_bos: bool = False
    strict: bool = False
    max_reject_fraction: Annotated[Number, Field(ge=0, le=1)] | None = None  # of bad input; see most_rejected
    keep_rejected: bool = False  # what is left out is written to OUTPUT.rejected, with its text
    max_document_bytes: int = Field(default=2**24, ge=1)
    shard_tokens: int = Field(default=2**29, ge=1)
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _name_all_fields(cls, content: Any) -> Any:
        """Gives the sources of fine-tuning data the names of all fields, their own where they say nothing."""
        fields = FIELDS.get(content.get("kind", "text")) if isinstance(content, dict) else None
        if not fields or not isinstance(content.get("sources"), list | tuple):
            return content
        sources = [dict(source) if isinstance(source, dict) else source for source in content["sources"]]
        for source in sources:
            if isinstance(source, dict) and isinstance(source.get("field", {}), dict):
                named = {name: name for name in fields} | source.get("field", {})
                if named.get("prompt") == "instruction" and "input" not in named.values():
                    named["prompt"] = ("instruction", "input")  # Alpaca's prompts are in two parts
                source["field"] = named
        return {**content, "sources": sources}

    @model_validator(mode="after")
    def _fits_its_kind(self) -> CorpusConfig:
        if self.kind == "text":
            if any(isinstance(source.field, dict) for source in self.sources):
                raise ValueError(
                    "field maps the fields of fine-tuning data, and kind is text: name the field"
                )
            if self.samples != SamplesSection():
                raise ValueError("samples is for fine-tuning data, and kind is text: leave it out")
            return self
        if self.kind == "chat" and self.samples.apply_chat_template:
            raise ValueError(
                "samples.apply_chat_template is for plain prompts, and kind is chat: leave it out"
            )
        if self.kind == "preference" and self.samples.too_long == "truncate_left":
            raise ValueError(
                "samples.too_long = truncate_left would give a pair two prompts: drop, or truncate"
            )
        fields = FIELDS[self.kind]
        for source in self.sources:
            if not isinstance(source.field, dict):
                raise ValueError(
                    f"with kind: {self.kind} field maps {', '.join(fields)} to your columns' names"
                )
            for name in source.field:
                if name not in fields:
                    hint = nearest(name, fields)
                    raise ValueError(f"kind: {self.kind} has no field '{name}' ({', '.join(fields)}) {hint}")
            if source.meta:
                raise ValueError(
                    f"meta goes along for steps, which kind: {self.kind} has none of: leave it out"
                )
        if self.prepend_bos:
            raise ValueError(f"with kind: {self.kind} the template begins a document: leave prepend_bos out")
        if self.steps:
            raise ValueError(f"steps work on text, and kind is {self.kind}: leave them out")
        if self.tokenizer.source is None:
            raise ValueError(f"kind: {self.kind} needs the tokenizer of the model to tune: tokenizer.source")
        return self

    @model_validator(mode="after")
    def _leaves_a_train_part(self) -> CorpusConfig:
        if "train" in self.splits:
            raise ValueError("splits names the parts beside train, which gets the rest: leave train out")
        if sum(self.splits.values()) >= 1:
            raise ValueError("splits add up to 1 or more: nothing is left for train")
        return self

    @model_validator(mode="after")
    def _marks_a_start(self) -> CorpusConfig:
        if self.tokenizer.bos is not None and not self.prepend_bos:
            raise ValueError("tokenizer.bos begins documents only with prepend_bos: true, which is not set")
        return self

    @property
    def all_end_with_eos(self) -> bool:
        """True when every document ends with the end mark; a conversation ends as its template ends it."""
        return self.append_eos and self.kind == "text"

    @property
    def most_rejected(self) -> float | None:
        """The share of bad input above which a build ends; None: any. A tenth of fine-tuning data unless
        given: there one name that nobody knows takes every record that has it."""
        if self.max_reject_fraction is None and self.kind != "text":
            return 0.1
        return self.max_reject_fraction

    @property
    def folder(self) -> str:
        """The dataset folder."""
        return self.output or f"data/{self.name}"
