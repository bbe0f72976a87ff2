"""How fast the steps of a corpus are, each alone and as FineWeb's chain, in MB/s of UTF-8 per core.

    python benchmarks/filters.py [--text FOLDER] [--megabytes 30] [--record]

The text files in a folder (.txt, .md, .rst, .pod) are cut at blank lines into pages of 1 to 8 kB, a
paragraph a line, as extracted web pages look. Without a folder the docstrings of the standard library are
read. Every contestant gets fresh documents; times are CPU time of one process, the best of three rounds
in turns, beside a bare `text.split()` of the same documents in the same round.
"""

from __future__ import annotations

import argparse
import ast
import random
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from record import machine, publish  # noqa: E402

from data_prep.documents import Document, Tally  # noqa: E402
from data_prep.steps.registry import StepSection, make_steps  # noqa: E402
from data_prep.steps.step import CorpusWideStep  # noqa: E402

GOAL_FILTERS, GOAL_CHAIN = 12.0, 5.0  # MB/s
ROUNDS = 3
FILTERS: list[dict[str, Any]] = [
    {"gopher_repetition": {}},
    {"gopher_quality": {}},
    {"c4": {"terminal_punctuation": False, "curly_bracket": False}},  # technical text is full of brackets
    {"fineweb": {}},
]
REST: list[dict[str, Any]] = [{"minhash": {}}] + [{"pii": {}}] * ("pii" in StepSection.model_fields)
ALONE = [*FILTERS, *REST, {"normalize": {}}, {"language": {}}]


def docstrings() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        said = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        yield "\n\n".join(text for text in said if text)


def files_in(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".txt", ".md", ".rst", ".pod"):
            yield path.read_text(encoding="utf-8", errors="replace")


def pages(texts: Iterable[str], most: float) -> list[str]:
    rng, made, size = random.Random(0), [], 0.0
    for text in texts:
        page: list[str] = []
        limit = rng.randint(1000, 8000)
        for part in [*text.split("\n\n"), None]:
            if part is not None and len(part) > 20:
                page.append(" ".join(part.split()))
            if page and (part is None or sum(map(len, page)) > limit):
                made.append("\n".join(page))
                size += len(made[-1].encode())
                page, limit = [], rng.randint(1000, 8000)
        if size > most:
            break
    return made


def run(sections: list[dict[str, Any]], texts: list[str]) -> tuple[float, int]:
    """CPU seconds, and how many documents are left. Of a corpus-wide step the notes are taken."""
    steps = make_steps([StepSection.model_validate(section) for section in sections])
    for step in steps:  # tables and models are made with the first document
        warm = [Document(texts[0], "warm-up")]
        step.notes(warm, 0) if isinstance(step, CorpusWideStep) else list(step(iter(warm), Tally()))
    documents = [Document(text[:1] + text[1:], "file", number) for number, text in enumerate(texts)]
    count = 0
    began = time.process_time()
    for at in range(0, len(documents), 256):  # as a build does: a part of the corpus at a time
        left: Iterable[Document] = documents[at : at + 256]
        for step in steps:
            if isinstance(step, CorpusWideStep):
                left = list(left)
                step.notes(left, 0)
            else:
                left = step(iter(left), Tally())
        count += len(list(left))
    return time.process_time() - began, count


def bare_split(texts: list[str]) -> float:
    began = time.process_time()
    for text in texts:
        text.split()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, help="a folder of English text")
    parser.add_argument("--megabytes", type=float, default=30.0)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    chosen = parser.parse_args()
    texts = pages(files_in(chosen.text) if chosen.text else docstrings(), chosen.megabytes * 1e6)
    size = sum(len(text.encode()) for text in texts) / 1e6
    contestants = {next(iter(step)): [step] for step in ALONE}
    contestants |= {
        "the four filters": FILTERS,
        "filters, " + ", ".join(map(next, map(iter, REST))): FILTERS + REST,
    }
    best: dict[str, float] = {}
    splits, left = [], {}
    for _ in range(ROUNDS):
        splits.append(bare_split(texts))
        for name, sections in contestants.items():
            seconds, left[name] = run(sections, texts)
            best[name] = min(seconds, best.get(name, seconds))
    split = size / min(splits)
    lines = [f"{machine()}; {len(texts):,} pages, {size:.1f} MB; a bare split: {split:.0f} MB/s.", ""]
    lines += ["| steps | MB/s per core | of a bare split | documents left |", "|---|---:|---:|---:|"]
    for name, seconds in best.items():
        speed = size / seconds
        lines.append(f"| {name} | {speed:.1f} | {speed / split:.3f} | {left[name] / len(texts):.1%} |")
    filters, chain = (size / best[name] for name in list(contestants)[-2:])
    goal = f"filters {GOAL_FILTERS:g} MB/s, with near-duplicates and personal data {GOAL_CHAIN:g} MB/s"
    met = filters >= GOAL_FILTERS and chain >= GOAL_CHAIN
    lines += ["", f"Goal ({goal}): {'met' if met else 'missed'}."]
    said = f" --text {chosen.text.name}" if chosen.text else ""
    command = f"python benchmarks/filters.py{said} --megabytes {chosen.megabytes:g}"
    publish("Steps", command, "\n".join(lines), chosen.record)


if __name__ == "__main__":
    main()
