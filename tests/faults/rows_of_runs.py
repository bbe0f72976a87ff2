"""Rows of the fault table about whole runs that are edited, disagree, or are killed all the time.

See rows_of_state for what a row is.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import yaml
from rows_of_state import KILLED, Outcome, differs
from small_runs import build_dataset
from whole_runs import Lab, committed, ledger, losses

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


# What rank 1 is told otherwise than rank 0: an override, or its environment; words of the refusal.
QUARRELS = [
    ("seed=7", {}, "run file or overrides"),
    ("optimizer.lr=0.5", {}, "run file or overrides"),
    ("output_dir=OTHER", {}, "run folder"),
    ("data.seq_len=16", {}, "dataset"),
    ("deepspeed=zero2", {}, "DeepSpeed settings"),
    ("", {"NVIDIA_TF32_OVERRIDE": "1"}, "environment"),
]


def disagreeing(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R25: rank 1 was started with another run: found by all at the start, nothing written, no hang."""
    override, environment, words = QUARRELS[number % len(QUARRELS)]
    run = lab.run()
    override = override.replace("OTHER", str(run.parent / "elsewhere"))
    began = time.monotonic()
    arguments = (f"@1:{override}",) if override else ()
    said = lab.forked(run, arguments=arguments, environment={"1": environment})
    seconds = time.monotonic() - began
    if "was started with another run than rank 0" not in said or words not in said:
        return Outcome(f"{override}: {said[-400:] or 'it trained'}", cell=override)
    left = [path for path in run.parent.rglob("*") if path.name in ("COMMIT", "metrics.jsonl")]
    return Outcome(f"written: {left}" if left else "", seconds, override or str(environment))


def killed_all_the_time(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R26: a longer run of which all ranks are killed on average every 4 times what a start takes.

    The figure is the share of the steps' time that was trained twice.
    """
    changes = {**KILLED, "schedule": {"steps": 400}, "checkpoint": {"every": 10, "keep": 2}}
    golden = lab.golden(**changes)
    (start,) = ledger(golden)["starts"]
    whole = start["ended"]["at"] - start["at"]
    run = lab.run(**changes)
    for _ in range(100):
        last = max(committed(run), default=0)
        if not lab.forked(run, limit_s=draw.expovariate(1 / (whole / 2)) + 1):
            break
    starts = ledger(run)["starts"]
    lost = sum(each["lost_steps"] for each in starts)
    broken = differs(run, golden) if len(losses(run)) == 400 else f"it ended at {last}"
    return Outcome(broken, lost / (400 + lost), f"{len(starts)} starts, {lost} steps twice")
