"""The loader's benchmark runs and prints its figures; how large they are is not a test's business."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[3] / "benchmarks/loader.py"


def test_the_loader_benchmark_prints_a_rate_for_every_packing_with_and_without_document_masks():
    sizes = ["--tokens", "400_000", "--seq-len", "64", "--rows", "16", "--seconds", "0.05"]
    done = subprocess.run([sys.executable, str(PROGRAM), *sizes], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = r"\| {} \| {} \| \d+\.\d \| \d+\.\d+% \| \d+\.\d+% \|\n"
    names = ("concat", "best_fit", "best_fit_crop")
    table = "".join(row.format(name, mask) for name in names for mask in ("false", "true"))
    assert re.search(table + r"\nGoal 100 M tokens/s: (met|missed)", done.stdout)
