"""Injections of bad numbers, and the rank side of the tests that inject them.

Each injection is a function of its own that returns what ends it, for the tests here and for benchmarks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llmtrain.config.world import World
from llmtrain.errors import EngineError

sys.path.insert(0, str(Path(__file__).parent.parent / "parity"))
from rank_programs import RandomRows  # noqa: E402
from rank_resume import open_seeded, state_digest  # noqa: E402

Undo = Callable[[], None]


def guilty(world: World, plan: Any) -> bool:
    """The one rank that is at fault: the first of the last stage, or the last data parallel one."""
    last = plan.topology.pipeline - 1
    return world.rank == last * plan.topology.dp


def poison_loss(engine: Any, factor: float) -> Undo:
    """Multiplies this rank's loss, and with it its gradients."""
    stage = engine.stage
    if engine.plan.topology.pipeline == 1:
        return stage.register_forward_hook(lambda module, inputs, output: output * factor).remove
    healthy = stage.loss
    stage.loss = lambda hidden, labels: healthy(hidden, labels) * factor
    return lambda: setattr(stage, "loss", healthy)


def poison_gradient(engine: Any, factor: float) -> Undo:
    """Multiplies this rank's gradients where they enter the model; the loss stays what it is."""

    def hooked(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * factor)

    if engine.plan.topology.pipeline == 1:
        return engine.stage.register_forward_hook(hooked).remove
    healthy = engine.stage.loss

    def loss(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = healthy(hidden, labels)
        hooked(None, None, value)
        return value

    engine.stage.loss = loss
    return lambda: setattr(engine.stage, "loss", healthy)


def _weight(engine: Any) -> list[torch.Tensor]:
    """A weight that every step reads, as this rank has it: whole, and under ZeRO-3 its own shard too."""
    named = engine.stage.named_parameters()
    weight = max(
        (w for name, w in named if "embed" not in name), key=lambda w: getattr(w, "ds_numel", w.numel())
    )
    held = [weight, getattr(weight, "ds_tensor", weight)]
    return [tensor.detach().view(-1) for tensor in held if tensor.numel()]


def poison_weight(engine: Any, value: float) -> Undo:
    """Puts a value into one weight of this rank, where the forward pass reads it; nothing undoes it."""
    for weight in _weight(engine):
        weight[5] = value
    return lambda: None


def flip_bit(engine: Any, bit: int = 3) -> Undo:
    """Flips one bit of one weight of this rank, low enough to be noticed by nobody."""
    weight = _weight(engine)[0]
    whole = {2: torch.int16, 4: torch.int32}[weight.element_size()]
    weight[7:8].view(whole).bitwise_xor_(1 << bit)
    return lambda: None


INJECTIONS = {"loss": poison_loss, "gradient": poison_gradient}


def poison(world: World, times: int, value: str, where: str = "loss", **sections: Any) -> dict[str, Any]:
    """Two good steps, `times` bad ones, a good one, one withheld, one with a bit flipped on one rank."""
    plan, engine = open_seeded(world, "llama", **sections)

    def train(step: int, **more: Any) -> Any:
        return engine.train_step(RandomRows(5, step, plan.batch.rows), 1e-3, step, **more)

    good = [train(step) for step in range(2)]
    before, updates = state_digest(engine), engine.scalars()["updates"]
    undo = INJECTIONS[where](engine, float(value)) if guilty(world, plan) else lambda: None
    bad = [train(step) for step in range(2, 2 + times)]
    unchanged = before == state_digest(engine)
    undo()
    final = train(50)
    scaler, before = engine.scalars(), state_digest(engine)
    withheld = train(51, most_loss=final.loss / 2)
    passed = withheld.skipped and withheld.withheld and math.isfinite(withheld.loss)
    passed = passed and before == state_digest(engine) and engine.scalars() == scaler
    allowed = train(52, most_loss=final.loss * 2, compare=True)
    if guilty(world, plan):
        flip_bit(engine)
    try:
        train(53, compare=True)
        corrupted = ""
    except EngineError as error:
        corrupted = str(error)
    engine.close()
    return {
        "good": [not result.skipped for result in good],
        "skipped": [result.skipped for result in bad],
        "finite": [math.isfinite(result.grad_norm) for result in bad],
        "unchanged": unchanged,
        "updates": [updates, scaler["updates"]],
        "recovered": not final.skipped and math.isfinite(final.loss) and math.isfinite(final.grad_norm),
        "withheld": passed,
        "allowed": not allowed.skipped,
        "corrupted": corrupted,
    }


def at_floor(world: World, **sections: Any) -> dict[str, Any]:
    """fp16 from a scale of 2 with a loss that always overflows: one step lowers it, the next can't."""
    plan, engine = open_seeded(world, "llama", scale_power=1, precision="fp16", **sections)
    if guilty(world, plan):
        poison_loss(engine, float("inf"))
    before = state_digest(engine)
    first = engine.train_step(RandomRows(5, 0), 1e-3)
    try:
        engine.train_step(RandomRows(5, 1), 1e-3, 1)
        why = ""
    except EngineError as error:
        why = str(error)
    unchanged = before == state_digest(engine)
    engine.close()
    return {"skipped": first.skipped, "scale": first.loss_scale, "why": why, "unchanged": unchanged}
