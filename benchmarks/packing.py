"""What packing costs and gives, from document lengths alone: time, padding, cropped tokens, documents cut.

    python benchmarks/packing.py [--documents 1_000_000] [--record]

Lengths are lognormal, exp(6.2 + 1.2 z) tokens, about as web text has them. `best_fit` must lose no token
and fill its rows to 99.9 %; both are checked by counting, not by trust in the plan.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from record import machine, publish  # noqa: E402

from llmtrain.data.fit import best_fit, fill_by_cropping  # noqa: E402

GOAL_SECONDS = 0.5  # CPU time for a million documents
GOAL_FULL = 0.999
SEQ_LENS = (512, 2048, 8192, 32768)


def row_of_table(lengths: np.ndarray, seq_len: int) -> tuple[list[str], float, float]:
    """Cells for one row length, CPU seconds of best_fit, and how full its rows are."""
    began = time.process_time()
    rest = lengths % seq_len
    fit = best_fit(rest, seq_len)
    seconds = time.process_time() - began
    assert np.array_equal(np.sort(fit.order), np.flatnonzero(rest)), "a piece is lost or read twice"
    filled = np.add.reduceat(rest[fit.order], fit.bounds[:-1])
    assert filled.max() <= seq_len, "a row is too long"
    rows = int((lengths // seq_len).sum()) + fit.rows
    full = int(lengths.sum()) / (rows * seq_len)
    unpadded = 1 - int((filled < seq_len).sum()) / rows
    ends = np.cumsum(lengths)
    inside = (ends[1:] - 1) // seq_len != ends[:-1] // seq_len  # begins and ends in different rows
    cut = float(inside.mean()), float((lengths > seq_len).mean())
    began = time.process_time()
    alone = lengths >= seq_len
    short = np.where(alone, 0, lengths)
    cropped = fill_by_cropping(best_fit(short, seq_len), short, seq_len)
    crop_seconds = time.process_time() - began
    lost = 1 - (cropped.rows + int(alone.sum())) * seq_len / int(lengths.sum())
    least = 1 - int(np.minimum(lengths, seq_len).sum()) / int(lengths.sum())
    cells = [f"{seq_len}", f"{seconds:.3f}", f"{rows:,}", f"{full:.4%}", f"{unpadded:.2%}"]
    cells += [f"{cut[0]:.1%}", f"{cut[1]:.1%}", f"{crop_seconds:.3f}", f"{lost:.2%}", f"{least:.2%}"]
    return cells, seconds, full


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    chosen = parser.parse_args()
    drawn = np.random.default_rng(0).lognormal(6.2, 1.2, chosen.documents)
    lengths = np.maximum(drawn, 1).astype(np.int64)
    head = ["row", "best_fit CPU s", "rows", "filled", "rows without padding", "documents cut by concat"]
    head += ["by best_fit", "best_fit_crop CPU s", "tokens cropped", "least possible"]
    lines = [f"{machine()}; {chosen.documents:,} documents, {lengths.sum() / 1e6:,.1f} M tokens.", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    found = [row_of_table(lengths, seq_len) for seq_len in SEQ_LENS]
    lines += ["| " + " | ".join(cells) + " |" for cells, _, _ in found]
    good = all(seconds < GOAL_SECONDS and full >= GOAL_FULL for _, seconds, full in found)
    goal = f"every row length in {GOAL_SECONDS} CPU s, rows {GOAL_FULL:.1%} filled, no token lost"
    lines += ["", f"Goal ({goal}): {'met' if good else 'missed'}."]
    command = "python " + " ".join(["benchmarks/packing.py", *sys.argv[1:]])
    publish("Packing documents into rows", command, "\n".join(lines), chosen.record)


if __name__ == "__main__":
    main()
