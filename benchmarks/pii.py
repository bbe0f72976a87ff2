"""Personal data: precision and recall per kind on a labelled set, and the speed of the scan.

    python benchmarks/pii.py [--sentences 20000] [--seed 0] [--record]

The set is made by `pii_labelled.py`: half of its sentences hold personal data, half what looks like some.
An item is found when a span of its kind lies within it and covers nine tenths of it; every other span is
wrong.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pii_labelled import labelled  # noqa: E402
from record import machine, publish  # noqa: E402

from data_prep.documents import Document, Tally  # noqa: E402
from data_prep.steps.pii import KINDS, Pii, make  # noqa: E402
from data_prep.steps.pii_find import Finder  # noqa: E402

GOAL = 20.0  # MB/s of text that has next to none


@dataclass
class Score:
    """Of one kind: items there are, items found, and spans that are none of them."""

    there: int = 0
    found: int = 0
    wrong: int = 0

    @property
    def recall(self) -> float:
        """Of the items, the share that was found."""
        return self.found / self.there if self.there else 1.0

    @property
    def precision(self) -> float:
        """Of the spans, the share that is right."""
        return self.found / (self.found + self.wrong) if self.found + self.wrong else 1.0


def measure(count: int, seed: int) -> tuple[dict[str, Score], list[str]]:
    """The score of each kind, and the texts that were judged wrongly."""
    finder = Finder(frozenset(KINDS), False, Pii().national_ids)
    scores = {kind: Score() for kind in KINDS}
    errors = []
    for example in labelled(count, seed):
        if example.kind:
            scores[example.kind].there += 1
        hit = False
        for span in finder(example.text):
            covered = min(span.end, example.end) - max(span.start, example.start)
            within = span.start >= example.start and span.end <= example.end
            right = span.kind == example.kind and within and covered >= 0.9 * (example.end - example.start)
            scores[span.kind].found += right
            scores[span.kind].wrong += not right
            hit |= right
            if not right:
                errors.append(
                    f"{span.kind} wrong: {example.text[span.start : span.end]!r} in {example.text!r}"
                )
        if example.kind and not hit:
            errors.append(f"{example.kind} missed: {example.text!r}")
    return scores, errors


def clean_text(enough: int) -> list[str]:
    """Pieces of the standard library's source without what the finder knows."""
    finder = Finder(frozenset(KINDS), False, Pii().national_ids)
    pieces: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        text = path.read_text(errors="ignore")
        for at in range(0, len(text), 4000):
            if not finder(text[at : at + 4000]):
                pieces.append(text[at : at + 4000])
                size += len(pieces[-1])
        if size >= enough:
            break
    return pieces


def rate(texts: list[str]) -> float:
    """MB/s of CPU time through the step."""
    step = make(Pii())
    began = time.process_time()
    kept = sum(1 for _ in step((Document(text, "t") for text in texts), Tally()))
    spent = time.process_time() - began
    assert kept == len(texts), "masking lost documents"
    return sum(len(text.encode()) for text in texts) / 1e6 / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sentences", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", type=int, default=20_000_000, help="bytes of clean text for the speed")
    parser.add_argument("--errors", type=int, default=0, help="show so many wrong judgements")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    chosen = parser.parse_args()
    scores, errors = measure(chosen.sentences, chosen.seed)
    lines = [
        f"{machine()}; one process, one thread.",
        f"{chosen.sentences} sentences, half of them with personal data, half with what looks like some.",
        "",
        "| kind | items | recall | precision |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {kind} | {one.there} | {one.recall:.4f} | {one.precision:.4f} |" for kind, one in scores.items()
    ]
    reached = rate(clean_text(chosen.text))
    met = "met" if reached >= GOAL else "missed"
    lines += ["", f"Clean text: {reached:.0f} MB/s per core; goal {GOAL:.0f}: {met}."]
    lines += ["", *errors[: chosen.errors]] if chosen.errors else []
    command = "python " + " ".join(["benchmarks/pii.py", *sys.argv[1:]])
    publish("Personal data: recall, precision, speed", command, "\n".join(lines), chosen.record)


if __name__ == "__main__":
    main()
