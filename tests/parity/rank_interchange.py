"""Rank side of test_interchange: DeepSpeed alone saves and goes on; llmtrain goes on from what it saved."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from rank_programs import VOCAB, RandomRows, open_run, run_file
from transformers import AutoModelForCausalLM

from llmtrain.checkpoint import newest
from llmtrain.config.load import load_run
from llmtrain.config.world import World
from llmtrain.engine import start
from llmtrain.engine.microbatches import micro_batch
from llmtrain.engine.opening import DTYPES
from llmtrain.engine.optimizer import adamw
from llmtrain.model.build import hf_config
from llmtrain.plan.plan import make_plan

STEPS = 4


def _plan(world: World, model: str, **sections: Any) -> Any:
    device = "cuda" if sections.get("precision") == "fp16" else "cpu"  # a plan for the CPU refuses fp16
    type(get_accelerator()).is_fp16_supported = lambda self: True
    with tempfile.TemporaryDirectory() as folder:
        return make_plan(load_run(run_file(folder, model, 20, **sections)), world.size, device, environ={})


def _plain_engine(plan: Any, more: dict[str, Any], seed: int = 3) -> Any:
    """DeepSpeed around a transformers model: what a user's own script would have."""
    torch.manual_seed(seed)
    dtype = DTYPES[plan.run.precision]
    net = AutoModelForCausalLM.from_config(hf_config(plan.run.model, VOCAB), dtype=dtype)
    optimizer = adamw(net.parameters(), plan.run.optimizer, fused=False)
    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config={**plan.deepspeed, **more})
    return engine


def _go_on(engine: Any, plan: Any, rank: int, first: int, steps: int) -> list[float]:
    """The mean loss over all tokens of each step."""
    losses = []
    micro, accumulation = plan.batch.micro, plan.batch.accumulation
    for step in range(first, first + steps):
        rows = RandomRows(5, step)
        for group in engine.optimizer.param_groups:
            group["lr"] = plan.schedule.lr(step)
        total = torch.zeros(())
        for index in range(accumulation):
            start_row = (rank * accumulation + index) * micro
            tokens, positions, labels, _ = micro_batch(rows, start_row, micro, torch.device("cpu"))
            logits = engine(input_ids=tokens, position_ids=positions, use_cache=False).logits.float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            total += loss.detach()
            engine.backward(loss * (accumulation * plan.batch.dp / rows.valid_tokens))
            engine.step()
        dist.all_reduce(total)
        losses.append(float(total) / rows.valid_tokens)
    return losses


def save_plain(world: World, folders: dict[str, dict[str, Any]], model: str) -> dict[str, list[float]]:
    """Per folder: four steps, DeepSpeed's own save, and the losses of three more."""
    comm = start(world, "cpu")
    losses = {}
    for folder, sections in folders.items():
        plan = _plan(world, model, **sections)
        engine = _plain_engine(plan, {})
        _go_on(engine, plan, comm.rank, 0, STEPS)
        engine.save_checkpoint(folder)
        losses[folder] = _go_on(engine, plan, comm.rank, STEPS, 3)
        engine.destroy()
        del engine
        gc.collect()
    comm.barrier()
    return losses


def save_pipeline(world: World, folder: str, model: str, **sections: Any) -> list[float]:
    """The same of llmtrain's pipeline: DeepSpeed's own save of its PipelineModule."""
    plan, engine = open_run(world, model, 20, **sections)
    run = [engine.train_step(RandomRows(5, step), plan.schedule.lr(step)).loss for step in range(STEPS)]
    engine.deepspeed.save_checkpoint(folder)
    run = [
        engine.train_step(RandomRows(5, step), plan.schedule.lr(step)).loss
        for step in range(STEPS, STEPS + 3)
    ]
    engine.close()
    return run


def to_universal(world: World, folders: list[str]) -> None:
    """DeepSpeed's own conversion of the newest checkpoint in each folder."""
    from deepspeed.checkpoint import ds_to_universal

    for folder in map(Path, folders):
        tag = (folder / "latest").read_text()
        ds_to_universal.main(
            SimpleNamespace(
                input_folder=str(folder / tag),
                output_folder=str(folder / f"{tag}_universal"),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


def load_many(world: World, folders: list[str], model: str, **sections: Any) -> list[list[float]]:
    """Per run folder: its newest checkpoint, and three more steps under llmtrain."""
    plan, engine = open_run(world, model, 20, seed=4321, **sections)
    losses = []
    for folder in folders:
        checkpoint = newest(Path(folder), comm=engine.comm)
        assert checkpoint is not None and checkpoint.step == STEPS
        engine.load(checkpoint.reader(), checkpoint.scalars)
        steps = range(STEPS, STEPS + 3)
        losses.append([engine.train_step(RandomRows(5, step), plan.schedule.lr(step)).loss for step in steps])
    engine.close()
    return losses


def train_run(world: World, run: str) -> None:
    """`llmtrain train RUN --resume must`."""
    from llmtrain.stopping import StopRequest
    from llmtrain.train import run as train

    train(run, [], "must", world, StopRequest())


def load_universal(world: World, folder: str, model: str, templates: list[str]) -> list[list[float]]:
    """Per strategy: DeepSpeed alone loads a universal checkpoint and takes three steps."""
    comm = start(world, "cpu")
    runs = []
    for template in templates:
        plan = _plan(world, model, deepspeed=template)
        scheduler = {"type": "WarmupLR", "params": {"warmup_num_steps": 100}}
        engine = _plain_engine(
            plan, {"checkpoint": {"load_universal": True}, "scheduler": scheduler}, seed=11
        )
        decay = [group["weight_decay"] for group in engine.optimizer.param_groups]
        engine.load_checkpoint(folder)
        assert engine.global_steps == STEPS and engine.lr_scheduler.last_batch_iteration == STEPS - 1
        assert [group["weight_decay"] for group in engine.optimizer.param_groups] == decay
        if template == "zero3":  # DeepSpeed 0.19.8 gives all sub-groups one step counter
            for state in engine.optimizer.optimizer.state.values():
                state["step"] = state["step"].clone()
        runs.append(_go_on(engine, plan, comm.rank, STEPS, 3))
        engine.destroy()
        del engine
        gc.collect()
    comm.barrier()
    return runs
