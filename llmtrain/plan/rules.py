"""What can't go together: strategy, precision, device, world and batch, each refused with the way out."""

from __future__ import annotations

from llmtrain.config.deepspeed import zero_stage
from llmtrain.config.load import LoadedRun
from llmtrain.config.template import Template
from llmtrain.errors import Problem
from llmtrain.plan.batch import divisors, nearest_values
from llmtrain.plan.model_shape import ModelShape
from llmtrain.plan.topology import Topology

_ZERO = "zero_optimization."
_OFFLOAD_NEEDS = {
    "offload_param": (3,),
    "cpu_offload_param": (3,),
    "offload_optimizer": (1, 2, 3),
    "cpu_offload": (1, 2, 3),
}


def strategy_problems(loaded: LoadedRun, template: Template, world: int, device: str) -> list[Problem]:
    """Every contradiction between the run, the strategy, the number of ranks and the device."""
    return [
        *_pipeline_problems(loaded, template, world),
        *_device_problems(loaded, template, device),
        *_zero_problems(loaded, template, world),
    ]


def _pipeline_problems(loaded: LoadedRun, template: Template, world: int) -> list[Problem]:
    pipeline = loaded.config.parallel.pipeline
    problems: list[Problem] = []
    origin = loaded.origin("parallel.pipeline")
    if world % pipeline:
        works = " or ".join(map(str, nearest_values(pipeline, divisors(world))))
        fix = f"{world} ranks don't divide into {pipeline} stages; use {works}, or other ranks"
        problems.append(Problem("parallel.pipeline", pipeline, origin, fix))
    stage = zero_stage(template)
    if pipeline > 1 and stage >= 2:
        fix = (
            f"ZeRO-{stage} ({template.origin(_ZERO + 'stage')}) shards what a pipeline accumulates over its "
            "micro-batches, so DeepSpeed refuses both; use deepspeed: pipeline (ZeRO-1), or pipeline: 1"
        )
        problems.append(Problem("parallel.pipeline", pipeline, origin, fix))
    late = "bf16.immediate_grad_update"
    if pipeline > 1 and template.said(late) is False:
        fix = "DeepSpeed then counts the gradients of a bf16 pipeline twice; write true or remove it"
        problems.append(Problem(late, False, template.origin(late), fix))
    layers = (loaded.config.model.config or {}).get("num_hidden_layers")
    if isinstance(layers, int) and pipeline > layers:
        fix = f"the model has {layers} layers and every stage needs one; use at most {layers} stages"
        problems.append(Problem("parallel.pipeline", pipeline, origin, fix))
    return problems


def _device_problems(loaded: LoadedRun, template: Template, device: str) -> list[Problem]:
    if device != "cpu":
        return []
    problems: list[Problem] = []
    if loaded.config.precision == "fp16":
        fix = "DeepSpeed's CPU accelerator refuses fp16; use bf16 (or fp32)"
        problems.append(Problem("precision", "fp16", loaded.origin("precision"), fix))
    if loaded.config.kernels == "fused":
        fix = "fused kernels are made for GPUs, and this run has none; `kernels: auto` takes what there is"
        problems.append(Problem("kernels", "fused", loaded.origin("kernels"), fix))
    for name in ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights"):
        if template.said(_ZERO + name):
            fix = "ZeRO++ quantises with CUDA kernels, which a CPU lacks; use deepspeed: zero3 here"
            problems.append(Problem(_ZERO + name, True, template.origin(_ZERO + name), fix))
    return problems


def _zero_problems(loaded: LoadedRun, template: Template, world: int) -> list[Problem]:
    problems: list[Problem] = []
    stage = zero_stage(template)
    if stage == 0 and loaded.config.precision == "fp16":
        fix = (
            f"at ZeRO-0 ({template.origin(_ZERO + 'stage')}) DeepSpeed does not scale the loss of an fp16 "
            "run; use deepspeed: zero1, which on one rank is the same"
        )
        problems.append(Problem("precision", "fp16", loaded.origin("precision"), fix))
    if stage == 3 and loaded.config.kernels == "fused":
        fix = (
            f"it compiles each decoder layer, and ZeRO-3 ({template.origin(_ZERO + 'stage')}) runs Python "
            "around every module in it, so nothing is fused and steps are slower; use kernels: auto, or "
            "deepspeed: zero2"
        )
        problems.append(Problem("kernels", "fused", loaded.origin("kernels"), fix))
    for name, stages in _OFFLOAD_NEEDS.items():
        key = _ZERO + name
        said = template.said(f"{key}.device") if name.startswith("offload") else template.said(key)
        if said in (None, False, "none"):
            continue
        if stage not in stages:
            fix = f"it needs ZeRO stage {' or '.join(map(str, stages))}, here it is {stage}; remove it"
            problems.append(Problem(key, said, template.origin(key), fix))
        if said == "nvme":
            problems += _nvme_problems(template, name, stage)
    ratio = template.said(f"{_ZERO}offload_optimizer.ratio")
    if ratio is not None and ratio != 1:
        key = f"{_ZERO}offload_optimizer.ratio"
        fix = "DeepSpeed offloads a part only at ZeRO-3, with its own Adam, which must be compiled; write 1"
        fix = fix if ratio < 1 else "must be at most 1"
        problems.append(Problem(key, ratio, template.origin(key), fix))
    dp = world // loaded.config.parallel.pipeline
    hpz = template.said(f"{_ZERO}zero_hpz_partition_size")
    if hpz is not None and hpz > 1 and dp and dp % hpz:
        key = f"{_ZERO}zero_hpz_partition_size"
        works = " or ".join(map(str, nearest_values(hpz, divisors(dp))))
        fix = f'{dp} ranks don\'t divide into groups of {hpz}; use {works}, or "auto"'
        problems.append(Problem(key, hpz, template.origin(key), fix))
    return problems


def _nvme_problems(template: Template, name: str, stage: int) -> list[Problem]:
    """What DeepSpeed can't do with an NVMe disk, or would do wrong without a word."""
    key = f"{_ZERO}{name}"
    problems: list[Problem] = []
    if name == "offload_optimizer" and stage in (1, 2):
        fix = f'only ZeRO-3 uses a disk, here it is {stage}; write "cpu", or deepspeed: zero3_nvme'
        problems.append(Problem(f"{key}.device", "nvme", template.origin(f"{key}.device"), fix))
    place = template.said(f"{key}.nvme_path")
    if not str(place or "").startswith("/"):  # DeepSpeed would make a folder named ~
        fix = "name the folder on the NVMe disk, an absolute path"
        problems.append(Problem(f"{key}.nvme_path", place, template.origin(key), fix))
    at_once = 1 + sum(template.said(f"{key}.pipeline_{way}") is True for way in ("read", "write"))
    count = template.said(f"{key}.buffer_count")
    if name == "offload_optimizer" and (4 if count is None else count) < 4 * at_once:
        fix = f"weights, gradients and two moments of {at_once} sub-groups at a time need {4 * at_once}"
        problems.append(Problem(f"{key}.buffer_count", count, template.origin(f"{key}.buffer_count"), fix))
    return problems


def buffer_problems(template: Template, shape: ModelShape | None, dp: int) -> list[Problem]:
    """A parameter whose part does not fit its buffer ends the run with an assertion of DeepSpeed's."""
    key = f"{_ZERO}offload_param.buffer_size"
    if shape is None or template.said(f"{_ZERO}offload_param.device") != "nvme":
        return []
    said = template.said(key)
    size = 10**8 if said is None else said  # DeepSpeed's default
    rows, what = max((shape.vocab, "embedding"), (shape.intermediate, "MLP's matrix"))
    part = -(-rows * shape.hidden // dp)
    if part <= size:
        return []
    whole = f"the model's {what} has {rows:,} × {shape.hidden:,} elements"
    fix = f"{whole}, {part:,} on each of {dp} ranks: write at least {part}, or 'cpu' as offload_param.device"
    return [Problem(key, size, template.origin(key if said is not None else key.rpartition(".")[0]), fix)]


def batch_problem(loaded: LoadedRun, template: Template, topology: Topology, said: str) -> Problem:
    """The failed division of plan_batch as a Problem on the field to change."""
    run = loaded.config
    field, value = "batch.rows", run.batch.rows
    if run.batch.rows % topology.dp == 0:
        if isinstance(run.batch.micro, int):
            field, value = "batch.micro", run.batch.micro
        else:
            field = "gradient_accumulation_steps"
            return Problem(field, template.said(field), template.origin(field), said)
    shape = f"{topology.world} ranks"
    if topology.pipeline > 1:
        shape += f" in {topology.pipeline} stages"
    return Problem(field, value, loaded.origin(field), f"{said} ({shape})")
