"""The engine on a CUDA device: no wait inside a micro-batch, the same bits each time when asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from contestants import RandomRows, Spec
from tiny_models import FAMILIES, VOCAB

SEQ, ROWS, MICRO = 128, 4, 2
MODEL = {**FAMILIES["llama"], "hidden_size": 128, "vocab_size": VOCAB}


def rows(step: int) -> RandomRows:
    return RandomRows(Spec("", "", MODEL, SEQ, ROWS, MICRO, 0, 1, "bf16", "zero1", ""), step)


DEVICE = "cuda"


@pytest.fixture(scope="module")
def comm() -> Iterator[Any]:
    """A world of one rank, which all engines here share: a process group can't be left and joined again."""
    from llmtrain.config.world import World
    from llmtrain.engine import start

    yield start(World(0, 1, 0, 1, "none"), DEVICE)
    torch.distributed.destroy_process_group()


@pytest.fixture
def opened(comm: Any) -> Iterator[Any]:
    """Opens an engine as a run would, and puts torch back as it was."""
    from llmtrain.config.load import load_run
    from llmtrain.config.world import World
    from llmtrain.engine import open_engine
    from llmtrain.model.build import hf_config
    from llmtrain.plan.plan import make_plan

    engines: list[Any] = []

    def open_one(strategy: str, **sections: Any) -> Any:
        content = {
            "name": "gpu",
            "model": {"config": MODEL},
            "data": {"train": [{"path": "unused"}], "seq_len": SEQ},
            "batch": {"rows": ROWS, "micro": MICRO},
            "schedule": {"steps": 4},
            "deepspeed": strategy,
            **sections,
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.yaml"
            path.write_text(yaml.safe_dump(content))
            plan = make_plan(load_run(path), 1, DEVICE, environ={}, goes_on=True)
        config = hf_config(plan.run.model, VOCAB)
        engines.append(open_engine(plan, config, World(0, 1, 0, 1, "none"), comm=comm))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.deepspeed.destroy()
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_cuda_no_micro_batch_waits_for_the_device(opened: Any, strategy: str) -> None:
    engine = opened(strategy)
    for step in range(3):
        engine.train_step(rows(step), 1e-3, step)
    update = engine.deepspeed._take_model_step

    def may_wait(*args: Any, **kwargs: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        update(*args, **kwargs)

    engine.deepspeed._take_model_step = may_wait
    try:
        torch.cuda.set_sync_debug_mode("error")
        result = engine.train_step(rows(3), 1e-3, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not result.skipped


def test_cuda_deterministic_gives_the_same_bits(opened: Any) -> None:
    told = []
    for _ in range(2):
        engine = opened("zero1", deterministic=True)
        losses = [engine.train_step(rows(step), 1e-3, step).loss for step in range(4)]
        weights = [parameter.detach().clone() for parameter in engine.stage.parameters()]
        told.append((losses, weights))
    assert told[0][0] == told[1][0]
    assert all(torch.equal(a, b) for a, b in zip(told[0][1], told[1][1], strict=True))


def test_cuda_sums_of_zero1_hold_more_bits_than_bf16(opened: Any) -> None:
    engine = opened("zero1")
    seen: list[torch.Tensor] = []
    update = engine.deepspeed._take_model_step

    def watched(*args: Any, **kwargs: Any) -> None:
        seen.extend(each.clone() for each in engine.deepspeed.optimizer.fp32_groups_gradients_flat)
        update(*args, **kwargs)

    engine.deepspeed._take_model_step = watched
    engine.train_step(rows(0), 1e-3)
    sums = torch.cat(seen)
    sums = sums[sums != 0]
    assert (sums.bfloat16().float() != sums).float().mean() > 0.25
