"""A run that has begun, as its folder shows it without torch: where it stands, and what it can't go on with.

Checkpoints are read here only as far as a start needs in order to refuse early; `llmtrain.checkpoint`
verifies and loads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.errors import CheckpointError

# What a run can't change, and what to do about each; the model is compared where its configuration is known.
ADVICE = {
    "dataset": "the datasets, their order, their shares, data.packing or data.mask_documents differ, or the "
    "length of a run whose phases or token budgets depend on it; a run goes on with the rows it began with: "
    "for others start a new run with model.source set to an export of this one",
    "tokenizer": "use the tokenizer the run began with, or start a new run from an export of this checkpoint",
    "vocab_size": "use the tokenizer and model the run began with, or start a new run",
    "model": "use the model the run began with, or a new output_dir for the new model",
    "seq_len": "keep data.seq_len, or start a new run with model.source set to an export of this checkpoint",
    "rows": "keep batch.rows, which decides the rows of each step, or start a new run from an export",
    "seed": "keep the seed, which decides the order of the data, or start a new run from an export",
    "optimizer": "keep optimizer.type, whose state is saved, or start a new run from an export",
    "precision": "keep precision, or start a new run with model.source set to an export of this checkpoint",
}


@dataclass(frozen=True)
class Begun:
    """The newest finished checkpoint of a run folder, as its manifest has it; no hash was compared."""

    path: Path
    step: int
    identity: Mapping[str, Any]


def has_begun(folder: str | Path) -> bool:
    """Whether a run's folder has a checkpoint, of whatever world."""
    return any(Path(folder).glob("checkpoints/step-*/COMMIT"))


def begun(folder: str | Path) -> Begun | None:
    """Where the run in `folder` stands, or None when nothing readable was committed there."""
    for commit in sorted(Path(folder).glob("checkpoints/step-*/COMMIT"), reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError):  # damaged, or being tidied away: not judged
            manifest = json.loads((commit.parent / "manifest.json").read_text(encoding="utf-8"))
            return Begun(commit.parent, int(manifest["step"]), dict(manifest["identity"]))
    return None


def differences(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """A line for each field that both have and in which a run is not the one that was saved."""
    lines = []
    for name, advice in ADVICE.items():
        if name == "model" or name not in saved or name not in ours or saved[name] == ours[name]:
            continue
        if name == "dataset" and any(saved[part] != ours[part] for part in ("seed", "seq_len")):
            continue  # the fingerprint covers those two, so it tells nothing of its own now
        lines.append(f"{name} (saved {_short(saved[name])}, now {_short(ours[name])}): {advice}")
    return lines


def another_run(where: Path, lines: list[str], another: str) -> CheckpointError:
    """What is said of a run that can't go on from `where`; `another` starts one beside it."""
    beside = f"to start another run with these settings beside this one: {another}"
    return CheckpointError(f"{where} belongs to another run:\n  " + "\n  ".join([*lines, beside]))


def _short(value: object) -> str:
    text = str(value) or "none"
    return text if len(text) <= 24 else text[:12] + "…"
