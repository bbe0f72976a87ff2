"""From a DeepSpeed template and a run to the one dict the engine gets, every value in it explicit.

llmtrain hands DeepSpeed its own AdamW and writes lr(step) itself, so the dict has no optimizer and no
scheduler section; what a file says there is adopted by the run (see adopt.py).
"""

from __future__ import annotations

from typing import Any

from llmtrain.config.adopt import adopt
from llmtrain.config.keys import TOP, ZERO_ALIASES, Key
from llmtrain.config.schema import RunConfig
from llmtrain.config.template import AUTO, Template, load_template
from llmtrain.errors import ConfigError, Problem

__all__ = ["Template", "adopt", "load_template", "resolve", "zero_stage"]

NEVER = 10**12  # steps between DeepSpeed's own progress lines: llmtrain prints its own
_RUN_DECIDES = {"optimizer", "scheduler", "bf16", "bfloat16", "fp16", "zero_optimization", "pipeline"}
_ALWAYS = ("dump_state", "wall_clock_breakdown", "memory_breakdown", "prescale_gradients")


def zero_stage(template: Template) -> int:
    """The ZeRO stage the template asks for; 0 when it says none, as in DeepSpeed."""
    return int(template.said("zero_optimization.stage") or 0)


def resolve(
    template: Template, run: RunConfig, micro: int, accumulation: int, world: int, device: str
) -> dict[str, Any]:
    """The DeepSpeed dict of this run.

    micro: rows per rank and forward pass; accumulation: micro-batches per step; world: all ranks;
    device: "cpu" or "cuda". Raises ConfigError when a value of the file can't hold for this run.
    """
    dp = world // run.parallel.pipeline
    said = template.content
    resolved: dict[str, Any] = {
        "train_batch_size": micro * accumulation * dp,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": run.optimizer.clip,
        "steps_per_print": _steps_per_print(said.get("steps_per_print")),
        "gradient_predivide_factor": _concrete(said, TOP, "gradient_predivide_factor"),
        "zero_allow_untested_optimizer": _concrete(said, TOP, "zero_allow_untested_optimizer"),
        "zero_force_ds_cpu_optimizer": False,
    }
    resolved |= {name: _concrete(said, TOP, name) for name in _ALWAYS}
    resolved["zero_optimization"] = _zero(template, run, dp, device)
    resolved |= _precision(template, run)
    resolved["data_types"] = {"grad_accum_dtype": _grad_accum_dtype(template, run)}
    sums = resolved["data_types"]["grad_accum_dtype"]
    resolved["communication_data_type"] = said.get("communication_data_type", AUTO)
    if resolved["communication_data_type"] in (AUTO, None):
        resolved["communication_data_type"] = _communication_dtype(zero_stage(template), run.precision, sums)
    resolved["timers"] = {"throughput": _throughput_timer(template)}
    if run.parallel.pipeline > 1:
        resolved["pipeline"] = _pipeline(template, run)
    for name, value in said.items():
        if name in resolved or name in _RUN_DECIDES or value is None or value == AUTO:
            continue
        key = TOP.known[name]
        resolved[name] = _filled(value, key) if key.keys is not None else value
    return resolved


def _concrete(content: dict[str, Any], section: Key, name: str) -> Any:
    """The value said for `name`, or the table's default for it."""
    value = content.get(name)
    return section.known[name].default if value is None or value == AUTO else value


def _filled(content: dict[str, Any], section: Key, stage: int | None = None) -> dict[str, Any]:
    """A section with a value for every key that matters (at this ZeRO stage), in the table's order."""
    filled: dict[str, Any] = {}
    for name, key in section.known.items():
        if key.refused:
            continue
        if key.keys is not None:
            if name in content:
                filled[name] = _filled(content[name], key)
            continue
        value = _concrete(content, section, name)
        matters = stage is None or stage in key.stages or (name in content and content[name] != AUTO)
        if matters and value is not None:
            filled[name] = int(value) if key.kind == "whole" else value
    return filled


def _steps_per_print(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 < value < NEVER else NEVER


def _canonical_zero(content: dict[str, Any]) -> dict[str, Any]:
    """zero_optimization with old spellings translated, as DeepSpeed's own deprecation code does."""
    zero = {ZERO_ALIASES.get(name, name): value for name, value in content.items()}
    pin = zero.pop("cpu_offload_use_pin_memory", AUTO)
    for old, new in (("cpu_offload", "offload_optimizer"), ("cpu_offload_param", "offload_param")):
        if zero.pop(old, False) is True:
            zero.setdefault(new, {"device": "cpu", "pin_memory": pin})
    for name in ("offload_optimizer", "offload_param"):
        if zero.get(name, {}).get("device") in ("none", None, AUTO):
            zero.pop(name, None)
    return zero


def _zero(template: Template, run: RunConfig, dp: int, device: str) -> dict[str, Any]:
    said = _canonical_zero(template.content.get("zero_optimization", {}))
    stage = zero_stage(template)
    said["stage"] = stage
    if said.get("overlap_comm", AUTO) in (AUTO, None):
        said["overlap_comm"] = device == "cuda" and stage >= 2 and run.parallel.pipeline == 1
    if stage == 3 and said.get("zero_hpz_partition_size") == AUTO:
        said["zero_hpz_partition_size"] = max(n for n in range(1, 9) if dp % n == 0)
    for name in ("offload_optimizer", "offload_param"):
        if name in said and said[name].get("pin_memory", AUTO) in (AUTO, None):
            said[name] = {**said[name], "pin_memory": device == "cuda"}
    return _filled(said, TOP.known["zero_optimization"], stage)


def _precision(template: Template, run: RunConfig) -> dict[str, Any]:
    """Both 16-bit blocks, explicit whether on or off."""
    bf16 = template.content.get("bf16", template.content.get("bfloat16", {}))
    blocks = {
        "bf16": _filled(bf16, TOP.known["bf16"]),
        "fp16": _filled(template.content.get("fp16", {}), TOP.known["fp16"]),
    }
    for name, block in blocks.items():
        block["enabled"] = run.precision == name
    return blocks


def _grad_accum_dtype(template: Template, run: RunConfig) -> str:
    """In which type gradients are summed over micro-batches.

    DeepSpeed (engine.py, _do_optimizer_sanity_check) needs the model's own type at stage 0; at stage 1 bf16
    with fp32 sums selects BF16_Optimizer. bf16 loses what is below 1/256 of a sum, so bf16 sums in fp32.
    """
    stage = zero_stage(template)
    said = template.said("data_types.grad_accum_dtype")
    natural = run.precision if stage == 0 or run.precision != "bf16" else "fp32"
    if said is None or said == natural:
        return natural
    allowed = {run.precision, "fp32"} if stage > 0 else {run.precision}
    if said not in allowed:
        fix = f"precision {run.precision} at ZeRO stage {stage} allows {' or '.join(sorted(allowed))}"
        raise ConfigError(
            Problem("data_types.grad_accum_dtype", said, template.origin("data_types.grad_accum_dtype"), fix)
        )
    return str(said)


def _communication_dtype(stage: int, precision: str, sums: str) -> str:
    """In which type gradients travel between ranks, and in which they are added up there.

    Up to stage 1, pipelines included, what travels is the sum over a step's micro-batches, once: in that
    sum's type. DeepSpeed would take the model's, and so round fp32 sums to bf16 before the update, on one
    rank too. At stages 2 and 3 it is one micro-batch's gradients, which are of the model's type as they
    come: fp32 would double the traffic of each micro-batch to save a rounding; sums over micro-batches
    stay `sums`.
    """
    return sums if stage < 2 else precision


def _throughput_timer(template: Template) -> dict[str, Any]:
    """DeepSpeed's throughput timer, off unless a file asks for it: it waits for the device at every turn."""
    asked = template.content.get("timers", {}).get("throughput", {})
    return _filled({"enabled": False, **asked}, TOP.known["timers"].known["throughput"])


def _pipeline(template: Template, run: RunConfig) -> dict[str, Any]:
    """The pipeline section: llmtrain cuts the stages itself and recomputes inside the model."""
    said = template.content.get("pipeline", {})
    return {
        **_filled(said, TOP.known["pipeline"]),
        "stages": run.parallel.pipeline,
        "partition": "uniform",
        "seed_layers": False,
        "activation_checkpoint_interval": 0,
        "use_reentrant": False,
    }
