"""Gopher's rules by the paper's words and by datatrove's, beside datatrove itself: same verdicts.

    python benchmarks/gopher_words.py [NAME=FOLDER …] [--documents 1000] [--record]

Run it with a Python that has datatrove 0.10.1 and spaCy besides what data_prep needs. Each folder's text
files (.txt, .md, .rst, .pod, copyright, changelog) are documents as they are; the docstrings of the standard
library, cut into pages, always are the first set.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from filters import docstrings, pages  # noqa: E402
from record import machine, publish  # noqa: E402

from data_prep.documents import Document, Tally  # noqa: E402
from data_prep.steps.registry import StepSection, make_steps  # noqa: E402

STEPS = ("gopher_quality", "gopher_repetition")
NAMES = (".txt", ".md", ".rst", ".pod")


def documents_in(folder: Path, most: int) -> list[str]:
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or not (
            path.suffix in NAMES or path.name.split(".")[0] in ("copyright", "changelog")
        ):
            continue
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8", "replace")
        if text.strip() and len(text) < 1_000_000:
            found.append(text)
    return found[:: 1 + len(found) // most]


def ours(step: str, words: str, texts: list[str]) -> list[str | None]:
    """What a step says of each text, None where it lets it pass."""
    (made,) = make_steps([StepSection.model_validate({step: {"words": words}})])
    said: list[str | None] = []
    for text in texts:
        tally = Tally()
        list(made(iter([Document(text, "d")]), tally))  # type: ignore[operator]
        said.append(next(iter(tally.rejected), None))
    return said


def theirs(step: str, texts: list[str]) -> list[str | None]:
    from datatrove.data import Document as Theirs
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    judge: Any = {"gopher_quality": GopherQualityFilter, "gopher_repetition": GopherRepetitionFilter}[step]()
    verdicts = (judge.filter(Theirs(text=text, id="d")) for text in texts)
    return [
        verdict[1] if isinstance(verdict, tuple) else None if verdict else "dropped" for verdict in verdicts
    ]


def same(one: list[str | None], two: list[str | None]) -> str:
    agreed = sum((a is None) == (b is None) for a, b in zip(one, two, strict=True))
    return f"{agreed / len(one):.1%}"


def dropped(said: list[str | None]) -> str:
    return f"{sum(each is not None for each in said) / len(said):.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--documents", type=int, default=1000, help="of each folder, at most")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    chosen = parser.parse_args()
    sets: dict[str, Callable[[], list[str]]] = {
        "docstrings": lambda: pages(docstrings(), 4e6)[: chosen.documents]
    }
    for each in chosen.folders:
        name, _, folder = each.partition("=")
        sets[name] = lambda folder=folder: documents_in(Path(folder).expanduser(), chosen.documents)
    lines = [
        f"{machine()}.",
        "",
        "Share of documents with the same verdict as datatrove 0.10.1, and dropped by each.",
    ]
    lines += [
        "",
        "| text | documents | step | `words: paper` | `words: datatrove` | dropped: paper | datatrove |",
    ]
    lines += ["|---|---:|---|---:|---:|---:|---:|"]
    for name, read in sets.items():
        texts = read()
        for step in STEPS:
            right, paper, words = (
                theirs(step, texts),
                ours(step, "paper", texts),
                ours(step, "datatrove", texts),
            )
            lines.append(
                f"| {name} | {len(texts):,} | {step} | {same(paper, right)} | {same(words, right)} "
                f"| {dropped(paper)} | {dropped(right)} |"
            )
            apart = Counter(
                (b, a) for a, b in zip(words, right, strict=True) if (a is None) != (b is None)
            ).most_common(3)
            print(name, step, apart, file=sys.stderr)
    publish(
        "Gopher's words",
        "python benchmarks/gopher_words.py " + " ".join(each.partition("=")[0] for each in chosen.folders),
        "\n".join(lines),
        chosen.record,
    )


if __name__ == "__main__":
    main()
