"""The rows of the fault table that come from outside: bad data (D1 to D6) and hostile files (S1 to S5).

    python benchmarks/untrusted.py [--rows D1 S2 …] [--scale 0.1] [--seed 1] [--record]

One line of Markdown per row: trials, failures, and for 0 failures in N trials the 95 % bound 3/N. `--scale`
takes that fraction of the trials, at least one. A trial that can't be started is a failure; a row that this
machine can't run is listed with the reason. Every trial's line goes to stderr. docs/faults.md says what each
row promises. Exits with 1 when a trial failed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bad_input
from data_crash import World
from record import machine, publish

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), *(str(TESTS / folder) for folder in ("data_prep", "faults"))]
import rows_of_data as data  # noqa: E402
import rows_of_paths as paths  # noqa: E402
import rows_of_secrets as secrets  # noqa: E402
import rows_of_strangers as strangers  # noqa: E402

Trial = Callable[[Path, int, random.Random], str]
BOMB_GB = 10
BOMB_MB = 100  # what may be held of it above the start: max_document_bytes of 16 MB, a few times


@dataclass(frozen=True)
class Row:
    """One line of the table. `shared`: all its trials have one folder, and build on what the first made."""

    id: str
    fault: str
    trials: int
    run: Trial
    shared: bool = False


def killed_build(folder: Path, number: int, draw: random.Random) -> str:
    """D3: a build of 1, 2 or 4 workers, its helper or a worker gets SIGKILL; the next one gives the bytes."""
    if number == 0 or folder not in _worlds:
        _worlds[folder] = World(folder)
    outcome = _worlds[folder].trial(draw.getrandbits(20) * 50 + number)
    return "" if outcome.same else f"another dataset, or something left: {outcome}"


_worlds: dict[Path, World] = {}


def bomb(folder: Path, number: int, draw: random.Random) -> str:
    """D2: one line of 10 GB of one letter, packed, between two good ones: too large, and never held."""
    suffix = list(data.PACKERS)[number % len(data.PACKERS)]
    outcome, peak = bad_input.bomb(folder, suffix, BOMB_GB)
    return "" if outcome == "2 1 too large" and peak < BOMB_MB else f"{suffix}: {outcome}, {peak:.0f} MB held"


ROWS = [
    Row(
        "D1", "bad lines of 14 kinds: alone, mixed, with one of 50 MB; lenient, strict", 100, data.mixed_lines
    ),
    Row("D2", "gz, zst, bz2, xz, parquet: cut, or bits flipped", 500, data.cut_or_flipped),
    Row("D2", f"a bomb of {BOMB_GB} GB: gz, zst, bz2, xz", 4, bomb),
    Row("D3", "kill -9 in a build of 1, 2, 4 workers", 50, killed_build, shared=True),
    Row("D3", "a disk that fills in a build of 1, 2, 4 workers", 12, data.full_disk),
    Row("D4", "a shard's bits, length, place", 200, data.damaged_dataset, shared=True),
    Row("D5", "65 499 to 65 537 and 128 000 ids; an id beyond them", 7, data.vocabulary),
    Row("D6", "10 000 random texts, there and back", 3, data.round_trip),
    Row("S1", "3 kinds of pickle in place of 36 files", 108, strangers.pickle_in_place, shared=True),
    Row("S2", "names and links that lead out", len(paths.DOORS), paths.traversal, shared=True),
    Row("S3", "8 secrets, the whole way with failures", 8, secrets.secret, shared=True),
    Row("S4", "code and kernels of a model", len(strangers.CODE), strangers.code_of_a_model, shared=True),
    Row("S5", "umask 000", 4, secrets.modes, shared=True),
]


def carry_out(row: Row, trials: int, seed: int, home: Path) -> tuple[str, int]:
    """The row's line, and its failures."""
    failures = 0
    folder = Path(tempfile.mkdtemp(dir=home))
    for number in range(trials):
        began = time.monotonic()
        try:
            broken = row.run(folder, number, random.Random(f"{seed} {row.id} {number}"))
        except PermissionError as error:
            return f"| {row.id} | {row.fault} | 0 | not run: {error} | |", 0
        except Exception as error:  # noqa: BLE001 - a trial that can't be started counts as a failure
            broken = f"{type(error).__name__}: {str(error)[-500:]}"
        failures += bool(broken)
        verdict = f"FAILED: {broken}" if broken else "good"
        took = time.monotonic() - began
        print(f"{row.id} trial {number}: {verdict} [{took:.1f} s]", file=sys.stderr, flush=True)
        if not row.shared:
            shutil.rmtree(folder)
            folder.mkdir()
    bound = f"{min(1.0, 3 / trials):.1%}" if not failures else ""
    return f"| {row.id} | {row.fault} | {trials} | {failures} | {bound} |", failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {row.id: row for row in ROWS}
    parser.add_argument("--rows", nargs="*", choices=list(known), default=list(known), metavar="ROW")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="add it to benchmarks/results")
    options = parser.parse_args()
    table = ["| row | fault | trials | failures | 95 % bound |", "|---|---|---|---|---|"]
    failed, home = 0, Path(tempfile.mkdtemp(prefix="untrusted-"))
    try:
        for row in (row for row in ROWS if row.id in options.rows):
            line, failures = carry_out(row, max(1, round(row.trials * options.scale)), options.seed, home)
            print(line, flush=True)
            table.append(line)
            failed += failures
    finally:
        shutil.rmtree(home, ignore_errors=True)
    command = f"python benchmarks/untrusted.py --scale {options.scale} --seed {options.seed}"
    command += f" --rows {' '.join(options.rows)}" if options.rows != list(known) else ""
    publish("Data and files from outside", command, f"{machine()}\n\n" + "\n".join(table), options.record)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
