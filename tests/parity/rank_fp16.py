"""Rank side of test_fp16: DeepSpeed's CPU accelerator refuses fp16, so here, and only here, it is let in."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

from rank_programs import VOCAB, RandomRows, run_file

from llmtrain.config.load import load_run
from llmtrain.config.world import World
from llmtrain.engine import open_engine
from llmtrain.model.build import hf_config
from llmtrain.plan.plan import make_plan


def train_fp16(world: World, steps: int, first_power: int, **sections: Any) -> dict[str, Any]:
    """`steps` steps from a loss scale of 2 ** first_power."""
    from deepspeed.accelerator import get_accelerator

    type(get_accelerator()).is_fp16_supported = lambda self: True
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_run(run_file(folder, "llama", steps, precision="fp16", **sections))
        plan = make_plan(loaded, world.size, "cuda", environ={})  # a plan for the CPU refuses fp16
    settings = {**plan.deepspeed, "fp16": {**plan.deepspeed["fp16"], "initial_scale_power": first_power}}
    plan = dataclasses.replace(plan, device="cpu", deepspeed=settings)
    engine = open_engine(plan, hf_config(plan.run.model, VOCAB), world)
    results = [engine.train_step(RandomRows(5, step), plan.schedule.lr(step)) for step in range(steps)]
    scalars = engine.scalars()
    engine.close()
    return {
        "losses": [result.loss for result in results],
        "norms": [result.grad_norm for result in results],
        "skipped": [result.skipped for result in results],
        "scales": [result.loss_scale for result in results],
        "scalars": scalars,
    }
