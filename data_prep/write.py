"""The results of all chunks, in the order of the corpus, as one dataset: shards, counts, the rejected."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_prep.documents import Tally
from data_prep.output import SplitWriter
from data_prep.passes import Progress
from data_prep.results import DOCUMENT, REJECTED, Result, read_result
from data_prep.splits import TRAIN, refuse_empty_split
from data_prep.statistics import Statistics
from data_prep.work import Work
from llmtrain import __version__
from llmtrain.data.manifest import (
    MASKED_VERSION,
    VERSION,
    Counts,
    Manifest,
    SourceEntry,
    TokenizerEntry,
    fingerprint,
)
from llmtrain.data.shards import token_dtype
from llmtrain.errors import DataError

BLOCK_TOKENS = 1 << 22  # held in memory at a time
BEYOND = "beyond the limit of its source"


@dataclass
class Written:
    """What came of the sources; `seconds` by pass and step, over all workers."""

    statistics: Statistics
    tally: Tally = field(default_factory=Tally)
    seconds: dict[str, float] = field(default_factory=dict)
    read_bytes: int = 0  # of the sources, as they lie

    def spend(self, number: int, result: Result) -> None:
        """A chunk took so long in a pass."""
        for what, seconds in result.seconds.items():
            key = f"pass {number}: {what}"
            self.seconds[key] = self.seconds.get(key, 0.0) + seconds


@dataclass(frozen=True)
class _Part:
    """A chunk whose first `most` documents are written."""

    number: int
    source: int
    most: int
    cut: bool  # it has more


def assemble(work: Work, tokenizer: TokenizerEntry, folder: Path, tell: Progress) -> tuple[Manifest, Written]:
    """Writes all splits below `folder`; the manifest that vouches for them lacks only its pipeline.

    Raises DataError when a split comes out empty, and OSError before a disk is filled in vain.
    """
    corpus, last = work.plan.corpus, work.plan.passes - 1
    dtype = token_dtype(tokenizer.vocab_size)
    facts = tokenizer.vocab_size, corpus.shard_tokens, corpus.kind != "text"
    writers = {split: SplitWriter(folder, split, *facts) for split in (TRAIN, *corpus.splits)}
    parts = list(_parts(work))
    written = _tallied(work, parts)
    if written.tally.documents_out:  # else there is more to say
        written.tally.refuse_above(corpus.most_rejected)
    total = sum(_bytes(work, part) for part in parts) * _most_turns(work)
    done = 0
    for turn, part in _in_order(work, parts):
        result = work.result(last, part.number)
        languages = read_result(result).languages
        for split in (TRAIN, *corpus.splits) if turn == 0 else (TRAIN,):
            for tokens, rows, mask in _blocks(result, split, dtype):
                done += tokens.nbytes
                chosen = _choice(rows, part, turn, corpus.sources[part.source].weight)
                if not chosen.all():
                    which = np.repeat(chosen, rows["tokens"])
                    tokens, rows, mask = tokens[which], rows[chosen], None if mask is None else mask[which]
                writers[split].add(tokens, rows["tokens"], int(rows["bytes"].sum()), mask)
                written.statistics.take(part.source, rows, languages, turn)
                written.tally.repeats += len(np.unique(rows["place"])) if turn else 0
                tell("writing shards", done, max(total, done), sum(written.tally.rejected.values()))
    splits = {split: writer.close() for split, writer in writers.items()}
    _refuse_empty(written.tally, {name: entry.documents for name, entry in splits.items()}, corpus.name)
    assert dtype.name in ("uint16", "int32"), dtype
    manifest = Manifest(
        name=corpus.name,
        created_by=f"llmtrain {__version__}",
        version=VERSION if corpus.kind == "text" else MASKED_VERSION,
        kind=corpus.kind,
        fingerprint=fingerprint(
            splits, dtype.name, tokenizer.vocab_size, tokenizer.sha256, corpus.all_end_with_eos, corpus.kind
        ),
        dtype="uint16" if dtype.name == "uint16" else "int32",
        vocab_size=tokenizer.vocab_size,
        append_eos=corpus.all_end_with_eos,
        tokenizer=tokenizer,
        splits=splits,
        sources=_sources(work, written),
        counts=_counts(written.tally),
        pipeline={},
        pipeline_sha256="",
    )
    return manifest, written


def bytes_to_write(work: Work) -> int:
    """What the shards will take, of the chunks that are done so far."""
    last = work.plan.passes - 1
    names = [work.result(last, chunk) for chunk in work.done(last)]
    return sum(path.stat().st_size for name in names for path in name.glob("*.tokens")) * _most_turns(work)


def _most_turns(work: Work) -> int:
    return max(math.ceil(section.weight) for section in work.plan.corpus.sources)


def _parts(work: Work) -> Iterator[_Part]:
    """The chunks to be written, each up to where a limit ends its source."""
    last = work.plan.passes - 1
    used = [0] * len(work.plan.corpus.sources)
    ended: set[int] = set()
    for chunk in work.chunks:
        limit = work.plan.corpus.sources[chunk.source].limit_written
        if chunk.source in ended:
            continue
        going_on = read_result(work.result(last, chunk.number)).going_on
        if limit is None:
            yield _Part(chunk.number, chunk.source, going_on, False)
            continue
        files = sorted(work.result(last, chunk.number).glob("*.documents"))
        rows = np.concatenate([np.zeros(0, DOCUMENT), *map(_rows, files)])
        each = np.ones(going_on, np.int64)
        if limit.unit != "documents":
            each = np.bincount(rows["place"], rows[limit.unit], going_on).astype(np.int64)
        upto = used[chunk.source] + np.cumsum(each)
        most = int(np.searchsorted(upto, limit.most, side="right"))
        used[chunk.source] = int(upto[-1]) if len(upto) else used[chunk.source]
        yield _Part(chunk.number, chunk.source, most, most < going_on)
        if used[chunk.source] >= limit.most:
            ended.add(chunk.source)


def _rows(path: Path) -> np.ndarray:
    return np.fromfile(path, DOCUMENT) if path.exists() else np.zeros(0, DOCUMENT)


def _bytes(work: Work, part: _Part) -> int:
    result = work.result(work.plan.passes - 1, part.number)
    return sum(path.stat().st_size for path in result.glob("*.tokens"))


def _tallied(work: Work, parts: list[_Part]) -> Written:
    """The counts of all passes over the chunks that are written, added up in the order of the corpus."""
    written = Written(Statistics.of(len(work.plan.sources)))
    for number in range(work.plan.passes):
        for part in parts:
            result = read_result(work.result(number, part.number))
            if number:
                before = read_result(work.result(number - 1, part.number)).going_on
                assert result.coming_in == before, (
                    f"chunk {part.number}: {before} spilled, {result.coming_in} read"
                )
            written.tally.add(_placed(result.tally, work, part.source))
            written.read_bytes += result.read_bytes
            written.statistics.hear(part.source, result)
            written.spend(number, result)
            if part.cut and number == work.plan.passes - 1:
                beyond = result.going_on - part.most
                written.tally.documents_out -= beyond
                written.tally.rejected[BEYOND] = written.tally.rejected.get(BEYOND, 0) + beyond
                written.tally.examples.setdefault(BEYOND, [])
    return written


def _placed(tally: Tally, work: Work, source: int) -> Tally:
    """The tally with examples that name their source, where there are several."""
    sections = work.plan.corpus.sources
    if len(sections) == 1:
        return tally
    examples = {
        reason: [f"{where} of {sections[source].label}" for where in kept]
        for reason, kept in tally.examples.items()
    }
    return replace(tally, examples=examples)


def _in_order(work: Work, parts: list[_Part]) -> Iterator[tuple[int, _Part]]:
    """Every chunk, then again what weights above 1 repeat."""
    for turn in range(_most_turns(work)):
        for part in parts:
            if turn < math.ceil(work.plan.corpus.sources[part.source].weight):
                yield turn, part


def _blocks(
    result: Path, split: str, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """The tokens, documents and mask of a chunk's split, about BLOCK_TOKENS at a time."""
    rows = _rows(result / f"{split}.documents")
    tokens = np.zeros(0, dtype)
    if rows["tokens"].any():
        tokens = np.memmap(result / f"{split}.tokens", dtype, mode="r")
    masks = result / f"{split}.mask"
    mask = np.memmap(masks, np.uint8, mode="r") if masks.exists() else None
    ends = np.cumsum(rows["tokens"])
    done = start = 0
    while done < len(rows):
        upto = max(int(np.searchsorted(ends, start + BLOCK_TOKENS, side="right")), done + 1)
        while upto < len(rows) and rows["place"][upto] == rows["place"][upto - 1]:
            upto += 1  # what is of one record stays together
        part = slice(start, int(ends[upto - 1]))
        yield np.asarray(tokens[part]), rows[done:upto], None if mask is None else np.asarray(mask[part])
        done, start = upto, int(ends[upto - 1])


def _choice(rows: np.ndarray, part: _Part, turn: int, weight: float) -> np.ndarray:
    """Which of these documents are written in this turn."""
    chosen = rows["place"] < part.most
    if turn and weight - turn < 1:
        chosen = chosen & (rows["last_copy"] == 1)
    return chosen


def _sources(work: Work, written: Written) -> tuple[SourceEntry, ...]:
    return tuple(
        SourceEntry(
            source=section.label,
            files=settled.files,
            bytes=settled.bytes,
            digest=settled.digest,
            documents=flow.documents,
            tokens=flow.tokens,
        )
        for section, settled, flow in zip(
            work.plan.corpus.sources, work.plan.sources, written.statistics.sources, strict=True
        )
    )


def _counts(tally: Tally) -> Counts:
    left_out = sum(tally.rejected.values())
    assert tally.documents_in == tally.documents_out + left_out, f"documents were lost: {tally}"
    return Counts(
        documents_in=tally.documents_in,
        documents_out=tally.documents_out,
        rejected=dict(sorted(tally.rejected.items())),
        examples={reason: tuple(kept) for reason, kept in sorted(tally.examples.items())},
        repeats=tally.repeats,
        found=dict(sorted(tally.found.items())),
    )


def _refuse_empty(tally: Tally, documents: dict[str, int], name: str) -> None:
    """Raises DataError when there is no document at all, or none in one of the splits."""
    if tally.documents_out == 0:
        reasons = "; ".join(
            f"{count} {reason}" + "".join(f" (such as {where})" for where in tally.examples[reason][:1])
            for reason, count in tally.rejected.items()
        )
        raise DataError(
            f"corpus '{name}' is empty: {tally.documents_in} documents in, none out. {reasons}".strip()
        )
    refuse_empty_split(documents, "documents", name)


def write_rejected(work: Work, folder: Path) -> None:
    """All that was left out, in the order of the corpus and pass by pass, as one file of JSON lines."""
    folder.mkdir()
    with open(folder / REJECTED, "wb") as file:
        parts = list(_parts(work))
        for number in range(work.plan.passes):
            for part in parts:
                path = work.result(number, part.number) / REJECTED
                if path.exists():
                    with open(path, "rb") as rows:
                        shutil.copyfileobj(rows, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
