"""Rows of the fault table about whole runs that are edited, disagree, or are killed all the time.

See rows_of_state for what a row is.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import yaml
from rows_of_state import KILLED, NotHereError, Outcome, differs
from small_disks import small_disk
from small_runs import build_dataset
from whole_runs import ENGINES, Lab, ledger

from llmtrain.report.account import account
from llmtrain.report.metrics import read_metrics

LONG_STEPS = 2000
DISK_BYTES = 32 << 20
# field: (value that is given when the run goes on, words of the refusal)
EDITS: dict[str, tuple[object, str]] = {
    "data.seq_len": (16, "seq_len (saved 32, now 16)"),
    "data.packing": ("best_fit", "dataset (saved"),
    "data.mask_documents": (False, "dataset (saved"),
    "data.train": ("another dataset", "dataset (saved"),
    "batch.rows": (8, "rows (saved 4, now 8)"),
    "seed": (7, "seed (saved 1234, now 7)"),
    "precision": ("bf16", "precision (saved fp32, now bf16)"),
    "model.config.hidden_size": (64, "hidden_size: saved 32, now 64"),
    "model.config.num_hidden_layers": (3, "model (num_hidden_layers: saved 2, now 3"),
    "model.config.model_type": ("qwen3", "model_type: saved 'llama', now 'qwen3'"),
    "model.config.rms_norm_eps": (1e-3, "model (rms_norm_eps: saved"),
    "tokenizer": ("another tokenizer", "vocab_size (saved 400, now 300)"),
}


def edited(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R24: one field is another when the run goes on: refused by name, with status 2, nothing touched."""
    field = list(EDITS)[number % len(EDITS)]
    value, words = EDITS[field]
    golden = lab.golden(schedule={"steps": 4})
    content = yaml.safe_load(golden.read_text())
    if value in ("another dataset", "another tokenizer"):
        content["data"]["train"][0]["path"] = content["data"]["eval"][0]["path"] = str(
            _other(lab, str(value))
        )
    else:
        *outer, name = field.split(".")
        section = content
        for key in outer:
            section = section[key]
        section[name] = value
    content["schedule"]["steps"] = 6
    edited = golden.with_name("edited.yaml")
    edited.write_text(yaml.safe_dump(content))
    before = _stamps(golden)
    said = lab.forked(edited)
    if "ended with 2" not in said or words not in said:
        return Outcome(f"{field} = {value}: {said[-400:] or 'it trained'}", cell=field)
    return Outcome("" if _stamps(golden) == before else "a file of the run was touched", cell=field)


def _other(lab: Lab, what: str) -> Path:
    """A dataset of the same tokenizer and other text, or of a smaller vocabulary."""
    folder = lab.folder / what.replace(" ", "-")
    if not folder.exists():
        folder.mkdir()
        build_dataset(folder)  # writes corpus.yaml, which is changed and built again
        corpus = yaml.safe_load((folder / "corpus.yaml").read_text())
        corpus["output"] = str(folder / "changed")
        if what == "another tokenizer":
            corpus["tokenizer"]["vocab_size"] = 300
        else:
            corpus["tokenizer"] = {"source": str(folder / "data" / "tokenizer")}
            corpus["splits"] = {"valid": 0.4}
        (folder / "corpus.yaml").write_text(yaml.safe_dump(corpus))
        from data_prep.build import build

        build(folder / "corpus.yaml", [])
    return folder / "changed"


def _stamps(run: Path) -> dict[str, int]:
    """What must not change when a run is refused."""
    folder = run.parent / "run"
    kept = [
        *folder.glob("checkpoints/*/*"),
        folder / "metrics.jsonl",
        folder / "config.yaml",
        folder / "ledger.json",
    ]
    return {str(path): path.stat().st_mtime_ns for path in kept}


# What rank 1 is told otherwise than rank 0: an override, its environment, or its code; words of the refusal.
QUARRELS = [
    ("seed=7", {}, "run file or overrides"),
    ("optimizer.lr=0.5", {}, "run file or overrides"),
    ("output_dir=OTHER", {}, "run folder"),
    ("data.seq_len=16", {}, "dataset"),
    ("deepspeed=zero2", {}, "DeepSpeed settings"),
    ("", {"NVIDIA_TF32_OVERRIDE": "1"}, "environment"),
    ("", {}, "(code)"),
]


CLOCKS_S = (1.0, 3600.0)  # so far beside rank 0's clock is rank 1's


def disagreeing(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R25: rank 1 was started with another run: found by all at the start, nothing written, no hang.

    With another clock the run is the undisturbed one.
    """
    number %= len(QUARRELS) + len(CLOCKS_S)
    run = lab.run()
    if number >= len(QUARRELS):
        offset, golden = CLOCKS_S[number - len(QUARRELS)], lab.golden()
        said = lab.forked(run, fault={"rank": 1, "place": "clock", "kind": "clock", "offset_s": offset})
        return Outcome(said or differs(run, golden), cell=f"a clock {offset:.0f} s fast")
    override, environment, words = QUARRELS[number]
    override = override.replace("OTHER", str(run.parent / "elsewhere"))
    began = time.monotonic()
    arguments = (f"@1:{override}",) if override else ()
    fault = {"rank": 1, "place": "code", "kind": "other code"} if words == "(code)" else None
    said = lab.forked(run, arguments=arguments, environment={"1": environment}, fault=fault)
    seconds, cell = time.monotonic() - began, override or words
    if "rank 1 was started with another run than rank 0" not in said or words not in said:
        return Outcome(f"{cell}: {said[-400:] or 'it trained'}", cell=cell)
    left = [path for path in run.parent.rglob("*") if path.name in ("COMMIT", "metrics.jsonl")]
    return Outcome(f"written: {left}" if left else "", seconds, cell)


def full_while_logging(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R10l: the run folder's disk is full for many steps: they go on, and no record of them is lost.

    Full to the end, the last save is lost and told; with room again, the run goes on to the undisturbed end.
    """
    changes = {**KILLED, "deepspeed": f"zero{number % 4}", "schedule": {"steps": 60}}
    golden, run = lab.golden(**changes), lab.run(**changes)
    fault = {"rank": 0, "place": "training", "kind": "fill", "step": draw.randint(7, 12)}
    fault["until"] = draw.randint(40, 58) if number // 4 % 2 else None
    cell = f"{changes['deepspeed']}, full from {fault['step']} until {fault['until']}"
    try:
        with small_disk(run.parent, DISK_BYTES) as disk:
            (disk / "run").mkdir()
            (run.parent / "run").symlink_to(disk / "run")
            said = lab.forked(run, fault={**fault, "disk": str(disk)})
            return Outcome(_after_a_full_disk(lab, run, said, fault) or differs(run, golden), cell=cell)
    except PermissionError as error:
        raise NotHereError(f"small disks can't be mounted: {error}") from error


def _after_a_full_disk(lab: Lab, run: Path, said: str, fault: dict[str, Any]) -> str:
    """What is wrong with how a run met a full disk; afterwards it is at its end."""
    records = list(read_metrics(run.parent / "run" / "metrics.jsonl"))
    if fault["until"] is not None:
        lost = [record for record in records if "save_lost" in record]
        return said or ("" if lost else "no save was lost: the disk was not full")
    if "ended with 1" not in said or "no space" not in said:
        return f"how it ended: {said[-600:] or 'well'}"
    if len([record for record in records if "loss" in record]) > 55:
        return "metrics.jsonl took all records: the disk was not full"
    (run.parent / "disk" / "filler").unlink()
    return lab.forked(run)


def killed_all_the_time(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R26: a longer run; all ranks are killed, on average 1 s and an eighth of its time after each start.

    The figure is the share of the steps' time that was trained twice.
    """
    engine = ENGINES[number % len(ENGINES)]
    changes = {**KILLED, **engine, "schedule": {"steps": LONG_STEPS}, "checkpoint": {"every": 20, "keep": 2}}
    golden = lab.golden(**changes)
    (start,) = ledger(golden)["starts"]
    whole = start["ended"]["at"] - start["at"]
    run = lab.run(**changes)
    kills = 0
    while said := lab.forked(run, limit_s=1 + draw.expovariate(8 / whole)):
        kills += 1
        if kills > 100 or "no end after" not in said:
            return Outcome(f"no end after {kills} kills: {said[-400:]}", cell=engine["deepspeed"])
    told = account(run.parent / "run")
    share = told.lost_s / (told.lost_s + told.useful_s)
    note = (
        f"{engine['deepspeed']}: {kills} kills, {told.lost_steps} steps twice, goodput {told.goodput:.0%}, "
        f"{growth(golden):.0f} KB more memory in 1,000 steps"
    )
    return Outcome(differs(run, golden), share, engine["deepspeed"], note)


def growth(run: Path) -> float:
    """How the largest rank's peak memory grows in the second half of a run: KB in 1,000 steps."""
    records = [r for r in read_metrics(run.parent / "run" / "metrics.jsonl") if "memory_bytes" in r]
    half = records[len(records) // 2 :]
    more = half[-1]["memory_bytes"] - half[0]["memory_bytes"]
    return more / 1e3 / (half[-1]["step"] - half[0]["step"]) * 1e3
