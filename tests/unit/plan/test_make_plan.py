"""A plan is explicit, explained and pure; what can't be planned is refused with everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.load import LoadedRun, load_run
from llmtrain.errors import ConfigError
from llmtrain.plan.model_shape import shape_of
from llmtrain.plan.plan import Plan, make_plan

RUN = """\
name: demo
model: {config: {model_type: llama, num_hidden_layers: 4}}
data: {train: [{path: data/stdlib}], seq_len: 512}
batch: {rows: 64}
schedule: {steps: 300}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def loaded(path: Path, *overrides: str) -> LoadedRun:
    return load_run(path, overrides)


def plan(path: Path, world: int, device: str, *overrides: str, **more: Any) -> Plan:
    return make_plan(loaded(path, *overrides), world, device, {}, **more)


def refusal(path: Path, world: int, device: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(path, world, device, *overrides)
    return str(caught.value)


def test_a_plan_holds_everything_and_says_why(run_file: Path) -> None:
    made = plan(run_file, 8, "cuda", "parallel.pipeline=2", "deepspeed=pipeline")
    assert (made.topology.dp, made.topology.pipeline, made.topology.zero_stage) == (4, 2, 1)
    assert (made.batch.rows, made.batch.micro, made.batch.accumulation) == (64, 2, 8)
    assert made.run.batch.micro == 2
    assert (
        made.origins["batch.micro"] == "auto: largest divisor of 16 rows within 8 micro-batches for 2 stages"
    )
    assert made.tokens_per_step == 64 * 512
    assert made.deepspeed["train_batch_size"] == 64
    assert made.origins["ds.train_batch_size"] == "run: batch.rows"
    assert made.origins["ds.zero_optimization.stage"] == "ds_configs/pipeline.json"
    assert made.origins["ds.zero_optimization.reduce_bucket_size"] == "llmtrain"
    assert made.origins["deepspeed"] == "command line"
    assert made == plan(run_file, 8, "cuda", "parallel.pipeline=2", "deepspeed=pipeline")


@pytest.mark.parametrize("restarts", ["", "0", "3"])
def test_only_ranks_that_torchrun_may_restart_can_have_unequal_shares(run_file: Path, restarts: str) -> None:
    environ = {"TORCHELASTIC_MAX_RESTARTS": restarts}
    if restarts != "3":
        with pytest.raises(ConfigError, match="64 rows can't be shared by 24"):
            make_plan(loaded(run_file), 24, "cuda", environ)
        return
    made = make_plan(loaded(run_file), 24, "cuda", environ)
    assert (made.batch.rows, made.batch.micro, made.batch.places) == (64, 3, 72)
    assert made.deepspeed["train_batch_size"] == 72, "DeepSpeed wants micro × accumulation × ranks"
    assert made.tokens_per_step == 64 * 512, "empty places are no tokens"
    assert made.origins["ds.train_batch_size"] == "run: batch.rows"


def test_every_leaf_of_the_deepspeed_dict_has_an_origin(run_file: Path) -> None:
    made = plan(run_file, 4, "cuda", "deepspeed=zero3_offload")

    def leaves(value: dict[str, Any], prefix: str) -> list[str]:
        return [
            leaf
            for name, item in value.items()
            for leaf in (leaves(item, f"{prefix}{name}.") if isinstance(item, dict) else [f"{prefix}{name}"])
        ]

    assert {key for key in made.origins if key.startswith("ds.")} == set(leaves(made.deepspeed, "ds."))


@pytest.mark.parametrize(
    ("world", "device", "overrides", "messages"),
    [
        (8, "cuda", ["parallel.pipeline=3"], ["8 ranks don't divide into 3 stages; use 2 or 4"]),
        (
            8,
            "cuda",
            ["parallel.pipeline=2", "deepspeed=zero3"],
            [
                "parallel.pipeline = 2 (command line): ZeRO-3 (ds_configs/zero3.json)",
                "use deepspeed: pipeline",
            ],
        ),
        (8, "cuda", ["parallel.pipeline=2", "deepspeed=zero2_offload"], ["ZeRO-2 (ds_configs/zero2_offload"]),
        (8, "cuda", ["parallel.pipeline=8"], ["the model has 4 layers and every stage needs one"]),
        (2, "cpu", ["precision=fp16"], ["DeepSpeed's CPU accelerator refuses fp16; use bf16"]),
        (2, "cuda", ["precision=fp16", "deepspeed=zero0"], ["at ZeRO-0", "does not scale the loss", "zero1"]),
        (
            2,
            "cuda",
            ["kernels=fused", "deepspeed=zero3"],
            [
                "kernels = 'fused' (command line): it compiles",
                "ZeRO-3 (ds_configs/zero3.json)",
                "use kernels: auto",
            ],
        ),
        (2, "cpu", ["deepspeed=zeropp"], ["ZeRO++ quantises with CUDA kernels", "use deepspeed: zero3"]),
        (
            3,
            "cuda",
            [],
            ["batch.rows = 64", "64 rows can't be shared by 3 data-parallel ranks; use 63 or 66 rows"],
        ),
        (8, "cuda", ["batch.micro=3"], ["batch.micro = 3 (command line)", "use 2 or 4 (8 ranks)"]),
        (
            8,
            "cuda",
            ["batch.rows=30", "parallel.pipeline=2"],
            ["30 rows can't be shared by 4 data-parallel ranks; use 28 or 32 rows (8 ranks in 2 stages)"],
        ),
        (
            1,
            "cpu",
            ["schedule.warmup=400"],
            ["schedule.warmup = 400.0 (command line): the run has 300 steps"],
        ),
        (1, "cpu", ["schedule.warmup=2.5"], ["from 1 on it counts steps and must be whole"]),
        (
            1,
            "cpu",
            ["deepspeed=zreo1"],
            ["deepspeed = 'zreo1' (command line): no such strategy; did you mean"],
        ),
    ],
)
def test_what_cannot_go_together(
    run_file: Path, world: int, device: str, overrides: list[str], messages: list[str]
) -> None:
    text = refusal(run_file, world, device, *overrides)
    for message in messages:
        assert message in text


def test_everything_wrong_is_said_at_once(run_file: Path, tmp_path: Path) -> None:
    strategy = tmp_path / "mine.json"
    strategy.write_text(
        '{"zero_optimisation": {}, "zero_optimization": {"stage": 2}, "gradient_clipping": 3,'
        ' "fp16": {"enabled": true}, "gradient_accumulation_steps": 3}'
    )
    text = refusal(
        run_file,
        8,
        "cpu",
        f"deepspeed={strategy}",
        "parallel.pipeline=2",
        "optimizer.clip=1",
        "schedule.warmup=999",
    )
    for part in (
        "zero_optimisation",
        "gradient_clipping = 3",
        "precision = 'fp16'",
        "ZeRO-2",
        "gradient_accumulation_steps = 3",
        "schedule.warmup",
    ):
        assert part in text
    assert len(text.splitlines()) == 6


def test_late_gradient_sums_are_refused_in_a_pipeline(run_file: Path, tmp_path: Path) -> None:
    strategy = tmp_path / "mine.json"
    strategy.write_text('{"bf16": {"immediate_grad_update": false}, "zero_optimization": {"stage": 1}}')
    assert plan(run_file, 2, "cuda", f"deepspeed={strategy}").topology.zero_stage == 1
    text = refusal(run_file, 2, "cuda", f"deepspeed={strategy}", "parallel.pipeline=2")
    assert "bf16.immediate_grad_update = False" in text


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"stage": 2, "offload_param": {"device": "cpu"}}, "it needs ZeRO stage 3, here it is 2"),
        (
            {"stage": 0, "offload_optimizer": {"device": "cpu"}},
            "it needs ZeRO stage 1 or 2 or 3, here it is 0",
        ),
        ({"stage": 3, "offload_optimizer": {"device": "nvme"}}, "name the folder on the NVMe disk"),
        ({"stage": 3, "offload_param": {"device": "nvme"}}, "name the folder on the NVMe disk"),
        (
            {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}},
            'only ZeRO-3 uses a disk, here it is 2; write "cpu", or deepspeed: zero3_nvme',
        ),
        (
            {
                "stage": 3,
                "offload_optimizer": {
                    "device": "nvme",
                    "nvme_path": "/x",
                    "buffer_count": 7,
                    "pipeline_write": True,
                },
            },
            "two moments of 2 sub-groups at a time need 8",
        ),
        (
            {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}},
            "offloads a part only at ZeRO-3",
        ),
        ({"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}, "must be compiled; write 1"),
        ({"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 2}}, "must be at most 1"),
        ({"stage": 3, "zero_hpz_partition_size": 3}, "8 ranks don't divide into groups of 3; use 2 or 4"),
    ],
)
def test_zero_settings_that_would_be_ignored_or_fail(
    run_file: Path, tmp_path: Path, zero: dict[str, Any], message: str
) -> None:
    strategy = tmp_path / "mine.json"
    strategy.write_text(json.dumps({"zero_optimization": zero}))
    assert message in refusal(run_file, 8, "cuda", f"deepspeed={strategy}")


def test_a_buffer_that_a_parameter_does_not_fit_is_refused(run_file: Path, tmp_path: Path) -> None:
    strategy = tmp_path / "mine.json"
    disk: dict[str, Any] = {"device": "nvme", "nvme_path": "/x"}
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": disk}
    sizes = {"vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32}
    words = [f"deepspeed={strategy}", *(f"model.config.{name}={size}" for name, size in sizes.items())]
    strategy.write_text(json.dumps({"zero_optimization": zero}))
    said = refusal(run_file, 4, "cuda", *words)
    assert "offload_param.buffer_size = 100000000" in said
    assert "the model's embedding has 128,256 × 4,096 elements, 131,334,144 on each of 4 ranks: write" in said
    plan(run_file, 8, "cuda", *words)
    disk["buffer_size"] = 131_334_144
    strategy.write_text(json.dumps({"zero_optimization": zero}))
    plan(run_file, 4, "cuda", *words)


def test_tokens_become_steps(run_file: Path) -> None:
    made = plan(run_file, 1, "cpu", "schedule.steps=null", "schedule.tokens=1e6")
    assert made.schedule.steps == 31  # 1e6 / (64 × 512), rounded up


def test_memory_bounds_the_micro_batch(run_file: Path) -> None:
    shape = shape_of(
        {
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 5504,
            "vocab_size": 32000,
        }
    )
    assert shape is not None
    free = plan(run_file, 1, "cuda", "data.seq_len=2048", shape=shape)
    tight = plan(run_file, 1, "cuda", "data.seq_len=2048", shape=shape, device_memory=40 * 2**30)
    assert tight.batch.micro < free.batch.micro == 8
    assert "memory for" in tight.origins["batch.micro"]
