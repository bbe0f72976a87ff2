"""Rank side of test_nonfinite: one rank's loss turns NaN for a step."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

from llmtrain.config.world import World

sys.path.insert(0, str(Path(__file__).parent.parent / "parity"))
from rank_programs import RandomRows, open_run  # noqa: E402


def _weights(engine: Any) -> str:
    digest = hashlib.sha256()
    for part in engine.slices():
        digest.update(f"{part.name}{part.kind}{part.start}".encode())
        digest.update(part.tensor.float().contiguous().numpy().tobytes())
    for parameter in engine.stage.parameters():
        part = getattr(parameter, "ds_tensor", parameter)
        digest.update(part.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def poison(world: World, times: int, value: str, **sections: Any) -> dict[str, Any]:
    """Two good steps, `times` steps whose loss is `value` on one rank, one good step."""
    plan, engine = open_run(world, "llama", 20, **sections)
    good = [engine.train_step(RandomRows(5, step), 1e-3) for step in range(2)]
    before, updates = _weights(engine), engine.scalars()["updates"]
    stage, factor = engine.stage, float(value)
    last = plan.topology.pipeline - 1
    guilty = world.rank == last * plan.topology.dp
    bad = []
    if guilty and plan.topology.pipeline == 1:
        hook = stage.register_forward_hook(lambda module, inputs, output: output * factor)
    elif guilty:
        healthy = stage.loss
        stage.loss = lambda hidden, labels: healthy(hidden, labels) * factor
    for step in range(2, 2 + times):
        bad.append(engine.train_step(RandomRows(5, step), 1e-3))
    after = _weights(engine)
    if guilty and plan.topology.pipeline == 1:
        hook.remove()
    elif guilty:
        stage.loss = healthy
    final = engine.train_step(RandomRows(5, 50), 1e-3)
    engine.close()
    return {
        "good": [not result.skipped for result in good],
        "skipped": [result.skipped for result in bad],
        "finite": [math.isfinite(result.grad_norm) for result in bad],
        "unchanged": before == after,
        "updates": [updates, engine.scalars()["updates"]],
        "recovered": not final.skipped and math.isfinite(final.loss) and math.isfinite(final.grad_norm),
    }
