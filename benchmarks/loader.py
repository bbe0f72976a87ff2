"""Tokens per second from memory-mapped shards to the arrays a rank trains on.

    python benchmarks/loader.py [--tokens 200_000_000] [--seq-len 2048] [--rows 256] [--micro 8] [--record]

Makes a dataset of random tokens in documents of about 600 tokens, in several shards, then reads every
step through `Batches.at(step).read(...)` in micro-batches, in shuffled order. The files are in the page
cache, as they are after a first epoch: what is measured is the loader, not the disk.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from record import machine, publish  # noqa: E402

from llmtrain.config.schema import DataSource, PackingName  # noqa: E402
from llmtrain.data.batches import Batches  # noqa: E402
from llmtrain.data.manifest import (  # noqa: E402
    TOKENIZER,
    Counts,
    Manifest,
    ShardEntry,
    SplitEntry,
    TokenizerEntry,
    file_sha256,
    fingerprint,
    write_manifest,
)
from llmtrain.data.shards import ShardWriter, token_dtype  # noqa: E402

GOAL = 100_000_000  # tokens per second
SHARDS = 4


def make_dataset(folder: Path, tokens: int, vocab_size: int) -> None:
    rng = np.random.default_rng(0)
    (folder / TOKENIZER).mkdir(parents=True)
    (folder / TOKENIZER / "tokenizer.json").write_text("{}")
    (folder / "train").mkdir()
    shards = []
    for number in range(SHARDS):
        name = f"train/{number:05d}"
        lengths = np.clip(rng.lognormal(5.8, 1.1, tokens // SHARDS // 300), 1, 50_000).astype(np.int64)
        ends = np.cumsum(lengths)
        lengths = lengths[: int(np.searchsorted(ends, tokens // SHARDS))]
        writer = ShardWriter(folder / name, vocab_size)
        writer.add(rng.integers(0, vocab_size, int(lengths.sum()), np.uint16), lengths)
        shards.append(ShardEntry.of(name, writer.close()))
    total = sum(shard.tokens for shard in shards)
    documents = sum(shard.documents for shard in shards)
    splits = {
        "train": SplitEntry(documents=documents, tokens=total, text_bytes=4 * total, shards=tuple(shards))
    }
    sha256 = file_sha256(folder / TOKENIZER / "tokenizer.json")
    dtype = token_dtype(vocab_size).name
    entry = TokenizerEntry(
        name="random", sha256=sha256, vocab_size=vocab_size, eos="", eos_id=0, special={}, engine="none"
    )
    manifest = Manifest(
        name="random",
        created_by="benchmarks/loader.py",
        fingerprint=fingerprint(splits, dtype, vocab_size, sha256, False),
        dtype=dtype,
        vocab_size=vocab_size,
        append_eos=False,
        tokenizer=entry,
        splits=splits,
        sources=(),
        counts=Counts(documents_in=0, documents_out=0, rejected={}, examples={}),
        pipeline={},
        pipeline_sha256="",
    )
    write_manifest(folder, manifest)


def measure(batches: Batches, micro: int, seconds: float) -> float:
    """Tokens per second over at least `seconds`, after one step that is not counted."""
    read_step(batches, 0, micro)
    step, began = 1, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or step == 1:
        read_step(batches, step, micro)
        step += 1
    return (step - 1) * batches.rows_per_step * batches.seq_len / spent


def read_step(batches: Batches, step: int, micro: int) -> None:
    """What a rank does for one step: the denominator of the loss, then each micro-batch."""
    due = batches.at(step)
    assert due.valid_tokens > 0, "a step without a label"
    for start in range(0, due.count, micro):
        arrays = due.read(start, min(start + micro, due.count))
        assert arrays.tokens.shape[1] == batches.seq_len, "a row of another length"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=200_000_000, help="size of the dataset")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=256, help="rows per step")
    parser.add_argument("--micro", type=int, default=8, help="rows per read")
    parser.add_argument("--seconds", type=float, default=3.0, help="time per figure")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    chosen = parser.parse_args()
    lines = [
        f"{machine()}; one process, one thread.",
        f"{chosen.tokens / 1e6:.0f} M tokens of uint16 in {SHARDS} shards; rows of {chosen.seq_len} tokens, "
        f"{chosen.rows} per step, read {chosen.micro} at a time.",
        "",
        "| packing | mask_documents | M tokens/s | padding | cropped |",
        "|---|---|---:|---:|---:|",
    ]
    slowest = float("inf")
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder), chosen.tokens, 50_000)
        for packing, mask in itertools.product(get_args(PackingName), (False, True)):
            source = DataSource(path=folder)
            batches = Batches([source], chosen.seq_len, chosen.rows, 1, mask, packing)
            rate = measure(batches, chosen.micro, chosen.seconds)
            slowest = min(slowest, rate)
            shares = f"{batches.padded:.3%} | {batches.lost:.3%}"
            lines.append(f"| {packing} | {str(mask).lower()} | {rate / 1e6:.1f} | {shares} |")
    lines += ["", f"Goal {GOAL / 1e6:.0f} M tokens/s: {'met' if slowest >= GOAL else 'missed'}."]
    command = "python " + " ".join(["benchmarks/loader.py", *sys.argv[1:]])
    publish("Tokens per second from shards to arrays", command, "\n".join(lines), chosen.record)


if __name__ == "__main__":
    main()
