"""Rank side of test_untrained_rows: steps in which some rows, or all, have no token that is trained on."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from rank_programs import RandomRows, open_run

from llmtrain.config.world import World
from llmtrain.data.rows import IGNORED, RowArrays


@dataclass(frozen=True)
class BlankRows(RandomRows):
    """Random rows of which the first `blank` have nothing but ignored labels."""

    blank: int = 0

    def _all(self) -> RowArrays:
        whole = super()._all()
        labels = np.where(np.arange(self.count)[:, None] < self.blank, IGNORED, whole.labels)
        return RowArrays(whole.tokens, labels, whole.positions)


def state(engine: Any) -> str:
    digest = hashlib.sha256()
    for part in engine.slices():
        digest.update(f"{part.name}{part.kind}{part.start}".encode())
        digest.update(part.tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(world: World, **sections: Any) -> dict[str, Any]:
    """A step with half its rows blank, one with all, and a whole one."""
    _, engine = open_run(world, "llama", 20, **sections)
    half = engine.train_step(BlankRows(5, 0, blank=4), 1e-3)
    before, updates = state(engine), engine.scalars()["updates"]
    none = engine.train_step(BlankRows(5, 1, blank=8), 1e-3)
    unchanged = state(engine) == before and engine.scalars()["updates"] == updates
    whole = engine.train_step(BlankRows(5, 2), 1e-3)
    held_out = engine.evaluate(BlankRows(5, 3, blank=8))
    engine.close()
    return {
        "losses": [half.loss, whole.loss],
        "skipped": [half.skipped, none.skipped, whole.skipped],
        "none": [math.isnan(none.loss), none.tokens, unchanged],
        "held_out": [held_out.loss_sum, held_out.tokens],
    }
