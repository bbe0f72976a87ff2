"""A run and a world become a Plan: all that is decided before any hardware is touched.

Every rule that spans several fields is checked here, and everything that is wrong is said at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmtrain.config.adopt import try_adopt
from llmtrain.config.deepspeed import resolve, zero_stage
from llmtrain.config.load import LoadedRun
from llmtrain.config.schema import RunConfig
from llmtrain.config.strategy import choose_template
from llmtrain.config.template import Template, sift
from llmtrain.config.world import may_restart
from llmtrain.errors import ConfigError, Problem
from llmtrain.plan.batch import BatchPlan, plan_batch
from llmtrain.plan.memory import kept_by, rows_that_fit
from llmtrain.plan.model_rules import model_problems
from llmtrain.plan.model_shape import ModelShape, shape_of
from llmtrain.plan.rules import batch_problem, buffer_problems, strategy_problems
from llmtrain.plan.schedule import Schedule, schedule_of, steps_of, warmup_steps
from llmtrain.plan.topology import Topology


@dataclass(frozen=True)
class Plan:
    """Everything the engine and the loop need to know, and where each value came from."""

    run: RunConfig
    topology: Topology
    batch: BatchPlan
    schedule: Schedule
    deepspeed: dict[str, Any]  # explicit: what deepspeed.initialize gets and ds_config.json holds
    origins: Mapping[str, str]  # of the run's fields, and of `ds.KEY` for what the DeepSpeed dict holds
    device: str  # "cpu" or "cuda"

    @property
    def tokens_per_step(self) -> int:
        """Token positions in one optimizer step over all ranks."""
        return self.batch.rows * self.run.data.seq_len


def make_plan(
    loaded: LoadedRun,
    world: int,
    device: str,
    environ: Mapping[str, str] = os.environ,
    device_memory: int | None = None,
    shape: ModelShape | None = None,
    goes_on: bool = False,
    epoch_rows: int | None = None,
) -> Plan:
    """Plans a run on `world` ranks of `device` ("cpu" or "cuda").

    device_memory: bytes of one device, and shape: the model's sizes (default: what model.config says); with
    both known, `batch.micro: auto` keeps within memory; goes_on: the run may have begun in another world, so
    rows that these ranks can't share evenly are no mistake, as under torchrun's restarts; epoch_rows: rows
    of all training data, which schedule.epochs needs. Raises ConfigError with every problem.
    """
    assert device in ("cpu", "cuda"), f"no device {device!r}"
    template, problems = choose_template(loaded, environ)
    loaded = _named(loaded, template)
    template, found = sift(template)
    problems += found
    loaded, found = try_adopt(loaded, template)
    problems += found
    problems += strategy_problems(loaded, template, world, device)
    problems += model_problems(loaded)
    run = loaded.config
    if world % run.parallel.pipeline:
        raise ConfigError(problems)
    topology = Topology(world, run.parallel.pipeline, zero_stage(template))
    shape = shape or shape_of(run.model.config or {})
    problems += buffer_problems(template, shape, topology.dp)
    most_rows = None
    if device_memory is not None and shape is not None and not problems:
        trial = resolve(template, run, 1, 1, world, device)
        most_rows = rows_that_fit(
            shape,
            trial,
            device_memory,
            seq_len=run.data.seq_len,
            dp=topology.dp,
            pipeline=topology.pipeline,
            accumulation=topology.pipeline,
            recompute=run.recompute,
            kept=kept_by(run.kernels, device),
        )
    goes_on = goes_on or may_restart(environ)
    batch, loaded = _batch(loaded, template, topology, device, most_rows, goes_on, problems)
    schedule = _schedule(loaded, template, epoch_rows, problems)
    if problems or batch is None or schedule is None:
        raise ConfigError(problems)
    run = loaded.config
    deepspeed = resolve(template, run, batch.micro, batch.accumulation, world, device)
    origins = {**loaded.origins, **_deepspeed_origins(deepspeed, template)}
    return Plan(run, topology, batch, schedule, deepspeed, origins, device)


def _named(loaded: LoadedRun, template: Template) -> LoadedRun:
    """The run with `deepspeed` saying what accelerate chose, when the run itself did not say."""
    if template.name in ("", loaded.config.deepspeed):
        return loaded
    config = loaded.config.model_copy(update={"deepspeed": template.name})
    return replace(loaded, config=config, origins={**loaded.origins, "deepspeed": template.source})


def _batch(
    loaded: LoadedRun,
    template: Template,
    topology: Topology,
    device: str,
    most_rows: int | None,
    goes_on: bool,
    problems: list[Problem],
) -> tuple[BatchPlan | None, LoadedRun]:
    run = loaded.config
    key = "gradient_accumulation_steps"
    accumulation = template.said(key)
    micro = run.batch.micro if isinstance(run.batch.micro, int) else None
    if accumulation is not None and micro is not None and loaded.origin("batch.rows") == "default":
        rows = micro * int(accumulation) * topology.dp
        run = run.model_copy(update={"batch": run.batch.model_copy(update={"rows": rows})})
        origin = f"{template.origin(key)}: micro {micro} × accumulation {accumulation} × {topology.dp} ranks"
        loaded = replace(loaded, config=run, origins={**loaded.origins, "batch.rows": origin})
    try:
        batch, reason = plan_batch(
            run.batch.rows,
            topology.dp,
            micro=micro,
            accumulation=None if accumulation is None else int(accumulation),
            seq_len=run.data.seq_len,
            pipeline=topology.pipeline,
            device=device,
            most_rows=most_rows,
            pads=goes_on,
        )
    except ValueError as error:
        problems.append(batch_problem(loaded, template, topology, str(error)))
        return None, loaded
    if accumulation is not None and batch.accumulation != accumulation:
        fix = (
            f"batch.rows = {batch.rows} ({loaded.origin('batch.rows')}) with micro {batch.micro} on "
            f'{topology.dp} data-parallel ranks makes it {batch.accumulation}; write "auto" here'
        )
        problems.append(Problem(key, accumulation, template.origin(key), fix))
    if micro is None:
        run = run.model_copy(update={"batch": run.batch.model_copy(update={"micro": batch.micro})})
        loaded = replace(loaded, config=run, origins={**loaded.origins, "batch.micro": reason})
    return batch, loaded


def _schedule(
    loaded: LoadedRun, template: Template, epoch_rows: int | None, problems: list[Problem]
) -> Schedule | None:
    run, asked = loaded.config, loaded.config.schedule
    steps = steps_of(run, epoch_rows)
    key = "scheduler.params.total_num_steps"
    total = template.said(key)
    if total is not None and total != steps:
        given = next(name for name in ("steps", "tokens", "epochs") if getattr(asked, name) is not None)
        field = f"schedule.{given}"
        fix = f'{field} ({loaded.origin(field)}) makes it {steps} steps; write "auto" here'
        problems.append(Problem(key, total, template.origin(key), fix))
    origin = loaded.origin("schedule.warmup")
    if asked.warmup >= 1 and asked.warmup != int(asked.warmup):
        fix = "from 1 on it counts steps and must be whole; below 1 it is a share of the steps"
        problems.append(Problem("schedule.warmup", asked.warmup, origin, fix))
        return None
    if warmup_steps(asked.warmup, steps) > steps:
        fix = f"the run has {steps} steps; warm up for fewer, or give a share below 1"
        problems.append(Problem("schedule.warmup", asked.warmup, origin, fix))
        return None
    return schedule_of(run, steps)


# Keys of the DeepSpeed dict that the run decides, and the field that does.
_FROM_RUN = {
    "train_batch_size": "batch.rows",
    "train_micro_batch_size_per_gpu": "batch.micro",
    "gradient_accumulation_steps": "batch.rows ÷ ranks ÷ batch.micro",
    "gradient_clipping": "optimizer.clip",
    "bf16.enabled": "precision",
    "fp16.enabled": "precision",
    "pipeline.stages": "parallel.pipeline",
}


def _deepspeed_origins(resolved: dict[str, Any], template: Template, prefix: str = "") -> dict[str, str]:
    """`ds.KEY` → the run's field, the file, or llmtrain, for every leaf of the DeepSpeed dict."""
    origins: dict[str, str] = {}
    for name, value in resolved.items():
        key = prefix + name
        if isinstance(value, dict):
            origins |= _deepspeed_origins(value, template, f"{key}.")
        elif key in _FROM_RUN:
            origins[f"ds.{key}"] = f"run: {_FROM_RUN[key]}"
        elif template.said(key) == value:
            origins[f"ds.{key}"] = template.origin(key)
        else:
            origins[f"ds.{key}"] = "llmtrain"
    return origins
