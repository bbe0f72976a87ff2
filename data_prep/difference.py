"""How two datasets differ: what made them, what they hold, and which documents only one of them has."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_prep.steps.disk_sort import SortedRuns
from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import Manifest, read_manifest
from llmtrain.data.shards import TRAINED

MOST_LINES = 8  # of one kind that are shown
EXAMPLES = 3
_BLOCK = 1 << 16  # documents hashed before they are sorted away
_RECORD = np.dtype(
    [("key", "<u8"), ("rest", "<u8"), ("side", "u1"), ("split", "<u2"), ("shard", "<u4"), ("number", "<u4")]
)


@dataclass(frozen=True)
class Documents:
    """Documents by their tokens (and masks), a repeated one as often as it is there."""

    only_a: int
    only_b: int
    both: int
    moved: int  # of `both`, those that stand in different splits
    examples_a: tuple[str, ...]  # SHARD:number, from 0
    examples_b: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """Of two dataset folders; `documents` is None when their tokenizers differ: nothing can be compared.

    same       the same tokens in the same order
    made       setting → (A, B), of what made them
    sources    likewise, of what was read
    tokenizer  likewise
    amounts    name → (A, B): documents, tokens and bytes, of splits and of all
    left_out   reason → (documents in A, in B), where they differ
    """

    a: str
    b: str
    same: bool
    made: dict[str, tuple[Any, Any]]
    sources: dict[str, tuple[Any, Any]]
    tokenizer: dict[str, tuple[Any, Any]]
    amounts: dict[str, tuple[int, int]]
    left_out: dict[str, tuple[int, int]]
    documents: Documents | None

    def as_json(self) -> str:
        """For programs."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """One screen of plain text, without a final line end."""
        lines = [f"A  {self.a}", f"B  {self.b}"]
        lines.append("the same tokens in the same order" if self.same else "they differ")
        for title, pairs in (("made by", self.made), ("read", self.sources), ("tokenizer", self.tokenizer)):
            lines += _listed(title, pairs)
        rows = [(name, *pair) for name, pair in self.amounts.items()]
        apart = sorted(self.left_out.items(), key=lambda item: (-abs(item[1][0] - item[1][1]), item[0]))
        rows += [(f"left out: {reason}", *pair) for reason, pair in apart[:MOST_LINES]]
        wide = max(len(name) for name, *_ in rows)
        lines += ["", f"{'':{wide}}{'A':>18}{'B':>18}{'B - A':>16}"]
        for name, ours, theirs in rows:
            change = f"{theirs - ours:+,}" if theirs != ours else "="
            lines.append(f"{name:{wide}}{ours:>18,}{theirs:>18,}{change:>16}")
        if len(apart) > MOST_LINES:
            lines.append(f"and {len(apart) - MOST_LINES} more reasons")
        return "\n".join([*lines, "", *self._about_documents()])

    def _about_documents(self) -> Iterator[str]:
        found = self.documents
        if found is None:
            yield "documents are not compared: they are tokenized differently"
            return
        for name, count, examples in (
            ("A", found.only_a, found.examples_a),
            ("B", found.only_b, found.examples_b),
        ):
            such = f", such as {', '.join(examples)}" if examples else ""
            yield f"documents only in {name}: {count:,}{such}"
        moved = f", {found.moved:,} of them in another split" if found.moved else ""
        yield f"documents in both: {found.both:,}{moved}"


def difference(
    a: str | Path, b: str | Path, progress: Callable[[str, int, int], None] | None = None
) -> Difference:
    """Compares two dataset folders. Raises DataError when one is none. Memory is bounded, the disk is not."""
    ours, theirs = read_manifest(a), read_manifest(b)
    comparable = (ours.tokenizer.sha256, ours.kind) == (theirs.tokenizer.sha256, theirs.kind)
    same = ours.fingerprint == theirs.fingerprint
    counts = ours.counts.rejected, theirs.counts.rejected
    reasons = sorted({*counts[0], *counts[1]})
    left_out = {reason: (counts[0].get(reason, 0), counts[1].get(reason, 0)) for reason in reasons}
    return Difference(
        str(a),
        str(b),
        same,
        _apart(_settings(ours), _settings(theirs)),
        _apart(_sources(ours), _sources(theirs)),
        _apart(_tokenizer(ours), _tokenizer(theirs)),
        _amounts(ours, theirs),
        {reason: pair for reason, pair in left_out.items() if pair[0] != pair[1]},
        _documents((Path(a), Path(b)), (ours, theirs), progress or _silent) if comparable else None,
    )


def _silent(what: str, done: int, total: int) -> None:
    """Progress nobody follows."""


def _listed(title: str, pairs: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    """A few lines about settings that differ."""
    if not pairs:
        return
    yield ""
    for name, (ours, theirs) in list(pairs.items())[:MOST_LINES]:
        yield f"{title}  {name}: {_short(ours)} → {_short(theirs)}"
    if len(pairs) > MOST_LINES:
        yield f"{title}  and {len(pairs) - MOST_LINES} more"


def _short(value: Any) -> str:
    text = (
        "—" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
    return text if len(text) <= 40 else text[:39] + "…"


def _apart(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*ours, *theirs])
    return {name: (ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)}


def _settings(manifest: Manifest) -> dict[str, Any]:
    """What made a dataset, flat; a step by its name, the second of a name as NAME#2."""
    content = dict(manifest.pipeline) | {"kind": manifest.kind}
    steps: dict[str, Any] = {}
    for step in content.pop("steps", ()):
        for name, settings in step.items():
            count = 1 + sum(known.partition("#")[0] == name for known in steps)
            steps[name if count == 1 else f"{name}#{count}"] = settings or {}
    for key in ("sources", "tokenizer"):  # told on their own
        content.pop(key, None)
    flat = dict(_flat("", content))
    for name, settings in steps.items():
        flat[f"steps.{name}"] = "yes"
        flat |= dict(_flat(f"steps.{name}", settings))
    return flat | {"order of steps": ", ".join(steps)}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value


def _sources(manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, source in enumerate(manifest.sources):
        given = manifest.pipeline.get("sources", ())
        settings = given[number] if number < len(given) else {}
        for key, value in _flat(f"source {number}", {k: v for k, v in settings.items() if k != "content"}):
            found[key] = value
        found |= {f"source {number}": source.source, f"source {number} content": source.digest[:12]}
        found |= {f"source {number} documents": source.documents, f"source {number} tokens": source.tokens}
    return found


def _tokenizer(manifest: Manifest) -> dict[str, Any]:
    entry = manifest.tokenizer
    return {
        "name": entry.name,
        "content": entry.sha256[:12],
        "vocabulary": entry.vocab_size,
        "eos": entry.eos,
    }


def _amounts(ours: Manifest, theirs: Manifest) -> dict[str, tuple[int, int]]:
    found = {
        "documents in": (ours.counts.documents_in, theirs.counts.documents_in),
        "documents out": (ours.counts.documents_out, theirs.counts.documents_out),
    }
    for name in dict.fromkeys([*ours.splits, *theirs.splits]):
        for key in ("documents", "tokens", "text_bytes"):
            pair = [getattr(each.splits.get(name), key, 0) for each in (ours, theirs)]
            found[f"{name} {key.replace('_', ' ')}"] = (pair[0], pair[1])
    return found


def _documents(
    folders: Sequence[Path], manifests: Sequence[Manifest], tell: Callable[[str, int, int], None]
) -> Documents:
    """Which documents are where: hashes of both sides, sorted on disk, are read beside each other."""
    names = list(dict.fromkeys(split for manifest in manifests for split in manifest.splits))
    total = sum(split.documents for manifest in manifests for split in manifest.splits.values())
    counts = np.zeros(4, np.int64)
    examples: list[list[tuple]] = [[], []]
    with tempfile.TemporaryDirectory() as place:
        runs = SortedRuns(Path(place) / "hashes", _RECORD)
        for side, (folder, manifest) in enumerate(zip(folders, manifests, strict=True)):
            for split in manifest.splits:
                for block in _hashed(folder, split, side, names.index(split)):
                    runs.add(block)
                    tell("comparing documents", runs.records, total)
        for group in _whole_groups(runs.merged()):
            group = group[np.lexsort((group["rest"], group["key"]))]
            new = (np.diff(group["key"]) != 0) | (np.diff(group["rest"]) != 0)
            of = np.concatenate([[0], np.cumsum(new)])
            there = np.zeros((int(of[-1]) + 1, 2, len(names)), np.int64)
            np.add.at(there, (of, group["side"], group["split"]), 1)
            a, b = there.sum(axis=2).T
            both = np.minimum(a, b)
            stay = there.min(axis=1).sum(axis=1)
            counts += [(a - both).sum(), (b - both).sum(), both.sum(), (both - stay).sum()]
            for side, alone in ((0, b == 0), (1, a == 0)):
                found = group[alone[of] & (group["side"] == side)]
                places = found[["split", "shard", "number"]]
                examples[side] = sorted([*examples[side], *np.sort(places)[:EXAMPLES].tolist()])[:EXAMPLES]
    shown = [
        tuple(f"{names[split]}/{shard:05d}:{number}" for split, shard, number in each) for each in examples
    ]
    only_a, only_b, both, moved = counts.tolist()
    return Documents(only_a, only_b, both, moved, *shown)


def _hashed(folder: Path, split: str, side: int, number: int) -> Iterator[np.ndarray]:
    """The 128-bit hash of every document's tokens, and of what of them is trained on."""
    for place, shard in enumerate(open_dataset(folder, split).shards):
        starts = np.concatenate([[0], shard.ends[:-1]]).tolist()
        ends = shard.ends.tolist()
        for first in range(0, len(ends), _BLOCK):
            upto = min(first + _BLOCK, len(ends))
            digests = []
            for start, end in zip(starts[first:upto], ends[first:upto], strict=True):
                digest = xxhash.xxh3_128(shard.tokens[start:end].astype("<i4").tobytes())
                if shard.mask is not None:
                    digest.update((shard.mask[start:end] & TRAINED).tobytes())
                digests.append(digest.digest())
            block = np.zeros(upto - first, _RECORD)
            halves = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2)
            block["key"], block["rest"] = halves[:, 0], halves[:, 1]
            block["side"], block["split"], block["shard"] = side, number, place
            block["number"] = np.arange(first, upto)
            yield block


def _whole_groups(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks again, cut so that records of one key are in one."""
    held = np.zeros(0, _RECORD)
    for block in blocks:
        held = np.concatenate([held, block])
        cut = int(np.searchsorted(held["key"], held["key"][-1]))
        if cut:
            yield held[:cut]
            held = held[cut:]
    if len(held):
        yield held
