"""What `accelerate launch` decided, read from the environment it sets.

accelerate/utils/launch.py (prepare_deepspeed_cmd_env) hands its YAML and flags on as ACCELERATE_* variables.
accelerate itself is not imported: llmtrain needs its answers, not its Accelerator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmtrain.config.merge import merge
from llmtrain.config.shipped import shipped_folder
from llmtrain.config.template import AUTO, Template, read_template
from llmtrain.errors import ConfigError, Problem

SOURCE = "accelerate"
_DS = "ACCELERATE_DEEPSPEED_"


def from_accelerate(environ: Mapping[str, str]) -> Template | None:
    """The strategy accelerate was asked for, or None when it was not asked for DeepSpeed.

    Raises ConfigError when it asks for what llmtrain can't do.
    """
    problems = _unsupported(environ)
    if environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        if problems:
            raise ConfigError(problems)
        return None
    config_file = environ.get(f"{_DS}CONFIG_FILE", "none")
    if config_file.lower() != "none":
        template = _from_file(config_file, problems)
        if not problems:  # accelerate itself would ignore fields beside a file; here they must agree
            fields = _from_fields(environ, problems, default_stage=template.said("zero_optimization.stage"))
            template, clashes = _beside_file(template, fields)
            problems += clashes
    else:
        template = _from_fields(environ, problems, default_stage=2)
    precision = environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision in ("bf16", "fp16"):
        template = _with_precision(template, precision, problems)
    if problems:
        raise ConfigError(problems)
    return template


def _origin(field: str) -> str:
    return f"{SOURCE} ({field})"


def _unsupported(environ: Mapping[str, str]) -> list[Problem]:
    """Strategies of accelerate other than DeepSpeed, and settings that llmtrain has of its own."""
    problems = []
    for variable, key, value in (
        ("ACCELERATE_USE_FSDP", "distributed_type", "FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "distributed_type", "MEGATRON_LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism_config", None),
    ):
        if environ.get(variable, "false").lower() == "true":
            file = shipped_folder() / "launch" / "accelerate" / "zero3.yaml"
            fix = f"llmtrain shards through DeepSpeed; in accelerate's file, write what {file} says"
            problems.append(Problem(key, value, SOURCE, fix))
    dynamo = environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if dynamo.lower() not in ("no", ""):
        fix = "compilation is chosen by `kernels` in the run; remove dynamo_config from accelerate's file"
        problems.append(Problem("dynamo_backend", dynamo, SOURCE, fix))
    if environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() == "fp8":
        fix = "DeepSpeed has no fp8 training; use bf16"
        problems.append(Problem("mixed_precision", "fp8", SOURCE, fix))
    return problems


def _from_file(path: str, problems: list[Problem]) -> Template:
    try:
        template = read_template(path)
    except ConfigError as error:
        problems += [
            Problem("deepspeed_config_file", path, SOURCE, problem.fix)
            if problem.field == "deepspeed"
            else problem
            for problem in error.problems
        ]
        return Template(path, {})
    return replace(template, source=f"{template.source} (accelerate deepspeed_config_file)")


def _beside_file(template: Template, fields: Template) -> tuple[Template, list[Problem]]:
    """The file, with accelerate's fields compared; offloading that only the file names is fine."""
    zero = dict(fields.content["zero_optimization"])
    for name in ("offload_optimizer", "offload_param"):
        said = template.content.get("zero_optimization")
        if isinstance(said, dict) and name in said:
            zero.setdefault(name, said[name])
    content = {**fields.content, "zero_optimization": zero}
    return merge(template, Template(fields.source, content, fields.origins), template.source)


def _from_fields(environ: Mapping[str, str], problems: list[Problem], default_stage: Any) -> Template:
    """accelerate's DeepSpeed plugin fields as a template. Without a file its default stage is 2."""
    zero: dict[str, Any] = {}
    content: dict[str, Any] = {"zero_optimization": zero}
    origins: dict[str, str] = {}

    def note(key: str, field: str) -> None:
        origins[key] = _origin(field)

    zero["stage"] = _number(environ, f"{_DS}ZERO_STAGE", "zero_stage", default_stage, problems)
    note("zero_optimization.stage", "zero_stage")
    for variable, key, field in (
        (
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "gradient_accumulation_steps",
            "gradient_accumulation_steps",
        ),
        ("ACCELERATE_GRADIENT_CLIPPING", "gradient_clipping", "gradient_clipping"),
    ):
        value = _number(environ, variable, field, AUTO, problems)
        content[key] = value
        note(key, field)
    for part in ("optimizer", "param"):
        field = f"offload_{part}_device"
        device = environ.get(f"{_DS}{field.upper()}", "none").lower()
        if device == "none":
            continue
        offload: dict[str, Any] = {"device": device, "pin_memory": AUTO}
        if device == "nvme":
            path = environ.get(f"{_DS}OFFLOAD_{part.upper()}_NVME_PATH", "none")
            if path == "none":
                fix = "accelerate doesn't pass the NVMe path on; set deepspeed_config_file"
                problems.append(Problem(field, device, SOURCE, fix))
            offload["nvme_path"] = path
        zero[f"offload_{part}"] = offload
        note(f"zero_optimization.offload_{part}.device", field)
        note(f"zero_optimization.offload_{part}", field)
    if environ.get(f"{_DS}ZERO3_SAVE_16BIT_MODEL", "false").lower() == "true":
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        note("zero_optimization.stage3_gather_16bit_weights_on_model_save", "zero3_save_16bit_model")
    moe = environ.get(f"{_DS}MOE_LAYER_CLS_NAMES", "none")
    if moe.lower() != "none":
        zero["leaf_module"] = {"classes": [name.strip() for name in moe.split(",")]}
        note("zero_optimization.leaf_module.classes", "deepspeed_moe_layer_cls_names")
    offloaded = "_offload" if "offload_optimizer" in zero else ""
    return Template(SOURCE, content, origins, f"zero{zero['stage']}{offloaded}")


def _number(
    environ: Mapping[str, str], variable: str, field: str, default: Any, problems: list[Problem]
) -> Any:
    text = environ.get(variable, "").lower()
    if text in ("", "none", AUTO):
        return default
    try:
        value = float(text)
    except ValueError:
        problems.append(Problem(field, text, SOURCE, "must be a number"))
        return default
    return int(value) if value.is_integer() and field != "gradient_clipping" else value


def _with_precision(template: Template, precision: str, problems: list[Problem]) -> Template:
    key = f"{precision}.enabled"
    said = template.said(key)
    other = "fp16" if precision == "bf16" else "bf16"
    clash = key if said is False else f"{other}.enabled" if template.said(f"{other}.enabled") else ""
    if clash:
        fix = f"{clash} ({template.origin(clash)}) says otherwise; say it in one place"
        problems.append(Problem("mixed_precision", precision, SOURCE, fix))
        return template
    content = {**template.content, precision: {**template.content.get(precision, {}), "enabled": True}}
    origins = {**template.origins} if said else {**template.origins, key: _origin("mixed_precision")}
    return replace(template, content=content, origins=origins)
