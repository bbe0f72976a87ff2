"""The key table, and what resolve() writes, against the DeepSpeed that is installed."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import deepspeed.runtime.config as ds
import pytest
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

from llmtrain.config import keys
from llmtrain.config.load import load_run
from llmtrain.config.template import known_templates
from llmtrain.plan.plan import make_plan


class Watched(dict[str, Any]):
    """A dict that notes every key somebody looks for, in the set it was given."""

    seen: set[str]

    def __contains__(self, key: object) -> bool:
        self.seen.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self


def watched(content: dict[str, Any]) -> Watched:
    found = Watched(content)
    found.seen = set()
    return found


def looked_for(section: str, content: dict[str, Any]) -> set[str]:
    """The keys DeepSpeedConfig looks for in one section (or, for "", at the top level)."""
    inner = watched(content)
    top = watched({"train_batch_size": 1, section: inner}) if section else inner
    ds.DeepSpeedConfig(top)
    return inner.seen


def test_top_level_keys_are_those_deepspeed_looks_for() -> None:
    seen = looked_for("", {"train_batch_size": 1})
    elsewhere = {"sequence_parallel_size", "allgather_size"}  # read in other files, or only in old formats
    assert seen - set(keys.REMOVED) == set(keys.TOP.known) - elsewhere
    assert elsewhere <= set(keys.TOP.known)


def test_removed_keys_are_deepspeeds_own_list() -> None:
    assert set(keys.REMOVED) == set(ds._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert set(keys.REMOVED_ZERO) == set(ds._REMOVED_ZERO_CONFIG_KEYS)


@pytest.mark.parametrize(
    ("section", "content"),
    [
        ("activation_checkpointing", {}),
        ("aio", {}),
        ("flops_profiler", {}),
        ("torch_autocast", {}),
        ("data_types", {}),
        ("optimizer", {"type": "AdamW", "params": {}}),
    ],
)
def test_keys_of_plain_sections(section: str, content: dict[str, Any]) -> None:
    assert looked_for(section, content) == set(keys.TOP.known[section].known)


@pytest.mark.parametrize(
    ("section", "model"),
    [
        (keys.ZERO_OPTIMIZATION, DeepSpeedZeroConfig),
        (keys.OFFLOAD_OPTIMIZER, DeepSpeedZeroOffloadOptimizerConfig),
        (keys.OFFLOAD_PARAM, DeepSpeedZeroOffloadParamConfig),
        (keys.LEAF_MODULE, DeepSpeedZeroLeafModuleConfig),
        (keys.BF16, DeepSpeedBF16Config),
        (keys.FP16, DeepSpeedFP16Config),
        (keys.COMMS_LOGGER, CommsLoggerConfig),
        (keys.TENSORBOARD, TensorBoardConfig),
        (keys.WANDB, WandbConfig),
        (keys.CSV_MONITOR, CSVConfig),
        (keys.COMET, CometConfig),
        (keys.TIMERS.known["throughput"], DeepSpeedThroughputTimerConfig),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_keys_and_defaults_of_typed_sections(section: keys.Key, model: Any) -> None:
    fields = model.model_fields
    aliases = {field.alias for field in fields.values() if field.alias}
    assert set(section.known) == set(fields) | aliases
    # A default that is made explicit is DeepSpeed's own, but for buffers kept smaller and a pipeline's sums.
    ours = {"reduce_bucket_size", "allgather_bucket_size", "immediate_grad_update"}
    for name, key in section.known.items():
        field = fields.get(name) or next(f for f in fields.values() if f.alias == name)
        if key.default is not None and not key.refused and name not in ours:
            assert key.default == field.get_default(call_default_factory=True), name


def test_pipeline_keys() -> None:
    tree = ast.parse(inspect.getsource(ds.get_pipeline_config))
    read = {key.value for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}  # type: ignore[union-attr]
    assert set(keys.PIPELINE.known) == read | {"use_reentrant"}


def test_scheduler_keys() -> None:
    from deepspeed.runtime.lr_schedules import WarmupCosineLR, WarmupDecayLR, WarmupLR

    arguments = {
        name
        for kind in (WarmupLR, WarmupDecayLR, WarmupCosineLR)
        for name in inspect.signature(kind).parameters
    }
    assert arguments - {"optimizer"} == set(keys.SCHEDULER.known["params"].known)


RUN = """\
name: demo
model: {config: {model_type: llama}}
data: {train: [{path: d}], seq_len: 128}
batch: {rows: 8, micro: 2}
schedule: {steps: 10}
optimizer: {clip: 0.7}
"""


@pytest.mark.parametrize(
    ("name", "precision"),
    # ZeRO-0 with fp16 is refused
    sorted({*itertools.product(known_templates(), ("bf16", "fp16", "fp32"))} - {("zero0", "fp16")}),
)
def test_deepspeed_reads_back_what_the_plan_says(tmp_path: Path, name: str, precision: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    loaded = load_run(path, [f"deepspeed={name}", f"precision={precision}"])
    plan = make_plan(loaded, 1, "cuda", {})
    read = ds.DeepSpeedConfig(json.loads(json.dumps(plan.deepspeed)))
    assert read.zero_optimization_stage == plan.topology.zero_stage
    assert read.gradient_clipping == 0.7
    assert read.train_batch_size == 8
    assert read.train_micro_batch_size_per_gpu == plan.batch.micro == 2
    assert read.gradient_accumulation_steps == plan.batch.accumulation == 4
    assert (read.bfloat16_config.enabled, read.float16_config.enabled) == (
        precision == "bf16",
        precision == "fp16",
    )
    assert read.optimizer_name is None
    assert read.scheduler_name is None
    assert read.zero_force_ds_cpu_optimizer is False
    offload = plan.deepspeed["zero_optimization"].get("offload_optimizer")
    assert (read.zero_config.offload_optimizer is None) == (offload is None)
    dumped = read.zero_config.model_dump(by_alias=True)
    for key, value in plan.deepspeed["zero_optimization"].items():
        if not isinstance(value, dict):
            assert dumped[key] == value, key
