"""Rank side of test_resume: a run that is never disturbed, and the same run stopped and resumed twice.

All in one world: each resume opens a fresh engine on another seed's initial weights, so that whatever is not
in the checkpoint shows. `fp16` lifts the CPU's refusal, as rank_fp16 does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from rank_checkpoints import _facts
from rank_programs import MODELS, VOCAB, RandomRows, run_file

from llmtrain.checkpoint import Checkpoint, save
from llmtrain.config.load import load_run
from llmtrain.config.world import World

STEPS, FIRST, SECOND = 7, 3, 5
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
MODELS["gpt_neox-dropout"] = {**MODELS["gpt_neox"], **DROPOUT}


def open_seeded(
    world: World,
    model: str,
    comm: Any = None,
    seed: int | None = None,
    scale_power: int = 18,
    **sections: Any,
) -> Any:
    """(plan, engine); the weights are drawn from `seed` when given, all else is the run's."""
    from llmtrain.engine import open_engine
    from llmtrain.model.build import hf_config
    from llmtrain.plan.plan import make_plan

    fp16 = sections.get("precision") == "fp16"
    if fp16:
        from deepspeed.accelerator import get_accelerator

        type(get_accelerator()).is_fp16_supported = lambda self: True
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_run(run_file(folder, model, 20, **sections))
        plan = make_plan(loaded, world.size, "cuda" if fp16 else "cpu", environ={})
    if fp16:  # the scale is so high that some steps overflow, and grows again after two that do not
        scale = {"initial_scale_power": scale_power, "hysteresis": 1, "loss_scale_window": 2}
        settings = {**plan.deepspeed, "fp16": {**plan.deepspeed["fp16"], **scale}}
        plan = dataclasses.replace(plan, device="cpu", deepspeed=settings)
    initial = plan
    if seed is not None:
        initial = dataclasses.replace(plan, run=plan.run.model_copy(update={"seed": seed}))
    engine = open_engine(initial, hf_config(plan.run.model, VOCAB), world, None, comm)
    engine._draws.seed = plan.run.seed
    return plan, engine


def state_digest(engine: Any) -> str:
    """One hash of all that this rank holds: masters, moments, and the weights that the forward pass reads."""
    digest = hashlib.sha256()
    for part in engine.slices():
        digest.update(f"{part.name}{part.kind}{part.start}".encode())
        digest.update(part.tensor.float().contiguous().numpy().tobytes())
    for parameter in engine.stage.parameters():
        part = getattr(parameter, "ds_tensor", parameter)
        digest.update(part.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def resumed_twice(world: World, model: str, **sections: Any) -> dict[str, Any]:
    """What each step gave: undisturbed, from the first resume on, and from the resume of the resumed run."""
    plan, engine = open_seeded(world, model, **sections)
    folder = Path(str(engine.comm.broadcast(tempfile.mkdtemp(prefix="resume-"))))

    def go_on(engine: Any, first: int, last: int, evaluates: bool) -> list[Any]:
        told = []
        for step in range(first, last):
            lr = plan.schedule.lr(int(engine.scalars()["updates"]))
            result = engine.train_step(RandomRows(5, step), lr, step)
            told.append([result.loss, repr(result.grad_norm), result.loss_scale, result.skipped])
            if evaluates:
                engine.evaluate(RandomRows(99, step, 3))
        told.append(state_digest(engine))
        return told

    undisturbed = go_on(engine, 0, STEPS, evaluates=False)
    runs = []
    for first, last in ((0, FIRST), (FIRST, SECOND), (SECOND, STEPS)):
        plan, again = open_seeded(world, model, engine.comm, seed=4321 if first else None, **sections)
        if first:
            checkpoint = Checkpoint(folder / "checkpoints" / f"step-{first:08d}")
            with checkpoint.reader() as reader:
                again.load(reader, checkpoint.scalars)
        runs.append(go_on(again, first, last, evaluates=True))
        save(again, folder, _facts(plan, again, last, model), keep=3)
    engine.comm.barrier()
    if world.rank == 0:
        shutil.rmtree(folder)
    engine.close()
    return {
        "undisturbed": undisturbed,
        "resumed": [*runs[0][:-1], *runs[1][:-1], *runs[2]],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
