"""Rows of the fault table that need no process tree: what runs, checkpoints and numbers come to.

A row is a function `row(lab, number, draw)`: trial `number`, with what it draws from `draw`; an Outcome.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import checkpoint_faults
import rank_save_kills
from whole_runs import DROPOUT, ENGINES, Lab, committed, ledger, losses, weights
from worlds import RankFailedError

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
import test_checkpoints as elastic  # noqa: E402
import test_resume as resume  # noqa: E402

from llmtrain.report.metrics import read_metrics  # noqa: E402

EVERY = 3
KILLED = {
    "schedule": {"steps": 24},
    "checkpoint": {"every": EVERY, "keep": 2},
    "eval": {"rows": 5, "every": 8},
}


@dataclass(frozen=True)
class Outcome:
    """One trial: which promise broke (or nothing), a figure of which the largest is told, what was tried.

    `note` is something to be told that no promise covers; `kills` are those of a chain of starts.
    """

    broken: str = ""
    worst: float = 0.0
    cell: str = ""
    note: str = ""
    kills: int = 0


class NotHereError(Exception):
    """The row can't be run on this machine, and why."""


def start_again(lab: Lab, run: Path, ranks: int = 2, limit_s: float = 240) -> tuple[str, str, int]:
    """How the start failed, if it did; whether it was not from the newest commit; steps trained again."""
    last, before = max(committed(run), default=0), len(_starts(run))
    said = lab.forked(run, ranks, limit_s=limit_s)
    new = _starts(run)[before:]  # none when it was killed too early, or nothing is left to do
    wrong = [start["from_step"] for start in new if start["from_step"] != last]
    broken = f"it went on from step {wrong[0]}, though {last} was committed" if wrong else ""
    return said, broken, sum(start["lost_steps"] for start in new)


def _starts(run: Path) -> list[dict[str, Any]]:
    return ledger(run)["starts"] if (run.parent / "run" / "ledger.json").exists() else []


def goes_on(lab: Lab, run: Path, golden: Path, ranks: int = 2) -> Outcome:
    """The run is started again: from its last commit, to the same end, to the last bit."""
    said, broken, lost = start_again(lab, run, ranks)
    if said:
        return Outcome(f"it does not go on: {said[-600:]}")
    return Outcome(broken or differs(run, golden), lost)


def differs(run: Path, golden: Path) -> str:
    """How a finished run is not the undisturbed one."""
    ours, theirs = losses(run), losses(golden)
    if ours != theirs:
        at = next((a for a, b in zip(ours, theirs, strict=False) if a != b), f"{len(ours)} steps")
        return f"metrics differ from the undisturbed run's at {at}"
    return "" if weights(run) == weights(golden) else "the final weights differ"


def same_rows(run: Path, golden: Path) -> bool:
    """Whether every step is there once, with the undisturbed run's tokens and lr, whatever the topology."""
    ours, theirs = ([(step, *rest) for step, _, _, *rest in losses(each)] for each in (run, golden))
    return ours == theirs


def _moment(golden: Path, last: int, draw: random.Random) -> float:
    """So many seconds after a start from step `last` its ranks are killed: anywhere in what it takes."""
    (start,) = ledger(golden)["starts"]
    records = read_metrics(golden.parent / "run" / "metrics.jsonl")
    done = sum(record["step_s"] for record in records if "loss" in record and record["step"] <= last)
    return draw.uniform(0, start["ended"]["at"] - start["at"] + 1.0 - done)


def killed_anywhere(lab: Lab, number: int, draw: random.Random, most_kills: int = 1) -> Outcome:
    """R1: all ranks get SIGKILL at a random moment of their start; so again and again; then the run goes on.

    Dropout, in every kind of engine. Each start is from the newest commit, also one that is killed.
    """
    engine, precision = ENGINES[number % len(ENGINES)], ("fp32", "bf16")[number // len(ENGINES) % 2]
    changes = {**KILLED, **engine, "precision": precision, "model": {"config": DROPOUT}}
    golden, run, worst, kills = lab.golden(**changes), lab.run(**changes), 0, 0
    cell = f"{engine['deepspeed']} {precision}"
    for _ in range(draw.randint(1, most_kills)):
        limit_s = _moment(golden, max(committed(run), default=0), draw)
        said, broken, lost = start_again(lab, run, limit_s=limit_s)
        worst = max(worst, lost)
        if not broken and said and "no end after" not in said:
            broken = f"it ended before it was killed: {said[-600:]}"
        if broken or not said:
            break
        kills += 1
    end = Outcome(broken) if broken else goes_on(lab, run, golden)
    worst = max(worst, end.worst)
    if not end.broken and worst > 2 * EVERY:  # one save is under way at most
        return Outcome(f"{worst:.0f} steps were trained again", worst, cell, kills=kills)
    return replace(end, worst=worst, cell=f"{cell}, {kills} killed", kills=kills)


def killed_in_save(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R2: one rank dies at a point inside the save of a real engine."""
    cells = rank_save_kills.cells()
    stage, rank, point = cells[number % len(cells)]
    folder = lab.run().parent
    arguments = {"folder": str(folder), "victim": rank, "point": point, "stage": stage}
    try:
        lab.worlds.run("faults/rank_save_kills.py:save_and_die", 2, **arguments)
        return Outcome("no rank died")
    except RankFailedError:
        cell = f"zero{stage}, rank {rank}, {point}"
        return Outcome(rank_save_kills.judge(folder, rank, point), cell=cell)


def killed_in_load_or_export(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R3: SIGKILL while a resume loads, or while the run is exported; the second attempt is whole."""
    changes = {**KILLED, "deepspeed": "zero1"}
    golden, run = lab.golden(**changes), lab.run(**changes)
    if number % 2 == 0:
        third = 3 * EVERY  # the first is on disk by then, as a save waits for the one before
        lab.forked(run, fault={"rank": number // 2 % 2, "place": "saving", "step": third, "kind": "kill"})
        (run.parent / "struck").unlink(missing_ok=True)
        said = lab.forked(run, fault={"rank": draw.randrange(2), "place": "loading", "kind": "kill"})
        if "ended with -9" not in said:
            return Outcome(f"nobody was killed in load: {said[-300:]}")
        return goes_on(lab, run, golden)
    arguments = {"run": str(golden.parent / "run"), "out": str(golden.parent / "export")}
    began = time.monotonic()
    if not Path(arguments["out"]).exists():
        lab.worlds.run("faults/rank_faulty.py:export_run", **arguments)
        lab.folder.joinpath("export_s").write_text(str(time.monotonic() - began))
    limit = draw.uniform(0, float(lab.folder.joinpath("export_s").read_text()))
    mine = {**arguments, "out": str(run.parent / "export")}
    try:
        lab.worlds.run("faults/rank_faulty.py:export_run", 1, limit, **mine)
    except RankFailedError:
        lab.worlds.run("faults/rank_faulty.py:export_run", **mine)
    same = _files(Path(mine["out"])) == _files(Path(arguments["out"]))
    left = sorted(path.name for path in run.parent.iterdir() if path.name not in ("run.yaml", "export"))
    return Outcome("" if same and not left else f"the export differs, or something was left: {left}")


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def preempted_again_and_again(lab: Lab, number: int, draw: random.Random, steps: int = 24) -> Outcome:
    """R4: killed after every one to four saves until it is done; the end is the undisturbed run's.

    The rows are a mixture of two splits, packed, and a step accumulates.
    """
    train = [{"path": str(lab.dataset), "weight": 3}, {"path": str(lab.dataset), "split": "valid"}]
    data = {"train": train, "eval": train[1:], "seq_len": 32, "packing": "best_fit"}
    changes = {**KILLED, "schedule": {"steps": steps}, "deepspeed": f"zero{number % 4}"}
    changes |= {"data": data, "batch": {"rows": 8, "micro": 2}}
    golden = lab.golden(**changes)
    run, chain, worst = lab.run(**changes), 0, 0.0
    for chain in range(1, 25):
        at = max(committed(run), default=0) + EVERY * draw.randint(1, 4) + draw.randint(0, EVERY - 1)
        (run.parent / "struck").unlink(missing_ok=True)
        last = max(committed(run), default=0)
        said = lab.forked(run, fault={"rank": -1, "place": "update", "step": at, "kind": "kill"})
        start = ledger(run)["starts"][-1]
        if start["from_step"] != last:
            return Outcome(f"start {chain} was from step {start['from_step']}, {last} was committed")
        worst = max(worst, start["lost_steps"])
        if not said:
            break
    return Outcome(differs(run, golden), worst, f"{chain} starts", kills=chain - 1)


def resumed_cell(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R5: two resumes, with dropout, accumulation and evaluations, in every kind of engine."""
    ranks, pipeline, template, precision = resume.CELLS[number % len(resume.CELLS)]
    results = lab.worlds.run(
        "parity/rank_resume.py:resumed_twice",
        ranks,
        model="gpt_neox-dropout",
        deepspeed=template,
        precision=precision,
        recompute=["none", "selective", "full"][number // len(resume.CELLS) % 3],
        parallel={"pipeline": pipeline},
        batch={"rows": 8, "micro": 2},
    )
    same = all(result["resumed"] == result["undisturbed"] for result in results)
    return Outcome("" if same else "a resumed run differs", cell=f"{template} pp{pipeline} {precision}")


def another_topology(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R6: saved at one topology, loaded at another; the figure is how far a loss is off, relatively."""
    pairs = [(s, t) for s in elastic.SAVED_AT for t in elastic.LOADED_AT]
    saved_at, loaded_at = pairs[number % len(pairs)]
    folder = lab.run().parent
    settings = {"model": "llama-tied", "precision": "fp32"}
    expected = elastic._run(lab.worlds, "save_at", saved_at, folder, **settings)[0]["losses"]
    found = elastic._run(lab.worlds, "load_at", loaded_at, folder, **settings)[0]["losses"]
    apart = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
    broken = apart > 1e-5 or (saved_at == loaded_at and apart > 0)
    return Outcome(f"losses are {apart:.1e} apart" if broken else "", apart, f"{saved_at} to {loaded_at}")


def stopped_and_resumed_elsewhere(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R6, whole runs: stopped at 2 ranks, killed at 1, finished at 3; same rows, losses to 1e-5."""
    changes = {**KILLED, "batch": {"rows": 6}, "deepspeed": f"zero{number % 4}"}
    golden, run = lab.golden(**changes), lab.run(**changes)
    first, second = draw.randint(4, 10), draw.randint(13, 20)
    lab.forked(run, 2, {"rank": -1, "place": "update", "step": first, "kind": "kill"})
    (run.parent / "struck").unlink(missing_ok=True)
    lab.forked(run, 1, {"rank": -1, "place": "update", "step": second, "kind": "kill"})
    said = lab.forked(run, 3)
    if said:
        return Outcome(f"three ranks can't go on: {said[-600:]}")
    worlds = [start["topology"]["world"] for start in ledger(run)["starts"]]
    ours, theirs = losses(run), losses(golden)
    if worlds != [2, 1, 3] or not same_rows(run, golden):
        return Outcome(f"starts at {worlds}; steps, tokens or lr differ")
    apart = max(abs(float(a[1]) - float(b[1])) / float(b[1]) for a, b in zip(ours, theirs, strict=True))
    return Outcome("" if apart <= 1e-5 else f"losses are {apart:.1e} apart", apart)


def flipped_bit(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R7"""
    return _damaged(lab, "a flipped bit", draw)


def damaged_files(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R8"""
    others = ["a flipped bit", *checkpoint_faults.REPLACED]
    kinds = [kind for kind in checkpoint_faults.DAMAGE if kind not in others]
    return _damaged(lab, kinds[number % len(kinds)], draw)


def replaced_files(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R9"""
    kinds = list(checkpoint_faults.REPLACED)
    return _damaged(lab, kinds[number % len(kinds)], draw)


def _damaged(lab: Lab, kind: str, draw: random.Random) -> Outcome:
    return Outcome(checkpoint_faults.damaged(_shared(lab, "damaged"), kind, draw.getrandbits(32)), cell=kind)


def _shared(lab: Lab, name: str) -> Path:
    folder = lab.folder / name
    folder.mkdir(exist_ok=True)
    return folder


def full_disk(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R10: a disk with room for 5 to 110 % of a second checkpoint."""
    percent, wait, preflight = 5 + number * 5 % 110, bool(number & 1), bool(number & 2)
    try:
        broken = checkpoint_faults.disk_full(lab.run().parent, percent, wait, preflight)
    except PermissionError as error:
        raise NotHereError(f"small disks can't be mounted: {error}") from error
    return Outcome(broken, cell=f"{percent} %")


def failing_disk(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R11: EIO, ENOSPC, EDQUOT, EROFS at the k-th write; a disk that becomes read-only."""
    if number % 5:
        return Outcome(checkpoint_faults.failing_writes(lab.run().parent, draw.getrandbits(32)))
    try:
        return Outcome(checkpoint_faults.read_only_disk(lab.run().parent, wait=number % 2 == 0))
    except PermissionError as error:
        raise NotHereError(f"small disks can't be mounted: {error}") from error


def slow_writers(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R12, R13: SIGKILL while saves overlap, rank 1's disk is slow, 1 to 3 checkpoints are kept."""
    return Outcome(checkpoint_faults.killed_at_a_moment(lab.run().parent, draw.getrandbits(32)))


def any_operation(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R13: killed before the n-th file operation of three saves."""
    at, keep, wait = 2 + number, draw.randint(1, 3), draw.random() < 0.3
    return Outcome(checkpoint_faults.killed_at_operation(lab.run().parent, at, keep, wait)[0])


STAGES = [
    *[(1, f"zero{stage}", precision) for stage in range(4) for precision in ("fp32", "bf16")],
    (2, "zero0", "fp32"),
    (2, "pipeline", "fp32"),
    (2, "pipeline", "bf16"),
]


def bad_numbers(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R14: NaN or Inf in the loss or the gradient of one rank, 1, 3 or 50 times in a row."""
    pipeline, template, precision = STAGES[number % len(STAGES)]
    times = (1, 3, 50)[number // len(STAGES) % 3]
    value, where = draw.choice(["nan", "inf"]), draw.choice(["loss", "gradient"])
    sections = {"deepspeed": template, "precision": precision, "parallel": {"pipeline": pipeline}}
    program = "faults/rank_poison.py:poison"
    cell = f"{template} pp{pipeline} {precision} {times} × {value} in {where}"
    for result in lab.worlds.run(program, 2, times=times, value=value, where=where, **sections):
        if not (all(result["skipped"]) and len(result["skipped"]) == times):
            return Outcome("a step was not skipped", cell=cell)
        if not result["unchanged"] or any(result["finite"]) or not result["recovered"]:
            return Outcome("a weight moved, or the run did not recover", cell=cell)
    return Outcome(cell=cell)


SCALED = [(1, "zero1"), (1, "zero2"), (1, "zero3"), (2, "pipeline")]


def scale_at_floor(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R16: fp16 whose loss scale can't go lower: a stop with a sentence, and nothing has moved."""
    pipeline, template = SCALED[number % len(SCALED)]
    sections = {"deepspeed": template, "parallel": {"pipeline": pipeline}}
    for result in lab.worlds.run("faults/rank_poison.py:at_floor", 2, **sections):
        if not (result["skipped"] and result["unchanged"] and "at its floor of 1" in result["why"]):
            return Outcome(f"{result}", cell=template)
    return Outcome(cell=template)


def spike(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R15: the loss is 100 times too large in one step; it is skipped, or gone back from and passed over."""
    answer, at = ("skip", "rollback", "stop", "report")[number % 4], draw.randint(34, 44)
    run = lab.run(
        schedule={"steps": 46},
        checkpoint={"every": 10},
        health={"on_spike": answer},
        deepspeed=f"zero{number // 4 % 4}",
    )
    said = lab.forked(run, fault={"rank": -1, "place": "training", "step": at, "kind": "spike"})
    known = {step for step, *_ in losses(run)}
    if answer == "stop":
        stopped = f"the loss of step {at} is a spike" in said and "ended with 1" in said
        return Outcome("" if stopped else f"not stopped: {said[-300:]}", cell=answer)
    if said:
        return Outcome(f"the run failed: {said[-600:]}", cell=answer)
    records = [json.loads(line) for line in (run.parent / "run/metrics.jsonl").read_text().splitlines()]
    skipped = [record["step"] for record in records if record.get("skipped")]
    back = ledger(run)["rollbacks"]
    wanted = {"skip": [at], "rollback": [], "report": []}[answer]
    passed = [rollback["passed_over"] for rollback in back]
    right = skipped == wanted and passed == ([[at, at]] if answer == "rollback" else [])
    whole = known | ({at} if answer == "rollback" else set()) == set(range(1, 47))
    finite = all(math.isfinite(float(loss)) for _, loss, *_ in losses(run))
    broken = "" if right and whole and finite else f"spike at {at}: skipped {skipped}, passed over {passed}"
    return Outcome(broken, cell=answer)


def clear(lab: Lab) -> None:
    """Removes the trials that are over; the undisturbed runs stay."""
    kept = {path.parent for path in lab._golden.values()}
    for folder in lab.folder.glob("trial-*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
