"""In which types gradients are summed and travel, and which of DeepSpeed's timers run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.deepspeed import resolve
from llmtrain.config.load import load_run
from llmtrain.config.template import Template


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: demo\nmodel: {config: {model_type: llama}}\ndata: {train: [{path: d}]}\nschedule: {steps: 3}\n"
    )
    return path


def resolved(run_file: Path, content: dict[str, Any], *overrides: str) -> dict[str, Any]:
    return resolve(Template("user.json", content), load_run(run_file, overrides).config, 4, 2, 8, "cuda")


@pytest.mark.parametrize(
    ("stage", "precision", "expected"),
    # up to stage 1 the sums of a step travel, beyond it one micro-batch's gradients
    [(0, "bf16", "bf16"), (1, "bf16", "fp32"), (2, "bf16", "bf16"), (3, "bf16", "bf16")]
    + [(stage, "fp16", "fp16") for stage in range(1, 4)]
    + [(stage, "fp32", "fp32") for stage in range(4)],
)
def test_gradients_travel_in_the_type_they_have(
    run_file: Path, stage: int, precision: str, expected: str
) -> None:
    zero = {"zero_optimization": {"stage": stage}}
    for content in (zero, {**zero, "communication_data_type": "auto"}):
        assert resolved(run_file, content, f"precision={precision}")["communication_data_type"] == expected
    asked = {**zero, "communication_data_type": "fp16"}
    assert resolved(run_file, asked, f"precision={precision}")["communication_data_type"] == "fp16"
    summed = {**zero, "data_types": {"grad_accum_dtype": precision}}
    assert resolved(run_file, summed, f"precision={precision}")["communication_data_type"] == precision


def test_a_pipeline_sends_its_sums_in_fp32(run_file: Path) -> None:
    content = {"zero_optimization": {"stage": 1}}
    assert resolved(run_file, content, "parallel.pipeline=2")["communication_data_type"] == "fp32"


def test_the_throughput_timer_is_off_unless_asked_for(run_file: Path) -> None:
    zero = {"zero_optimization": {"stage": 1}}
    assert resolved(run_file, zero)["timers"]["throughput"]["enabled"] is False
    asked = {**zero, "timers": {"throughput": {"enabled": True, "synchronized": False}}}
    assert resolved(run_file, asked)["timers"] == asked["timers"]
