"""The benchmarks of loader and packing run and print their figures, whose size is not a test's business."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parents[3] / "benchmarks"


def test_the_loader_benchmark_prints_a_rate_for_every_packing_with_and_without_document_masks():
    sizes = ["--tokens", "400_000", "--seq-len", "64", "--rows", "16", "--seconds", "0.05"]
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "loader.py"), *sizes], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    row = r"\| {} \| {} \| \d+\.\d \| \d+\.\d+% \| \d+\.\d+% \|\n"
    names = ("concat", "best_fit", "best_fit_crop")
    table = "".join(row.format(name, mask) for name in names for mask in ("false", "true"))
    assert re.search(table + r"\nGoal 100 M tokens/s: (met|missed)", done.stdout)


def test_the_packing_benchmark_counts_what_packing_does():
    command = [sys.executable, str(PROGRAMS / "packing.py"), "--documents", "20_000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r"\| (\d+) \| [\d.]+ \| [\d,]+ \| ([\d.]+)% .* \| ([\d.]+)% \| ([\d.]+)% \|", done.stdout
    )
    assert [int(seq_len) for seq_len, *_ in rows] == [512, 2048, 8192, 32768]
    assert all(float(full) > 99 and float(lost) >= float(least) for _, full, lost, least in rows)
    assert re.search(r"no token lost\): (met|missed)", done.stdout)
