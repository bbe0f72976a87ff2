"""`benchmarks/data.py` runs at a tiny size, every part of it, and its tables hold what they say."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = ["--megabytes", "0.4", "--slow-megabytes", "0.1", "--gigabytes", "0.0005", "--vocab-size", "600"]
SMALL += ["--documents", "60", "--sentences", "60"]


def test_every_part_prints_its_table(tmp_path):
    rng = random.Random(0)
    (tmp_path / "book.txt").write_text("\n\n".join(paragraph(rng) for _ in range(800)))
    command = [sys.executable, str(ROOT / "benchmarks/data.py"), *SMALL, "--text", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout
    engines = re.findall(r"^\| (\S+).* \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", said, re.M)
    assert all(0 < float(ratio) <= float(steady) for *_, ratio, steady in engines)
    assert {"auto:", "tokenizers"} <= {name for name, *_ in engines}
    assert re.search(r"^\| datasets\.map \| [\d.]+ \| \| [\d.]+ \| \| \|$", said, re.M)
    assert {"pass 0: gopher_repetition", "pass 1: pii", "pass 1: minhash"} <= set(
        re.findall(r"^\| (.+?) \|", said, re.M)
    )
    peak = re.search(r"processes: .*\nPeak of anonymous memory: (0\.\d\d) GiB", said)
    assert peak and float(peak[1]) > 0.02
    assert "## Near-duplicates" in said and "## Personal data" in said
    assert len(re.findall(r"Goal \(.*\): (?:met|missed)", said)) == 4


def paragraph(rng: random.Random) -> str:
    """Sentences that pass for English with the filters: many words, some of them small and common."""
    sentences = []
    for _ in range(6):
        words = ["".join(rng.choices("aeinorstlmd", k=rng.randint(3, 9))) for _ in range(10)]
        words[2:2] = rng.sample(["the", "of", "and", "to", "that", "with"], 3)
        sentences.append(" ".join(words).capitalize() + ".")
    return " ".join(sentences)
