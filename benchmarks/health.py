"""Does a resumed run go on as the same run, and do bad numbers ever reach a weight? Counted by topology.

    python benchmarks/health.py [--sample N] [--record]

Runs the tests' own injections (tests/parity/rank_resume.py, tests/faults/rank_poison.py, rank_rollback.py)
on two CPU ranks for every strategy and precision, with 1, 3 and 50 bad steps in a row. `--sample` takes the
first N trials of each kind. A trial that can't be run counts as failed. 0 failures of N say, with 95 %
confidence, that fewer than 3 of N fail.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import machine, publish

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "parity"), str(TESTS / "faults")]
from test_resume import CELLS  # noqa: E402
from worlds import RankFailedError, Worlds  # noqa: E402

Trial = tuple[str, dict[str, Any], Callable[[dict[str, Any]], bool]]


def _cell(ranks: int, pipeline: int, template: str, precision: str) -> dict[str, Any]:
    return {
        "ranks": ranks,
        "deepspeed": template,
        "precision": precision,
        "parallel": {"pipeline": pipeline},
        "limit_s": 600,
    }


def _clean(result: dict[str, Any]) -> bool:
    """Bad steps were skipped by all, nothing moved, training went on, a spike was withheld."""
    return (
        all(result["skipped"])
        and not any(result["finite"])
        and result["unchanged"]
        and result["recovered"]
        and result["withheld"]
    )


def trials() -> dict[str, list[Trial]]:
    """All trials by kind: (program, arguments, whether one rank's result is right)."""
    cells = [_cell(*cell) for cell in CELLS]
    fp32_or_bf16 = [cell for cell in cells if cell["precision"] != "fp16"]
    resume = "parity/rank_resume.py:resumed_twice"
    poison, floor = "faults/rank_poison.py:poison", "faults/rank_poison.py:at_floor"
    bad = list(itertools.product(("loss", "gradient"), ("nan", "inf"), (1, 3, 50)))
    held_twice = [
        cell for cell in fp32_or_bf16 if cell["parallel"]["pipeline"] == 1 and cell["deepspeed"] != "zero3"
    ]
    return {
        "resumed twice, dropout on: losses, norms, weights, moments": [
            (resume, {**cell, "model": "gpt_neox-dropout", "recompute": recompute}, _same)
            for cell, recompute in itertools.product(cells, ("none", "full"))
        ],
        "NaN or Inf in a loss or gradient, 1, 3, 50 in a row": [
            (poison, {**cell, "where": where, "value": value, "times": times}, _clean)
            for cell in fp32_or_bf16
            for where, value, times in bad
        ],
        "NaN in a weight: back to a checkpoint, as if it had not been": [
            ("faults/rank_rollback.py:healed", cell, lambda r: r["disturbed"] == r["straight"])
            for cell in fp32_or_bf16
        ],
        "a loss of 100 times: withheld or gone back from": [
            ("faults/rank_rollback.py:spiked", cell, _never_seen) for cell in fp32_or_bf16
        ],
        "a flipped bit of a weight that two ranks hold: found": [
            (poison, {**cell, "times": 0, "value": "nan"}, lambda r: "corrupted" in r["corrupted"])
            for cell in held_twice
        ],
        "fp16 at the floor of its scale: stopped": [
            (floor, {k: v for k, v in cell.items() if k != "precision"}, lambda r: "floor" in r["why"])
            for cell in cells
            if cell["precision"] == "fp16"
        ],
    }


def _same(result: dict[str, Any]) -> bool:
    return result["resumed"] == result["undisturbed"]


def _never_seen(result: dict[str, Any]) -> bool:
    return len({told["state"] for told in result.values()}) == 1


def _failed(worlds: Worlds, trial: Trial) -> str:
    """Why the trial failed, or an empty string."""
    program, arguments, right = trial
    try:
        results = worlds.run(program, **arguments)
    except RankFailedError as error:
        return str(error).splitlines()[0]
    wrong = [rank for rank, result in enumerate(results) if not right(result)]
    return f"ranks {wrong} are wrong" if wrong else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sample", type=int, metavar="N", help="the first N trials of each kind")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    worlds, lines, seen = Worlds(), [], []
    for kind, every in trials().items():
        chosen = every[: options.sample]
        failures = [(trial, why) for trial in chosen if (why := _failed(worlds, trial))]
        lines.append(f"| {kind} | {len(chosen)} | {len(failures)} | {min(1.0, 3 / len(chosen)):.1%} |")
        seen += [f"- {program} {arguments}: {why}" for (program, arguments, _), why in failures]
    worlds.close()
    head = ["| what | trials | failed | 95 % bound of 0 failures |", "|---|---|---|---|"]
    sample = f" --sample {options.sample}" if options.sample else ""
    body = "\n".join([machine(), "", *head, *lines, *(["", *seen] if seen else [])])
    publish("Exact resume and bad numbers", f"python benchmarks/health.py{sample}", body, options.record)
    raise SystemExit(1 if seen else 0)


if __name__ == "__main__":
    main()
