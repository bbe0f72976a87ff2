"""What bad input does: damage that is counted, cuts that are found, and the memory that a giant takes.

    python benchmarks/bad_input.py
    python benchmarks/bad_input.py --cuts 500 --mixtures 300 --line-mb 200

Three tables: JSONL files of random mixtures of bad lines, where each count must be the one that was written;
packed and columnar files cut at random offsets, where what is read must be a beginning of the whole and the
cut must be named; one line of many megabytes, plain and packed four ways, read by a fresh process each.
Exits with 1 when a count is off.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import zstandard
from record import machine, publish

from data_prep.corpus import SourceSection
from data_prep.documents import Tally, parse
from data_prep.sources import read_source, settle

LONGEST = 2**24  # max_document_bytes as it is by default
PACKERS = {
    "gz": lambda data: gzip.compress(data, 6, mtime=0),
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
NAMED = {
    "gz": "truncated gzip file",
    "zst": "truncated zstd file",
    "bz2": "truncated bz2 file",
    "xz": "truncated xz file",
    "parquet": "damaged parquet file",
}
LINES = {
    "": b'{"text": "good %d"}',
    "broken JSON": b'{"text": "cut %d',
    "not UTF-8": b'{"text": "\xff%d"}',
    "not a JSON object": b'["text", %d]',
    "no field 'text'": b'{"txt": "x%d"}',
    "field 'text' is not text": b'{"text": %d}',
    "empty": b'{"text": "", "n": %d}',
    "lone surrogate": b'{"text": "\\ud800 %d"}',
    "duplicate JSON key": b'{"text": "a", "text": "b%d"}',
}
READ = """
import sys
sys.path.insert(0, sys.argv[2])
from bad_input import peak_kib, read
before = peak_kib()
texts, tally = read(sys.argv[1])
print(len(texts), sum(tally.rejected.values()), *tally.rejected)
print(peak_kib() - before)
"""


def peak_kib() -> int:
    """The most memory this process has held. (getrusage counts its parent's too.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise OSError("no VmHWM in /proc/self/status")


def read(path: str | Path) -> tuple[list[str], Tally]:
    """The texts of a file and the tally of reading it, as a build would have them."""
    source, tally = settle(SourceSection(path=str(path)), 0, lambda _: None), Tally()
    texts = []
    for encoding, record in read_source(source, LONGEST, lambda _: None):
        texts += [document.text for document in parse([record], encoding, "text", tally)]
    return texts, tally


def mixtures(folder: Path, count: int, rng: random.Random) -> tuple[int, int, int]:
    """Files, lines and files whose counts were off."""
    lines_in = off = 0
    path = folder / "mixture.jsonl"
    for _ in range(count):
        kinds = rng.choices(sorted(LINES), k=rng.randint(1, 400))
        path.write_bytes(b"\n".join(LINES[why] % number for number, why in enumerate(kinds)) + b"\n")
        texts, tally = read(path)
        expected = Counter(why for why in kinds if why)
        good = [f"good {number}" for number, why in enumerate(kinds) if not why]
        off += tally.rejected != dict(expected) or texts != good or tally.documents_in != len(kinds)
        lines_in += len(kinds)
    return count, lines_in, off


def cuts(folder: Path, kind: str, count: int, rng: random.Random) -> tuple[int, int]:
    """Cuts that were named with nothing wrong before them, and cuts that were not."""
    texts = [f"{number} " + "".join(rng.choices("abcdefgh ", k=200)) for number in range(500)]
    path = folder / f"cut.{kind if kind == 'parquet' else f'jsonl.{kind}'}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=50)
        raw = path.read_bytes()
    else:
        raw = PACKERS[kind](b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts))
    named = 0
    for _ in range(count):
        path.write_bytes(raw[: rng.randrange(len(raw))])
        got, tally = read(path)
        named += got == texts[: len(got)] and tally.rejected == {NAMED[kind]: 1}
    return named, count - named


def giant(folder: Path, suffix: str, megabytes: int) -> tuple[str, float]:
    """What reading one line of so many megabytes came to, and the peak of memory above the start in MB."""
    path = folder / f"giant.jsonl{suffix}"
    rng = random.Random(0)
    block = "".join(rng.choices("abcdefgh ", k=1 << 20)).encode()
    raw = b'{"text": "first"}\n{"text": "' + block * megabytes + b'"}\n{"text": "last"}\n'
    path.write_bytes(PACKERS[suffix[1:]](raw) if suffix else raw)
    return read_apart(path)


def bomb(folder: Path, suffix: str, gigabytes: int) -> tuple[str, float]:
    """As `giant`, of one line of so many gigabytes of one letter, in a few megabytes."""
    path = folder / f"bomb.jsonl{suffix}"
    pack = PACKERS[suffix[1:]]
    quarter = pack(b"a" * (1 << 28))
    with open(path, "wb") as file:
        file.write(pack(b'{"text": "first"}\n{"text": "'))
        for _ in range(4 * gigabytes):
            file.write(quarter)
        file.write(pack(b'"}\n{"text": "last"}\n'))
    return read_apart(path)


def read_apart(path: Path) -> tuple[str, float]:
    """What a process of its own reads of a file, and its peak of memory above the start in MB; it is gone."""
    command = [sys.executable, "-c", READ, str(path), str(Path(__file__).parent)]
    outcome, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    path.unlink()
    return outcome, int(peak) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=50, help="cuts of each kind of file")
    parser.add_argument("--mixtures", type=int, default=50, help="JSONL files of random mixtures")
    parser.add_argument("--line-mb", type=int, default=200, help="megabytes of the giant line")
    parser.add_argument("--bomb-gb", type=int, default=10, help="gigabytes of one letter in a packed line")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    options = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, lines, off = mixtures(folder, options.mixtures, rng)
        body = [
            machine(),
            "",
            "| mixtures of bad lines | lines in | files with a count off |",
            "|---|---|---|",
        ]
        body += [f"| {files} | {lines:,} | {off} |", "", "| cut files | named | not named |", "|---|---|---|"]
        for kind in (*PACKERS, "parquet"):
            named, lost = cuts(folder, kind, options.cuts, rng)
            off += lost
            body.append(f"| {kind} | {named} | {lost} |")
        body += [
            "",
            f"| one line of {options.line_mb} MB | documents, rejected, reason | peak above start, MB |",
        ]
        body.append("|---|---|---|")
        for suffix in ("", ".gz", ".zst", ".bz2", ".xz"):
            outcome, peak = giant(folder, suffix, options.line_mb)
            off += outcome != "2 1 too large"
            body.append(f"| jsonl{suffix} | {outcome} | {peak:.0f} |")
        for suffix in (".gz", ".zst", ".bz2", ".xz"):
            outcome, peak = bomb(folder, suffix, options.bomb_gb)
            off += outcome != "2 1 too large"
            body.append(f"| a bomb of {options.bomb_gb} GB, jsonl{suffix} | {outcome} | {peak:.0f} |")
    command = " ".join(["python benchmarks/bad_input.py", *sys.argv[1:]])
    publish("Bad input", command, "\n".join(body), options.record)
    return 1 if off else 0


if __name__ == "__main__":
    raise SystemExit(main())
