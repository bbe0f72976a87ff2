"""What DeepSpeed saved goes on under llmtrain, and what llmtrain saved under DeepSpeed and in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rank_programs import MODELS, ROWS, SEQ_LEN, VOCAB
from transformers import AutoConfig

from llmtrain.checkpoint.facts import CheckpointFacts
from llmtrain.interchange.bring import Source, canon_of, write
from llmtrain.interchange.deepspeed_folder import read_folder

PROGRAM = "parity/rank_interchange.py"
MODEL = "llama-tied"
PLAIN: dict[str, dict[str, Any]] = {
    "zero1": {"deepspeed": "zero1"},
    "zero2": {"deepspeed": "zero2"},
    "zero3": {"deepspeed": "zero3"},
    "bf16": {"deepspeed": "zero1", "precision": "bf16"},
}


def facts(precision: str, step: int = 4) -> CheckpointFacts:
    return CheckpointFacts(
        step=step,
        tokens=step * ROWS * SEQ_LEN,
        topology={"precision": precision},
        dataset="random",
        config=MODELS[MODEL],
        vocab_size=VOCAB,
        seq_len=SEQ_LEN,
        rows=ROWS,
        seed=7,
        run_yaml="name: parity\n",
    )


def bring(folder: Path, run: Path, precision: str = "fp32") -> Path:
    config = AutoConfig.for_model(**{**MODELS[MODEL], "vocab_size": VOCAB})
    return write(Source(read_folder(folder), canon_of(config)), run, facts(precision))


@pytest.fixture(scope="module")
def saved(worlds: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """Folders that DeepSpeed saved, and the losses with which it went on itself."""
    root = tmp_path_factory.mktemp("deepspeed")
    folders = {str(root / name): sections for name, sections in PLAIN.items()}
    (losses, _) = worlds.run(f"{PROGRAM}:save_plain", 2, folders=folders, model=MODEL)
    pipeline = {"deepspeed": "pipeline", "parallel": {"pipeline": 2}}
    (losses[str(root / "pipeline")], _) = worlds.run(
        f"{PROGRAM}:save_pipeline", 2, folder=str(root / "pipeline"), model=MODEL, **pipeline
    )
    worlds.run(
        f"{PROGRAM}:to_universal", folders=[str(root / name) for name in ("zero1", "zero3", "pipeline")]
    )
    return root, {Path(folder).name: run for folder, run in losses.items()}


def test_what_deepspeed_saved_goes_on(worlds: Any, saved: Any, tmp_path: Path) -> None:
    root, losses = saved
    places = {name: root / name for name in ("zero1", "zero2", "zero3", "pipeline")}
    places |= {
        f"{name} universal": root / name / "global_step4_universal" for name in ("zero1", "zero3", "pipeline")
    }
    for name, place in places.items():
        bring(place, tmp_path / name)
    bring(root / "bf16", tmp_path / "bf16", "bf16")
    runs = [str(tmp_path / name) for name in places]
    (got,) = worlds.run(f"{PROGRAM}:load_many", folders=runs, model=MODEL, deepspeed="zero1")
    for name, run in zip(places, got, strict=True):
        assert run == pytest.approx(losses[name.split()[0]], rel=1e-5), name
    (bf16,) = worlds.run(
        f"{PROGRAM}:load_many", folders=[str(tmp_path / "bf16")], model=MODEL, precision="bf16"
    )
    assert bf16[0] == pytest.approx(losses["bf16"], rel=1e-3)
