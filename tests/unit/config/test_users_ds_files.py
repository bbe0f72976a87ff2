"""DeepSpeed files as DeepSpeedExamples and transformers' documentation have them work as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.load import load_run
from llmtrain.errors import ConfigError
from llmtrain.plan.plan import Plan, make_plan

AUTO = "auto"
BATCH_AUTO = {
    "train_batch_size": AUTO,
    "train_micro_batch_size_per_gpu": AUTO,
    "gradient_accumulation_steps": AUTO,
    "gradient_clipping": AUTO,
}
FP16_AUTO = {
    "enabled": AUTO,
    "loss_scale": 0,
    "loss_scale_window": 1000,
    "initial_scale_power": 16,
    "hysteresis": 2,
    "min_loss_scale": 1,
}
ADAMW_AUTO = {"type": "AdamW", "params": {"lr": AUTO, "betas": AUTO, "eps": AUTO, "weight_decay": AUTO}}
WARMUP_AUTO = {
    "type": "WarmupLR",
    "params": {"warmup_min_lr": AUTO, "warmup_max_lr": AUTO, "warmup_num_steps": AUTO},
}
ZERO3_AUTO = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": AUTO,
    "stage3_prefetch_bucket_size": AUTO,
    "stage3_param_persistence_threshold": AUTO,
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}
CPU = {"device": "cpu", "pin_memory": True}
NVME = {"device": "nvme", "nvme_path": "/local_nvme", "pin_memory": True}

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "zero2": {
        "fp16": FP16_AUTO,
        "optimizer": ADAMW_AUTO,
        "scheduler": WARMUP_AUTO,
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": CPU,
            "allgather_partitions": True,
            "allgather_bucket_size": 2e8,
            "overlap_comm": True,
            "reduce_scatter": True,
            "reduce_bucket_size": 2e8,
            "contiguous_gradients": True,
            "round_robin_gradients": True,
        },
        **BATCH_AUTO,
        "steps_per_print": 2000,
        "wall_clock_breakdown": False,
    },
    "zero3 offload": {
        "fp16": FP16_AUTO,
        "bf16": {"enabled": AUTO},
        "optimizer": ADAMW_AUTO,
        "scheduler": {"type": "WarmupDecayLR", "params": {**WARMUP_AUTO["params"], "total_num_steps": AUTO}},
        "zero_optimization": {**ZERO3_AUTO, "offload_optimizer": CPU, "offload_param": CPU},
        **BATCH_AUTO,
        "steps_per_print": 2000,
        "wall_clock_breakdown": False,
    },
    "zero3 nvme": {
        "bf16": {"enabled": True},
        "zero_optimization": {
            **ZERO3_AUTO,
            "offload_optimizer": {**NVME, "buffer_count": 4, "fast_init": False},
            "offload_param": {**NVME, "buffer_count": 5, "buffer_size": 1e8, "max_in_cpu": 1e9},
        },
        "aio": {"block_size": 262144, "queue_depth": 32, "single_submit": False, "overlap_events": True},
        **BATCH_AUTO,
    },
    "zero++": {
        "bf16": {"enabled": AUTO},
        "zero_optimization": {
            **ZERO3_AUTO,
            "zero_quantized_weights": True,
            "zero_hpz_partition_size": 8,
            "zero_quantized_gradients": True,
        },
        **BATCH_AUTO,
    },
    "zero1 minimal": {"zero_optimization": {"stage": 1}},
    "fp32": {"fp16": {"enabled": False}, "bf16": {"enabled": False}, "zero_optimization": {"stage": 3}},
}
# The shape of DeepSpeedExamples' files: everything concrete.
EXAMPLE_7B = {
    "train_batch_size": 128,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 1.0,
    "steps_per_print": 100,
    "wall_clock_breakdown": False,
    "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 2,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 500000000,
        "allgather_bucket_size": 500000000,
    },
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": 2e-5, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
    },
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": 0,
            "warmup_max_lr": 2e-5,
            "warmup_num_steps": 200,
            "total_num_steps": 1000,
        },
    },
}
EXAMPLE_LEAF = {
    "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 1e5,
        "leaf_module": {"classes": ["transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock"]},
    },
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    "scheduler": {
        "type": "WarmupCosineLR",
        "params": {
            "total_num_steps": 1000,
            "warmup_min_ratio": 0,
            "warmup_num_steps": 100,
            "cos_min_ratio": 0.001,
            "warmup_type": "linear",
        },
    },
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 1,
    "steps_per_print": 10,
}
EXAMPLE_CIFAR = {
    "train_batch_size": 16,
    "steps_per_print": 2000,
    "optimizer": {
        "type": "Adam",
        "params": {"lr": 0.001, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7},
    },
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 1000},
    },
    "gradient_clipping": 1.0,
    "prescale_gradients": False,
    "bf16": {"enabled": False},
    "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 500, "initial_scale_power": 15},
    "wall_clock_breakdown": False,
    "zero_optimization": {
        "stage": 1,
        "allgather_partitions": True,
        "reduce_scatter": True,
        "allgather_bucket_size": 50000000,
        "reduce_bucket_size": 50000000,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "cpu_offload": False,
    },
}


def planned(folder: Path, content: dict[str, Any], *overrides: str) -> Plan:
    (folder / "mine.json").write_text(json.dumps(content))
    run = folder / "run.yaml"
    run.write_text(
        "name: demo\nmodel: {config: {model_type: llama}}\n"
        f"data: {{train: [{{path: d}}]}}\nschedule: {{steps: 1000}}\ndeepspeed: {folder}/mine.json\n"
    )
    return make_plan(load_run(run, overrides), 8, "cuda", {})


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_files_resolve(tmp_path: Path, name: str) -> None:
    content = TRANSFORMERS[name]
    plan = planned(tmp_path, content)
    said = {key: value for key, value in content["zero_optimization"].items() if value != AUTO}
    resolved = plan.deepspeed["zero_optimization"]
    for key, value in said.items():
        assert resolved[key] == value or resolved[key].items() >= value.items(), key
    assert json.dumps(AUTO) not in json.dumps(plan.deepspeed)


def test_a_fully_concrete_file_becomes_the_run(tmp_path: Path) -> None:
    plan = planned(tmp_path, EXAMPLE_7B)
    assert (plan.batch.rows, plan.batch.micro, plan.batch.accumulation, plan.batch.dp) == (128, 4, 4, 8)
    assert plan.run.optimizer.lr == 2e-5
    assert (plan.schedule.decay, plan.schedule.warmup_steps, plan.schedule.min_lr) == ("linear", 200, 0.0)
    assert plan.origins["optimizer.lr"] == f"{tmp_path}/mine.json"
    assert plan.deepspeed["zero_optimization"]["reduce_bucket_size"] == 500_000_000
    assert plan.deepspeed["steps_per_print"] == 100


def test_micro_and_accumulation_alone_say_the_rows(tmp_path: Path) -> None:
    plan = planned(tmp_path, EXAMPLE_LEAF)
    assert (plan.batch.rows, plan.batch.micro, plan.batch.accumulation) == (16, 2, 1)
    assert "micro 2 × accumulation 1 × 8 ranks" in plan.origins["batch.rows"]
    assert plan.schedule.min_lr == pytest.approx(1e-7)
    leaf = plan.deepspeed["zero_optimization"]["leaf_module"]
    assert leaf == EXAMPLE_LEAF["zero_optimization"]["leaf_module"]  # type: ignore[index]


def test_an_old_example_in_fp16(tmp_path: Path) -> None:
    plan = planned(tmp_path, EXAMPLE_CIFAR)
    assert plan.run.precision == "fp16"
    assert plan.deepspeed["fp16"]["initial_scale_power"] == 15
    assert plan.deepspeed["fp16"]["hysteresis"] == 2
    assert plan.schedule.decay == "constant"
    assert plan.schedule.lr(999) == pytest.approx(1e-3)


def test_contradicting_batches_name_both_places(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, EXAMPLE_7B, "batch.rows=64", "schedule.steps=500")
    text = str(caught.value)
    assert f"train_batch_size = 128 ({tmp_path}/mine.json): batch.rows = 64 (command line)" in text
    assert f"gradient_accumulation_steps = 4 ({tmp_path}/mine.json): batch.rows = 64 (command line)" in text
    assert "scheduler.params.total_num_steps = 1000" in text
    assert "schedule.steps (command line) makes it 500 steps" in text


def test_what_the_documentations_nvme_file_gets_wrong_is_said(tmp_path: Path) -> None:
    content = json.loads(json.dumps(TRANSFORMERS["zero3 nvme"]))
    content["zero_optimization"]["aio"] = {**content.pop("aio"), "thread_count": 1}
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, content)
    assert "zero_optimization.aio" in str(caught.value)
    assert "did you mean 'aio'?" in str(caught.value)
