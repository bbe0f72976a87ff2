"""Near-duplicate removal: what it finds, checked against brute force, and the memory it takes.

    python benchmarks/near_duplicates.py [--documents 20000] [--memory 100000 300000 1000000] [--record]

Recall and precision. Documents are cut from real text of this machine (the standard library's source and
the installed documentation). A third of them are copies of others, with edits chosen for a Jaccard
similarity between .5 and 1 (words replaced here and there, a block replaced, text added at an end). The
truth is the exact Jaccard similarity of all pairs of sets of word 5-grams, computed here with an inverted
index and its own way to find words. Pairs: those of .8 or more against those that the step verified.
Documents: those that have such a pair with an earlier one, joined into clusters, against those dropped.

Memory. Each size runs in a process of its own: documents of random words, a fifth of them near-duplicates,
in chunks, notes in files, then the resolution. Counted is the peak of anonymous memory (RssAnon, sampled
every 10 ms), which holds the interpreter and all arrays; the pages of mapped files are the system's.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from record import machine, publish  # noqa: E402

from data_prep.documents import Document  # noqa: E402
from data_prep.steps import dedup, minhash  # noqa: E402
from data_prep.steps.minhash import MinHash  # noqa: E402
from data_prep.steps.step import CorpusWideStep  # noqa: E402

NEAR = 0.8
NGRAM = 5
CHUNK = 2000  # documents
LAYOUTS = {
    "as it comes": MinHash(),
    "14 x 8, verified": MinHash(bands=14, rows=8),
    "14 x 8, every candidate": MinHash(bands=14, rows=8, threshold=None),
}


def real_words(enough: int) -> list[str]:
    """Words of real text, as they stand in it, in the order of the files' names."""
    words: list[str] = []
    folders = [
        Path(sysconfig.get_path("stdlib")),
        Path("/usr/share/doc"),
        Path(sysconfig.get_path("purelib")),
    ]
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if len(words) >= enough:
                return words
            if path.suffix in {".py", ".txt", ".md", ".rst", ""} and path.is_file():
                words += path.read_text(errors="ignore").split()
    return words


def planted(count: int, seed: int) -> list[str]:
    """Documents of 30 to 1500 words; a third are edited copies. The order is shuffled."""
    rng = random.Random(seed)
    lengths = [min(max(int(rng.lognormvariate(5.2, 0.7)), 30), 1500) for _ in range(count - count // 3)]
    pool = real_words(sum(lengths) + 2000)
    texts: list[list[str]] = []
    at = 0
    for length in lengths:  # a machine with little text gives overlapping documents; the truth knows
        at = at if at + length < len(pool) else rng.randrange(1000)
        texts.append(pool[at : at + length])
        at += length
    vocabulary = pool[:: max(len(pool) // 50_000, 1)]
    for _ in range(count // 3):
        texts.append(edited(rng.choice(texts), rng.uniform(0.5, 1.0), vocabulary, rng))
    rng.shuffle(texts)
    return [" ".join(text) for text in texts]


def edited(words: list[str], similarity: float, vocabulary: list[str], rng: random.Random) -> list[str]:
    """A copy of about this similarity: of all n-grams a share 2s/(1+s) must survive."""
    surviving = 2 * similarity / (1 + similarity)
    words = list(words)
    way = rng.choice(["scattered", "block", "end"])
    if way == "scattered":
        for place in rng.sample(range(len(words)), round(len(words) * (1 - surviving ** (1 / NGRAM)))):
            words[place] = rng.choice(vocabulary)
    elif way == "block":
        size = max(round(len(words) * (1 - surviving)) - NGRAM + 1, 0)
        begin = rng.randrange(len(words) - size + 1)
        words[begin : begin + size] = rng.choices(vocabulary, k=size)
    else:
        added = rng.choices(vocabulary, k=round(len(words) * (1 / similarity - 1)))
        words = words + added if rng.random() < 0.5 else added + words
    return words


def exact_pairs(texts: Sequence[str], least: float) -> dict[tuple[int, int], float]:
    """All pairs (first, second) of at least this Jaccard similarity, by counting common n-grams."""
    numbers: dict[tuple[str, ...], int] = {}
    sets = []
    for text in texts:
        words = re.findall(r"[^\W_]+", text.lower())
        grams = {tuple(words[at : at + NGRAM]) for at in range(max(len(words) - NGRAM + 1, 1))}
        sets.append(np.array([numbers.setdefault(gram, len(numbers)) for gram in sorted(grams)]))
    sizes = np.array([one.size for one in sets])
    grams, owners = np.concatenate(sets), np.repeat(np.arange(len(sets)), sizes)
    order = np.argsort(grams, kind="stable")
    owners = owners[order]  # for each n-gram its documents, in order
    starts = np.searchsorted(grams[order], np.arange(len(numbers) + 1))
    found = {}
    for second, own in enumerate(sets):
        begins, counts = starts[own], starts[own + 1] - starts[own]
        shared = counts > 1
        begins, counts = begins[shared], counts[shared]
        places = np.arange(counts.sum()) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
        common = np.bincount(owners[places], minlength=second + 1)[:second]
        near = np.flatnonzero(common >= least * sizes[second] / (1 + least))
        jaccard = common[near] / (sizes[near] + sizes[second] - common[near])
        found |= {
            (int(first), second): float(one) for first, one in zip(near, jaccard, strict=True) if one >= least
        }
    return found


def later_of_clusters(pairs: Sequence[tuple[int, int]], count: int) -> set[int]:
    """All but the earliest of each cluster, by the plainest union-find."""
    parents = list(range(count))

    def first(one: int) -> int:
        while parents[one] != one:
            parents[one] = one = parents[parents[one]]
        return one

    for left, right in pairs:
        left, right = first(left), first(right)
        parents[max(left, right)] = min(left, right)
    return {one for one in range(count) if first(one) != one}


@dataclass
class Score:
    """What a step found of what there is."""

    found: int
    truth: int
    right: int

    @property
    def recall(self) -> float:
        """Of what there is, the share that was found."""
        return self.right / self.truth if self.truth else 1.0

    @property
    def precision(self) -> float:
        """Of what was found, the share that is right."""
        return self.right / self.found if self.found else 1.0

    @classmethod
    def of(cls, found: set, truth: set) -> Score:
        """Two sets compared."""
        return cls(len(found), len(truth), len(found & truth))


@dataclass
class Measured:
    """Of one layout: documents dropped, pairs joined, and the rate of taking notes."""

    documents: Score
    pairs: Score
    megabytes_per_second: float


def measure(settings: MinHash, texts: Sequence[str], truth: dict[tuple[int, int], float]) -> Measured:
    """Runs the step, and compares. Pairs that only a cluster joins are no error of the verification."""
    step = minhash.make(settings)
    joined: set[tuple[int, int]] = set()
    join = minhash.Clusters.join

    def watched(self: minhash.Clusters, first: np.ndarray, second: np.ndarray) -> None:
        joined.update(zip(first.tolist(), second.tolist(), strict=True))
        join(self, first, second)

    minhash.Clusters.join = watched  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            rate, _ = run_step(step, iter(texts), Path(folder))
            dropped = {
                number * CHUNK + place
                for number in range(len(texts) // CHUNK + 1)
                if (verdict := Path(folder, f"{number}.npy")).exists()
                for place in np.load(verdict).tolist()
            }
    finally:
        minhash.Clusters.join = join  # type: ignore[method-assign]
    near = [pair for pair, jaccard in truth.items() if jaccard >= NEAR]
    documents = Score.of(dropped, later_of_clusters(near, len(texts)))
    return Measured(documents, Score.of(joined, set(near)), rate)


def run_step(step: CorpusWideStep, texts: Iterator[str], folder: Path) -> tuple[float, float]:
    """MB/s of notes and seconds of resolving, both of CPU time. The verdicts stay in the folder."""
    notes: list[Path] = []
    spent = characters = 0.0
    while chunk := [Document(text, "t", 1) for text in islice(texts, CHUNK)]:
        began = time.process_time()
        noted = step.notes(chunk, 0)
        spent += time.process_time() - began
        notes.append(folder / f"{len(notes)}.notes")
        noted.tofile(notes[-1])
        characters += sum(len(document.text.encode()) for document in chunk)
    (folder / "scratch").mkdir()
    began = time.process_time()
    verdicts = [path.with_suffix(".npy") for path in notes]
    step.resolve(notes, verdicts, folder / "scratch", lambda done, whole: None)
    return characters / 1e6 / spent, time.process_time() - began


def random_documents(count: int, seed: int) -> Iterator[str]:
    """Documents of about 100 random words; every fifth is the one before it with one word changed."""
    rng = np.random.default_rng(seed)
    words = np.array([f"w{number:x}" for number in range(50_000)])
    last = words[:100]
    for number in range(count):
        if number % 5 == 4:
            last = last.copy()
            last[rng.integers(last.size)] = "changed"
        else:
            last = words[rng.integers(0, words.size, rng.integers(60, 140))]
        yield " ".join(last)


def memory_of(name: str, count: int) -> tuple[float, float, float]:
    """Peak anonymous MiB, MB/s of notes, CPU seconds of resolving, in this very process."""
    step = {"minhash": lambda: minhash.make(MinHash()), "dedup": lambda: dedup.make(dedup.Dedup())}[name]()
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            status = Path("/proc/self/status").read_text()
            peak = max(peak, int(re.search(r"RssAnon:\s+(\d+)", status)[1]))  # type: ignore[index]

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            rate, resolving = run_step(step, random_documents(count, 0), Path(folder))
    finally:
        done.set()
        watcher.join()
    return peak / 1024, rate, resolving


def found_lines(count: int, seed: int) -> list[str]:
    texts = planted(count, seed)
    began = time.process_time()
    truth = exact_pairs(texts, 0.5)
    near = sum(jaccard >= NEAR for jaccard in truth.values())
    lines = [
        f"{count} documents, {sum(map(len, texts)) / 1e6:.0f} MB; {len(truth)} pairs of .5 and more, "
        f"{near} of .8 and more (brute force: {time.process_time() - began:.0f} s).",
        "",
        "| layout | documents dropped: recall | precision | pairs joined: precision | notes MB/s per core |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, settings in LAYOUTS.items():
        result = measure(settings, texts, truth)
        scores = (
            f"{result.documents.recall:.4f} | {result.documents.precision:.4f} | {result.pairs.precision:.4f}"
        )
        lines.append(f"| {name} | {scores} | {result.megabytes_per_second:.0f} |")
    return lines


def memory_lines(sizes: Sequence[int]) -> list[str]:
    lines = [
        "",
        "| step | documents | peak anonymous MiB | notes MB/s | resolving, CPU s |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in ("minhash", "dedup"):
        peaks = []
        for size in sizes:
            command = [sys.executable, __file__, "--one", name, str(size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, rate, resolving = map(float, done.stdout.split())
            peaks.append(peak)
            lines.append(f"| {name} | {size:,} | {peak:.0f} | {rate:.0f} | {resolving:.1f} |")
        lines.append(f"| {name} | largest / smallest | {max(peaks) / min(peaks):.2f} | | |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=20_000, help="checked against brute force; 0: skip")
    parser.add_argument("--memory", type=int, nargs="*", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(*memory_of(chosen.one[0], int(chosen.one[1])))
        return
    lines = [f"{machine()}; one process, one thread."]
    lines += found_lines(chosen.documents, chosen.seed) if chosen.documents else []
    lines += memory_lines(chosen.memory) if chosen.memory else []
    command = "python " + " ".join(["benchmarks/near_duplicates.py", *sys.argv[1:]])
    publish("Near-duplicates: recall, precision, memory", command, "\n".join(lines), chosen.record)


if __name__ == "__main__":
    main()
