"""Rank side of test_nvme: a model of which some sub-groups are large enough for the disk and some are not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import rank_checkpoints
from rank_programs import MODELS, RandomRows, open_run

from llmtrain.checkpoint.load import newest
from llmtrain.checkpoint.save import save
from llmtrain.config.world import World
from llmtrain.engine import nvme
from llmtrain.errors import ConfigError, EngineError

# DeepSpeed swaps from 1 MiB of fp32 on: on 2 ranks a matrix of 1100 × 512 is just above
MODELS["wide"] = {**MODELS["llama"], "hidden_size": 512, "intermediate_size": 1100, "num_hidden_layers": 1}


def lacking(world: World) -> str:
    """Why the op can't be had here, or an empty string."""
    return nvme.load_op()


def refusal(world: World, extensions: str, **sections: Any) -> str:
    """The sentence with which a run ends before its model is built; rank 1 looks for the op elsewhere."""
    os.environ["TORCH_EXTENSIONS_DIR"] = extensions + str(world.rank)
    with pytest.raises(ConfigError) as caught:
        open_run(world, "wide", 20, **sections)
    return str(caught.value)


def build_without_headers(world: World) -> str:
    """What the build says on a machine that can't."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    AsyncIOBuilder.is_compatible = lambda self, verbose: False  # type: ignore[method-assign]
    with pytest.raises(EngineError) as caught:
        nvme.ASYNC_IO.build()
    return str(caught.value)


def save_at(world: World, folder: str, **sections: Any) -> dict[str, Any]:
    """Four steps, a save, three more; then back to what was saved, and the same three again."""
    plan, engine = open_run(world, "wide", 20, **sections)
    optimizer = engine.deepspeed.optimizer
    groups = range(len(getattr(optimizer, "fp16_groups", ())))
    first = rank_checkpoints._go_on(plan, engine, 0, 4)
    save(engine, Path(folder), rank_checkpoints._facts(plan, engine, 4, "wide"))
    held_out = engine.evaluate(RandomRows(99, 0, 7)).loss
    losses = rank_checkpoints._go_on(plan, engine, 4, 3)
    checkpoint = newest(Path(folder), comm=engine.comm)
    engine.load(checkpoint.reader(), checkpoint.scalars)
    again = rank_checkpoints._go_on(plan, engine, 4, 3)
    on_disk = [optimizer._swappable_optimizer_subgroup(index) for index in groups]
    engine.close()
    went_on = {"losses": losses, "held_out": held_out}
    return {"first": first, "went on": went_on, "again": again, "on disk": on_disk}


def save_behind(world: World, folder: str, **sections: Any) -> dict[str, Any]:
    """As rank_checkpoints does."""
    return rank_checkpoints.save_at(world, folder, "wide", behind=True, **sections)


def load_at(world: World, folder: str, **sections: Any) -> dict[str, Any]:
    """As rank_checkpoints does."""
    return rank_checkpoints.load_at(world, folder, "wide", **sections)
