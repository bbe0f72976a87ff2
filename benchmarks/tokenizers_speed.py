"""Megabytes of text per CPU second and engine, on real text, with the ids compared.

    python benchmarks/tokenizers_speed.py [--megabytes 8] [--vocab-size 32000] [--record]

The text is what is on every machine: the Python standard library's source, and what stands under
/usr/share/doc. A tokenizer is trained on a part of it, as `llmtrain data build` trains one. Each engine then
encodes all of it in batches, in the order a build would and from a cold start, and must give the same ids.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from record import machine, publish  # noqa: E402

from data_prep.corpus import DEFAULT_EOS  # noqa: E402
from data_prep.engines import FASTEST_FIRST, Engine, NotUsableError, Reference  # noqa: E402
from data_prep.tokenizer import train_bpe, write_trained  # noqa: E402

PLACES = (Path(sysconfig.get_path("stdlib")), Path("/usr/share/doc"))
BATCH_BYTES = 1_000_000
TRAINED_ON = 4_000_000  # bytes


@dataclass(frozen=True)
class Speed:
    """MB per CPU second of one engine, loading not counted; None, and the reason, when it is not used."""

    name: str
    rate: float | None
    load_seconds: float = 0.0
    tokens: int = 0
    reason: str = ""


def real_texts(megabytes: float) -> Iterator[str]:
    """Files of the two places by turns of size, UTF-8 text only, `megabytes` in all at most."""
    left = megabytes * 1e6
    for place in PLACES:
        share = left / 2 if place is PLACES[0] else left
        for path in sorted(place.rglob("*")):
            if path.suffix not in (".py", ".txt", ".gz", ".md", ".html", "") or not path.is_file():
                continue
            raw = path.read_bytes()
            if path.suffix == ".gz":
                raw = gzip.decompress(raw)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                continue
            if share - len(raw) < 0:
                break
            share, left = share - len(raw), left - len(raw)
            yield text


def measure(texts: list[str], folder: Path) -> list[Speed]:
    """Every engine on the same texts with the tokenizer of a folder. Asserts that their ids are equal."""
    batches: list[list[str]] = [[]]
    for text in texts:
        if sum(map(len, batches[-1])) > BATCH_BYTES:
            batches.append([])
        batches[-1].append(text)
    size = sum(len(text.encode()) for text in texts) / 1e6
    right: list[np.ndarray] = []
    speeds = []
    for name, make in [(Reference.name, Reference), *FASTEST_FIRST.items()][:-1]:
        began = time.process_time()
        try:
            engine: Engine = make(folder)
        except NotUsableError as reason:
            speeds.append(Speed(name, None, reason=str(reason)))
            continue
        loaded = time.process_time()
        ids = [engine(batch)[0] for batch in batches]
        spent = time.process_time() - loaded
        right = right or ids
        same = all(np.array_equal(ours, theirs) for ours, theirs in zip(ids, right, strict=True))
        assert same, f"{name} gives other ids than tokenizers"
        speeds.append(Speed(name, size / spent, loaded - began, sum(map(len, ids))))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    chosen = parser.parse_args()
    texts = list(real_texts(chosen.megabytes))
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "tokenizer"
        step = max(1, size // TRAINED_ON)
        write_trained(train_bpe(texts[::step], chosen.vocab_size, DEFAULT_EOS), folder, DEFAULT_EOS)
        speeds = measure(texts, folder)
    slow = speeds[0].rate or 1.0
    lines = [
        f"{machine()}; one thread. {len(texts):,} texts, {size / 1e6:.1f} MB; byte-level BPE of "
        f"{chosen.vocab_size:,} ids trained on part of them. All ids are equal.",
        "",
        "| engine | MB per CPU second | × tokenizers | s to load | bytes per token |",
        "|---|---:|---:|---:|---:|",
    ]
    for speed in speeds:
        if speed.rate is None:
            lines.append(f"| {speed.name} | {speed.reason} | | | |")
            continue
        figures = f"{speed.rate:.1f} | {speed.rate / slow:.1f} | {speed.load_seconds:.2f}"
        lines.append(f"| {speed.name} | {figures} | {size / speed.tokens:.2f} |")
    command = "python " + " ".join(["benchmarks/tokenizers_speed.py", *sys.argv[1:]])
    publish("Text to tokens by engine", command, "\n".join(lines), chosen.record)


if __name__ == "__main__":
    main()
