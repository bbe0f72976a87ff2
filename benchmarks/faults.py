"""The fault table: each fault is put in so many times, and what was promised is checked each time.

    python benchmarks/faults.py [--rows R1 R17 …] [--scale 0.1] [--seed 1] [--record]

One line of Markdown per row: trials, failures, the largest figure that was seen, and for 0 failures in N
trials the 95 % bound 3/N. `--scale` takes that fraction of the trials, at least one. A trial that can't be
started is a failure; a row that this machine can't run is listed with the reason. Every trial's line goes to
stderr. docs/faults.md says what each row promises. Exits with 1 when a trial failed.
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
from functools import partial
from pathlib import Path

from record import machine, publish

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]
import rows_of_elastic as starts  # noqa: E402
import rows_of_networks as networks  # noqa: E402
import rows_of_processes as processes  # noqa: E402
import rows_of_runs as runs  # noqa: E402
import rows_of_state as state  # noqa: E402
from whole_runs import Lab  # noqa: E402
from worlds import Worlds  # noqa: E402


@dataclass(frozen=True)
class Row:
    """One line of the table; `figure` says what its trials measure."""

    id: str
    fault: str
    trials: int
    run: Callable[[Lab, int, random.Random], state.Outcome]
    figure: str = ""


LOST, SECONDS, APART = "steps trained again", "s", "of a loss apart"
TWICE = "of the time twice"
BEYOND, WHOLE = "s beyond the limit", "s for the whole run"
CHAINS = partial(state.killed_anywhere, most_kills=3)
PREEMPTED = partial(state.preempted_again_and_again, steps=60)
ROWS = [
    Row("R1", "kill -9 of all ranks at random moments of 1 to 3 starts, then resume", 110, CHAINS, LOST),
    Row("R2", "kill -9 of a rank inside a save: point × rank × stage", 72, state.killed_in_save),
    Row("R3", "kill -9 while a resume loads, or in an export", 100, state.killed_in_load_or_export, LOST),
    Row("R4", "killed after every 1 to 4 saves until 60 steps of a mixture are done", 20, PREEMPTED, LOST),
    Row("R5", "resumed twice, every kind of engine, dropout", 45, state.resumed_cell),
    Row("R6", "saved at one topology, loaded at another", 45, state.another_topology, APART),
    Row(
        "R6w",
        "killed at 2 ranks, killed at 1, finished at 3",
        12,
        state.stopped_and_resumed_elsewhere,
        APART,
    ),
    Row(
        "R6k",
        "5 kills, each resumed on 1 to 4 ranks × stage × pipeline",
        100,
        starts.resumed_everywhere,
        APART,
    ),
    Row("R7", "one flipped bit in any file of a checkpoint", 300, state.flipped_bit),
    Row("R8", "cut, empty, missing, swapped, foreign files", 120, state.damaged_files),
    Row("R9", "COMMIT or the manifest is something else", 56, state.replaced_files),
    Row("R10", "a disk that fills", 40, state.full_disk),
    Row("R10l", "the run folder's disk is full while steps are logged", 24, runs.full_while_logging),
    Row("R11", "EIO, quota, full or read-only disk at a write", 30, state.failing_disk),
    Row("R12, R13", "kill -9 while saves overlap and one disk is slow", 70, state.slow_writers),
    Row("R13", "killed before the n-th file operation of three saves", 120, state.any_operation),
    Row("R14", "NaN or Inf on one rank, 1, 3, 50 times in a row", 66, state.bad_numbers),
    Row("R15", "a loss 100 times too large", 16, state.spike),
    Row("R16", "the fp16 loss scale at its floor", 4, state.scale_at_floor),
    Row("R17", "a rank dies: 4 kinds × 6 phases", 72, processes.dead_rank, SECONDS),
    Row("R18", "a rank hangs, or never comes: 7 kinds × 5 engines", 35, processes.hung_rank, BEYOND),
    Row("R19", "a rank is 3 times slower: 2 ways × 5 engines", 20, processes.slow_rank, "times its peers"),
    Row("R19c", "no rank is slow: 5 engines", 20, processes.no_slow_rank),
    Row("R20", "the network between two machines is cut", 20, networks.cut_network, BEYOND),
    Row("R20b", "the network is bad, late or blocked: 5 ways × ZeRO 0 to 3", 20, networks.bad_network, WHOLE),
    Row("R21", "asked to stop, in 14 ways", 70, processes.asked_to_stop, SECONDS),
    Row("R22", "kill -9 of a layer of a launcher", 30, processes.killed_launcher, SECONDS),
    Row("R23", "the lock of a killed build", 10, processes.stale_lock, WHOLE),
    Row("R24", "one of 12 fields edited before a resume", 12, runs.edited),
    Row("R25", "ranks that disagree, clocks too", 18, runs.disagreeing, SECONDS),
    Row("R26", "2,000 steps, killed all the time: 5 engines", 5, runs.killed_all_the_time, TWICE),
    Row(
        "restart", "a rank killed under torchrun --max-restarts", 6, processes.restarted_by_torchrun, SECONDS
    ),
    Row("machines", "2 machines, 1, 2 under torchrun", 8, starts.machines_that_leave_and_join, APART),
    Row("twice", "a run that is started twice", 12, starts.started_twice, SECONDS),
]


def carry_out(row: Row, lab: Lab, trials: int, seed: int) -> tuple[str, int]:
    """The row's line, and its failures."""
    outcomes: list[state.Outcome] = []
    for number in range(trials):
        began = time.monotonic()
        try:
            outcome = row.run(lab, number, random.Random(f"{seed} {row.id} {number}"))
        except state.NotHereError as error:
            return f"| {row.id} | {row.fault} | 0 | not run: {error} | | |", 0
        except Exception as error:  # noqa: BLE001 - a trial that can't be started counts as a failure
            outcome = state.Outcome(f"{type(error).__name__}: {str(error)[-500:]}")
        outcomes.append(outcome)
        verdict = f"FAILED: {outcome.broken}" if outcome.broken else f"good, {outcome.worst:.3g}"
        line = f"{row.id} trial {number} ({outcome.cell}): {verdict} [{time.monotonic() - began:.0f} s]"
        print(line, file=sys.stderr, flush=True)
        state.clear(lab)
    failures = sum(bool(outcome.broken) for outcome in outcomes)
    notes = sorted({outcome.note for outcome in outcomes if outcome.note})
    kills = sum(outcome.kills for outcome in outcomes)
    told = [f"{kills} kills in {trials} chains"] if kills else []
    fault = f"{row.fault} ({'; '.join([*told, *notes])})" if told or notes else row.fault
    worst = f"{max(outcome.worst for outcome in outcomes):.3g} {row.figure}" if row.figure else ""
    bound = f"{min(1.0, 3 / trials):.1%}" if not failures else ""
    return f"| {row.id} | {fault} | {trials} | {failures} | {worst} | {bound} |", failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="*", help="by id; all when left out")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="add it to benchmarks/results")
    options = parser.parse_args()
    known = {row.id: row for row in ROWS}
    strange = [name for name in options.rows or () if name not in known]
    if strange:
        parser.error(f"no such row: {', '.join(strange)}; there are {', '.join(known)}")
    chosen = [known[name] for name in options.rows] if options.rows else ROWS
    table = ["| row | fault | trials | failures | worst | 95 % bound |", "|---|---|---|---|---|---|"]
    failed, worlds, folder = 0, Worlds(), Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        lab = Lab(folder, worlds)
        for row in chosen:
            line, failures = carry_out(row, lab, max(1, round(row.trials * options.scale)), options.seed)
            print(line, flush=True)
            table.append(line)
            failed += failures
    finally:
        worlds.close()
        shutil.rmtree(folder, ignore_errors=True)
    command = f"python benchmarks/faults.py --scale {options.scale} --seed {options.seed}"
    command += f" --rows {' '.join(repr(row.id) for row in chosen)}" if options.rows else ""
    publish("Faults", command, f"{machine()}\n\n" + "\n".join(table), options.record)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
