"""docs/steps.md names every step, every key of it, and the default it really has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from data_prep.corpus import CorpusConfig
from data_prep.steps.registry import StepSection
from llmtrain.config.schema import Section

PAGE = (Path(__file__).parents[2] / "docs" / "steps.md").read_text()
STEPS = {
    name: next(part for part in get_args(field.annotation) if part is not type(None))
    for name, field in StepSection.model_fields.items()
}


def shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def plain(text: str) -> str:
    """Numbers without zeros at their end: 0.30 and 3.0 are 0.3 and 3."""
    return re.sub(r"(\d)\.0\b", r"\1", re.sub(r"(\.\d*?[1-9])0+\b", r"\1", text))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_stands_in_the_table_with_its_keys_and_defaults(name: str) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1
    section: type[Section] = STEPS[name]
    for key, field in section.model_fields.items():
        if key == "exempt_code":
            assert "`exempt_code: true`" in PAGE
            continue
        default = field.get_default(call_default_factory=True)
        if field.is_required() or default is None:
            assert f"`{key}" in rows[0], key
        else:
            default = list(default) if isinstance(default, tuple) else default
            assert plain(f"`{key}: {shown(default)}`") in plain(rows[0]), key


def test_the_example_is_a_corpus() -> None:
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
    steps = example["steps"]
    files = [step for step in steps if {"urls", "python", "decontaminate"} & step.keys()]
    assert len(files) == 3  # they name files, which are not here: their keys are in the table
    CorpusConfig.model_validate(example | {"steps": [step for step in steps if step not in files]})
    for step in files:
        (name, settings), *_ = step.items()
        assert settings.keys() <= STEPS[name].model_fields.keys()
