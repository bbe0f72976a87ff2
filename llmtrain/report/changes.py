"""How a run that goes on differs from what its checkpoint says it was: told, and kept per start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from llmtrain.config.schema import RunConfig
from llmtrain.config.yaml_lines import parse_scalar
from llmtrain.plan.plan import Plan
from llmtrain.plan.schedule import schedule_of, steps_of

# What a resumed run has from its checkpoint, whatever the field says by then.
_FROM_THE_CHECKPOINT = {"model.source": "the weights are the checkpoint's"}


@dataclass(frozen=True)
class Change:
    """One field of the run that is not what it was, and where its value comes from now."""

    field: str
    before: Any
    now: Any
    origin: str

    def __str__(self) -> str:
        return f"{self.field} {_shown(self.before)} → {_shown(self.now)} ({self.origin})"

    def told(self, left: bool = True) -> str:
        """As a line; `left`: there are steps to do, else no change has an effect, which is said."""
        idle = _FROM_THE_CHECKPOINT.get(self.field, "") if left else "every step is done"
        return f"{self} has no effect: {idle}" if idle else str(self)

    def record(self) -> dict[str, Any]:
        """For the ledger."""
        return asdict(self)


def changes(run_yaml: str, plan: Plan) -> list[Change]:
    """Every field of the planned run that is not as `run_yaml`, the resolved run of a checkpoint, has it.

    A default that the version of that time did not have is no change, nor is a micro-batch that was chosen
    for this world.
    """
    before, now = _present(_content(run_yaml)), _present(plan.run.model_dump(mode="json"))
    if not before:
        return []
    found = []
    for field in dict.fromkeys([*now, *before]):
        old, new = before.get(field), now.get(field)
        origin = _origin(field, plan.origins)
        derived = field == "batch.micro" and (origin.startswith("auto: ") or "÷" in origin)
        unknown = origin == "default" and field not in before
        if old != new and not derived and not unknown:
            found.append(Change(field, old, new, origin))
    return found


def schedule_change(run_yaml: str, plan: Plan, updates: int, epoch_rows: int) -> str:
    """What the changes do to the learning rate of the next step, when they do; `updates` are done."""
    try:
        run = RunConfig.model_validate(_content(run_yaml))
        before, now = schedule_of(run, steps_of(run, epoch_rows)), plan.schedule
    except (ValidationError, AssertionError):  # another version's; its schedule isn't known
        return ""
    rates = before.lr(updates), now.lr(updates)
    if rates[0] == rates[1] and before.steps == now.steps:
        return ""
    text = f"learning rate of the next step {rates[0]:.3g} → {rates[1]:.3g}"
    if before.steps != now.steps and now.decay != "constant":
        text += f": its {now.decay} decay is drawn anew, to end at step {now.steps}, not {before.steps}"
    return text


def leaves(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of a nested mapping by its dotted key; items of a list of sections by their index."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and value and all(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                found |= leaves(item, f"{prefix}{name}.{index}.")
        else:
            found[prefix + str(name)] = value
    return found


def _present(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in leaves(content).items() if value not in (None, [], {})}


def _content(run_yaml: str) -> dict[str, Any]:
    """A resolved run as a mapping, empty when it can't be read: then nothing is known of before."""
    try:
        content = parse_scalar(run_yaml)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _origin(field: str, origins: Mapping[str, str]) -> str:
    while field not in origins and "." in field:
        field = field.rpartition(".")[0]
    return origins.get(field, "default")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
