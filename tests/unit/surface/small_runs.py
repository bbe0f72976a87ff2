"""A small dataset and a small run on it, for tests of what the commands do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmtrain.data.rows import Rows
from llmtrain.engine.seam import EvalResult, Slice, SliceReader, StepResult

ROOT = Path(__file__).parents[3]
SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def build_dataset(folder: Path) -> Path:
    """llmtrain's own source as a dataset with a tokenizer of 400 tokens."""
    from data_prep.build import build

    corpus = {
        "name": "own",
        "output": str(folder / "data"),
        "sources": [{"path": str(ROOT / "llmtrain/*.py")}],
        "tokenizer": {"train": "bpe", "vocab_size": 400},
        "splits": {"valid": 0.2},
        "workers": 1,
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(corpus))
    build(folder / "corpus.yaml", [])
    return folder / "data"


def write_run(folder: Path, dataset: Path, **changes: Any) -> Path:
    """A run file in `folder`; its run folder is `folder/run`."""
    run: dict[str, Any] = {
        "name": "tiny",
        "output_dir": str(folder / "run"),
        "model": {"config": SHAPE},
        "data": {
            "train": [{"path": str(dataset)}],
            "eval": [{"path": str(dataset), "split": "valid"}],
            "seq_len": 32,
        },
        "batch": {"rows": 4},
        "schedule": {"steps": 6},
        "eval": {"rows": 5, "every": 3},
        "precision": "fp32",
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run | changes))
    return path


class AloneComm:
    """The line of a rank without others; `votes` are those of ranks that are not there."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self.votes: list[object] = []

    def barrier(self) -> None:
        pass

    def gather(self, value: object) -> list[object]:
        return [value, *self.votes]

    def broadcast(self, value: object) -> object:
        return value


@dataclass
class ScriptedEngine:
    """An engine that trains nothing and remembers what it was asked.

    `skips` are steps that are skipped the first time they come up, `bad_rows` every time; `losses` are those
    that are not 2.0.
    """

    skips: frozenset[int] = frozenset()
    bad_rows: frozenset[int] = frozenset()
    losses: dict[int, float] = field(default_factory=dict)
    updates: int = 0
    step: int = 0
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    limits: list[tuple[int, float]] = field(default_factory=list)
    compared: list[int] = field(default_factory=list)
    comm: AloneComm = field(default_factory=AloneComm)

    def train_step(
        self, rows: Rows, lr: float, step: int = 0, most_loss: float = math.inf, compare: bool = False
    ) -> StepResult:
        loss = self.losses.get(step, 2.0)
        withheld = loss > most_loss
        skipped = self.step in self.skips or step in self.bad_rows or withheld
        self.calls.append(("step", rows, lr))
        self.limits.append((step, most_loss))
        self.compared += [step] if compare else []
        self.step += 1
        self.updates += not skipped
        return StepResult(loss, float("inf") if skipped else 1.0, skipped, 10, 1.0, withheld)

    def evaluate(self, rows: Rows) -> EvalResult:
        self.calls.append(("eval", rows))
        return EvalResult(30.0, 10)

    def slices(self) -> Iterator[Slice]:
        return iter(())

    def scalars(self) -> dict[str, float]:
        return {"updates": float(self.updates)}

    def load(self, reader: SliceReader, scalars: dict[str, float]) -> None:
        raise AssertionError("the loop loads nothing")

    def busy_s(self) -> float:
        return 1.0

    def memory_bytes(self) -> int:
        return 1000

    def close(self) -> None:
        pass
