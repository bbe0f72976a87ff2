"""`report.json` and `report.html` in a dataset folder: what its build did to the text.

{"format": "llmtrain-data-report", "content": {…}, "notes": […], "times": {…}}

`content` follows from the corpus alone, whoever built it; `notes` and `times` tell of this one build. None is
a part of the dataset: the fingerprint does not cover them, and `verify` does not look at them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.corpus import CorpusConfig
from data_prep.report_page import page
from data_prep.results import BY_WEIGHT
from data_prep.write import BEYOND, Written
from llmtrain.data.manifest import Counts, Manifest

REPORT, PAGE = "report.json", "report.html"
FORMAT = "llmtrain-data-report"
READING, LIMITS, SAMPLES, OWN = "reading", "weights and limits", "samples", "python"


def write_report(
    folder: Path, corpus: CorpusConfig, manifest: Manifest, written: Written, built: Mapping[str, Any]
) -> None:
    """Writes both files; `built` is the content of `build.json`."""
    report = {
        "format": FORMAT,
        "content": _content(corpus, manifest, written, built["corpus_wide"]),
        "notes": built["notes"],
        "times": _times(built, manifest),
    }
    # a file's name may hold what is no Unicode
    for name, text in (
        (REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n"),
        (PAGE, page(report)),
    ):
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")


def _content(
    corpus: CorpusConfig, manifest: Manifest, written: Written, decided: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    counts, statistics = manifest.counts, written.statistics
    text_in = sum(flow.bytes_in for flow in statistics.sources)
    splits = {
        name: {
            "documents": split.documents,
            "bytes": split.text_bytes,
            "tokens": split.tokens,
            "bytes_per_token": _ratio(split.text_bytes, split.tokens),
        }
        | ({} if split.trained_tokens is None else {"trained_tokens": split.trained_tokens})
        for name, split in manifest.splits.items()
    }
    text, tokens = (sum(split[key] for split in splits.values()) for key in ("bytes", "tokens"))
    _, text_out, tokens_out = sum(statistics.languages.values(), np.zeros(3, np.int64)).tolist()
    return {
        "name": manifest.name,
        "kind": manifest.kind,
        "created_by": manifest.created_by,
        "fingerprint": manifest.fingerprint,
        "documents": {"in": counts.documents_in, "out": counts.documents_out, "copies": counts.repeats},
        "bytes": {"in": text_in, "out": text_out, "with_copies": text},
        # what is left out is never tokenized, so tokens in are what its bytes would give
        "tokens": {
            "in_estimate": round(text_in * tokens_out / text_out) if text_out else 0,
            "out": tokens_out,
            "with_copies": tokens,
        },
        "steps": _steps(corpus, counts, set(written.tally.bad)),
        "found": dict(counts.found),
        "personal_data": _named(counts.found, "pii: ") | _named(counts.found, "presidio: "),
        "duplicates": [_duplicates(each["step"], each["found"]) for each in decided],
        "lengths": _lengths(statistics.lengths, statistics.longest),
        "languages": [
            {"language": name} | dict(zip(("documents", "bytes", "tokens"), amounts.tolist(), strict=True))
            for name, amounts in sorted(
                statistics.languages.items(), key=lambda item: (-int(item[1][0]), item[0])
            )
        ],
        "sources": [
            {"source": section.label, "weight": section.weight}
            | {"documents_in": flow.documents_in, "bytes_in": flow.bytes_in}
            | {"documents": flow.documents, "bytes": flow.bytes, "tokens": flow.tokens}
            | {
                "share_of_tokens": _ratio(flow.tokens, tokens),
                "bytes_per_token": _ratio(flow.bytes, flow.tokens),
            }
            for section, flow in zip(corpus.sources, statistics.sources, strict=True)
        ],
        "splits": splits,
        "tokenizer": manifest.tokenizer.model_dump(mode="json", exclude={"special"})
        | {"dtype": manifest.dtype},
    }


def _steps(corpus: CorpusConfig, counts: Counts, bad: set[str]) -> list[dict[str, Any]]:
    """How many documents came to each step in its turn, and what it left out, by reason.

    `settings` are those that the file gives, for each time that it names the step.
    """
    own = SAMPLES if corpus.kind != "text" else OWN
    given = [each for section in corpus.steps for each in section.named.items()]
    names = list(dict.fromkeys(name for name, _ in given))
    reasons: dict[str, list[str]] = {name: [] for name in (READING, *names, own, LIMITS)}
    for reason in sorted(counts.rejected, key=lambda reason: (-counts.rejected[reason], reason)):
        prefix = reason.partition(": ")[0]
        if reason in (BY_WEIGHT, BEYOND):
            step = LIMITS
        elif reason in bad:
            step = READING
        else:
            step = prefix if prefix in names else own
        reasons[step].append(reason)
    steps, left = [], counts.documents_in
    for step, found in reasons.items():
        if not found and step not in names:
            continue
        dropped = sum(counts.rejected[reason] for reason in found)
        rows = [
            {
                "reason": reason,
                "documents": counts.rejected[reason],
                "examples": counts.examples.get(reason, ()),
            }
            for reason in found
        ]
        settings = [
            asked.model_dump(mode="json", exclude_unset=True) for name, asked in given if name == step
        ]
        steps.append(
            {"step": step, "settings": settings, "documents_in": left, "dropped": dropped, "reasons": rows}
        )
        left -= dropped
    assert left == counts.documents_out, f"the report loses documents: {left} of {counts.documents_out}"
    return steps


def _named(found: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): count for name, count in found.items() if name.startswith(prefix)}


def _duplicates(step: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a corpus-wide step says it found, and which share of what it compared goes."""
    compared = found.get("paragraphs", found.get("documents", 0))
    dropped = found.get("repeats", found.get("duplicates", 0))
    return {"step": step, "share_dropped": _ratio(dropped, compared)} | dict(found)


def _lengths(lengths: np.ndarray, longest: int) -> dict[str, Any]:
    """Bins by powers of two, from the first to the last that has a document."""
    there = np.flatnonzero(lengths[:, 0])
    bins = range(int(there[0]), int(there[-1]) + 1) if len(there) else range(0)
    documents, tokens = lengths.sum(axis=0).tolist()
    return {
        "unit": "tokens",
        "mean": _ratio(tokens, documents),
        "longest": longest,
        "bins": [
            {"from": 2**number, "to": 2 ** (number + 1) - 1}
            | dict(zip(("documents", "tokens"), lengths[number].tolist(), strict=True))
            for number in bins
        ],
    }


def _times(built: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Seconds of this build: of the clock, and of its workers by pass and step."""
    steps = []
    for key, seconds in built["seconds_by_step"].items():
        number, _, step = key.removeprefix("pass ").partition(": ")
        steps.append({"pass": int(number), "step": step, "seconds": seconds})
    return {
        "seconds": built["seconds"],
        "workers": built["workers"],
        "read_bytes": built["read_bytes"],
        "text_bytes": sum(split.text_bytes for split in manifest.splits.values()),
        "by_stage": [
            {"stage": name, "seconds": seconds} for name, seconds in built["seconds_by_stage"].items()
        ],
        "by_step": steps,
        "deciding": [{"step": each["step"], "seconds": each["seconds"]} for each in built["corpus_wide"]],
    }


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0
