"""The host never waits for the device inside a micro-batch: what would wait on CUDA, counted on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LAYOUTS = [("zero1", 2, 1), ("zero2", 2, 1), ("zero3", 2, 1), ("zero3", 1, 1), ("pipeline", 2, 2)]


@pytest.mark.parametrize(("template", "ranks", "pipeline"), LAYOUTS)
def test_no_micro_batch_waits_for_the_device(
    worlds: Any, tmp_path: Path, template: str, ranks: int, pipeline: int
) -> None:
    content = json.loads((ROOT / "ds_configs" / f"{template}.json").read_text())
    content["zero_optimization"]["overlap_comm"] = template in ("zero2", "zero3")  # as on CUDA
    strategy = tmp_path / "strategy.json"
    strategy.write_text(json.dumps(content))
    results = worlds.run(
        "parity/rank_sync.py:waits_within_micro_batches",
        ranks,
        model="gemma3" if pipeline == 1 else "llama-tied",
        precision="bf16",
        deepspeed=str(strategy),
        parallel={"pipeline": pipeline},
        health={"on_spike": "report"},
    )
    assert results == [[]] * ranks
