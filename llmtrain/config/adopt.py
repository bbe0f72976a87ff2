"""What a DeepSpeed file says about the run itself: taken over where the run is silent, compared where not.

One source for every value: a file may say the batch, the learning rate or the precision only when the run
does not, and two places that say different things are an error that names both.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from llmtrain.config.load import LoadedRun
from llmtrain.config.schema import RunConfig
from llmtrain.config.template import AUTO, Template
from llmtrain.errors import ConfigError, Problem

# key in the DeepSpeed file -> field of the run, where both mean the same number
_SAME = {
    "train_batch_size": "batch.rows",
    "train_micro_batch_size_per_gpu": "batch.micro",
    "gradient_clipping": "optimizer.clip",
    "pipeline.stages": "parallel.pipeline",
    "optimizer.params.lr": "optimizer.lr",
    "optimizer.params.betas": "optimizer.betas",
    "optimizer.params.eps": "optimizer.eps",
    "optimizer.params.weight_decay": "optimizer.weight_decay",
}
# scheduler.type -> the shape it draws, and the parameters it has besides the warmup's
_DECAYS = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
_ADAM_NAMES = ("adam", "adamw")


def adopt(loaded: LoadedRun, template: Template) -> LoadedRun:
    """The run with the file's concrete values in it; a contradiction raises ConfigError with both places."""
    adopted, problems = try_adopt(loaded, template)
    if problems:
        raise ConfigError(problems)
    return adopted


def try_adopt(loaded: LoadedRun, template: Template) -> tuple[LoadedRun, list[Problem]]:
    """Like `adopt`, but hands back what could be adopted and the problems."""
    problems: list[Problem] = []
    wishes: list[tuple[str, str, Any]] = [
        (key, field, template.said(key)) for key, field in _SAME.items() if template.said(key) is not None
    ]
    wishes += _precision_wishes(template, loaded.config, problems)
    wishes += _optimizer_and_scheduler(template, loaded.config, problems)
    taken: dict[str, tuple[str, Any]] = {}
    for key, field, value in wishes:
        first, said = taken.setdefault(field, (key, value))
        if said != value:
            fix = f"{first} = {said!r} in the same file says otherwise; keep one"
            problems.append(Problem(key, value, template.origin(key), fix))
            continue
        loaded = _take(loaded, template, key, field, value, problems)
    return loaded, problems


def _take(
    loaded: LoadedRun, template: Template, key: str, field: str, value: Any, problems: list[Problem]
) -> LoadedRun:
    current = _read(loaded.config, field)
    if isinstance(value, list):
        value = tuple(value)
    if current == value and (field in loaded.explicit or loaded.origin(field) != "default"):
        return loaded
    if field in loaded.explicit and current != AUTO:
        other = f"{field} = {current!r} ({loaded.origin(field)})"
        fix = f"{other} says otherwise; keep one: {_way_out(key, template)}"
        problems.append(Problem(key, template.said(key), template.origin(key), fix))
        return loaded
    try:
        config = _written(loaded.config, field, value)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Input should be ")
        problems.append(Problem(key, value, template.origin(key), f"must be {said}"))
        return loaded
    origins = {**loaded.origins, field: template.origin(key)}
    return replace(loaded, config=config, origins=origins)


def _way_out(key: str, template: Template) -> str:
    if template.origin(key).startswith("accelerate"):
        return "drop accelerate's setting, or take the field out of the run"
    if key == "scheduler.type":
        return "remove the scheduler here, or the field from the run"
    return 'write "auto" here, or take the field out of the run'


def _read(config: RunConfig, field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = getattr(value, part)
    return value


def _written(config: RunConfig, field: str, value: Any) -> RunConfig:
    content = config.model_dump()
    place = content
    *sections, leaf = field.split(".")
    for part in sections:
        place = place[part]
    place[leaf] = value
    return RunConfig.model_validate(content)


def _precision_wishes(
    template: Template, run: RunConfig, problems: list[Problem]
) -> list[tuple[str, str, Any]]:
    """bf16/fp16 `enabled` as a precision; `false` only rules that one out."""
    bf16_key = "bfloat16.enabled" if "bfloat16" in template.content else "bf16.enabled"
    bf16, fp16 = template.said(bf16_key), template.said("fp16.enabled")
    if bf16 and fp16:
        fix = "fp16 is enabled as well; enable one of the two"
        problems.append(Problem(bf16_key, True, template.origin(bf16_key), fix))
        return []
    if bf16:
        return [(bf16_key, "precision", "bf16")]
    if fp16:
        return [("fp16.enabled", "precision", "fp16")]
    ruled_out = {"bf16": bf16 is False, "fp16": fp16 is False}
    if ruled_out.get(run.precision):
        key = bf16_key if run.precision == "bf16" else "fp16.enabled"
        return [(key, "precision", "fp32")]
    return []


def _optimizer_and_scheduler(
    template: Template, run: RunConfig, problems: list[Problem]
) -> list[tuple[str, str, Any]]:
    name = template.said("optimizer.type")
    if name is not None and str(name).lower() not in _ADAM_NAMES:
        fix = "llmtrain trains with AdamW; write AdamW, or remove the optimizer section"
        problems.append(Problem("optimizer.type", name, template.origin("optimizer.type"), fix))
    kind = template.said("scheduler.type")
    if kind is None:
        return []
    if kind not in _DECAYS:
        fix = f"can't be honoured; use {', '.join(_DECAYS)}, or remove it and set the run's schedule"
        problems.append(Problem("scheduler.type", kind, template.origin("scheduler.type"), fix))
        return []
    wishes: list[tuple[str, str, Any]] = [("scheduler.type", "schedule.decay", _DECAYS[kind])]
    params = "scheduler.params."
    if kind == "WarmupDecayLR":
        wishes.append(("scheduler.type", "schedule.min_lr_ratio", 0.0))
    for name, field in (
        ("warmup_num_steps", "schedule.warmup"),
        ("warmup_max_lr", "optimizer.lr"),
        ("cos_min_ratio", "schedule.min_lr_ratio"),
    ):
        value = template.said(params + name)
        share = run.schedule.warmup * (run.schedule.steps or 0)
        same_steps = name == "warmup_num_steps" and share > 0 and value == math.ceil(share)
        if value is not None and not same_steps:
            wishes.append((params + name, field, value))
    refusals = {
        "warmup_min_lr": (0, 0.0),
        "warmup_min_ratio": (0, 0.0),
        "warmup_type": ("linear",),
    }
    for name, fine in refusals.items():
        value = template.said(params + name)
        if value is not None and value not in fine:
            fix = f'llmtrain warms up linearly from zero; write {fine[0]!r}, "auto", or remove it'
            problems.append(Problem(params + name, value, template.origin(params + name), fix))
    return wishes
