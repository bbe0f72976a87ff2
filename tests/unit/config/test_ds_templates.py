"""DeepSpeed files: every key checked, their values adopted by the run or named as contradictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.deepspeed import NEVER, adopt, load_template, resolve, zero_stage
from llmtrain.config.load import LoadedRun, load_run
from llmtrain.config.template import Template, known_templates, template_folders
from llmtrain.errors import ConfigError

RUN = """\
name: demo
model: {config: {model_type: llama}}
data: {train: [{path: data/stdlib}]}
schedule: {steps: 300}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def template_of(content: dict[str, Any]) -> Template:
    return Template("user.json", content)


def refusals(folder: Path, content: Any) -> str:
    path = folder / "user.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        load_template(str(path))
    return str(caught.value)


def test_all_shipped_strategies_are_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ["pipeline", "zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_nvme"]
    names += ["zero3_offload", "zeropp"]
    assert known_templates() == names
    monkeypatch.chdir(tmp_path)  # found from the checkout as well
    assert known_templates() == names
    stages = [zero_stage(load_template(name)) for name in names]
    assert stages == [1, 0, 1, 2, 2, 3, 3, 3, 3]
    assert load_template("zero1").source == "ds_configs/zero1.json"


def test_shipped_strategies_leave_to_the_run_what_is_the_runs() -> None:
    decided_by_run = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "bf16.enabled",
        "fp16.enabled",
    )
    for name in known_templates():
        template = load_template(name)
        assert [key for key in decided_by_run if template.said(key) is not None] == [], name
        assert "optimizer" not in template.content
        assert "scheduler" not in template.content


def test_readme_of_ds_configs_names_each_strategy() -> None:
    folder = next(folder for folder in template_folders() if folder.is_dir())
    readme = (folder / "README.md").read_text()
    for name in known_templates():
        assert f"`{name}`" in readme


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"zero_optimisation": {"stage": 3}},
            "zero_optimisation ({file}): DeepSpeed has no such key; did you mean 'zero_optimization'?",
        ),
        ({"gradient_cliping": 1}, "did you mean 'gradient_clipping'?"),
        (
            {"zero_optimization": {"stge": 1}},
            "zero_optimization.stge ({file}): DeepSpeed has no such key; did you mean 'stage'?",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"devce": "cpu"}}},
            "offload_optimizer.devce ({file}): DeepSpeed has no such key; did you mean 'device'?",
        ),
        ({"zero_optimization": {"offload_param": {"nvm_path": "/x"}}}, "did you mean 'nvme_path'?"),
        (
            {"bf16": {"enable": True}},
            "bf16.enable ({file}): DeepSpeed has no such key; did you mean 'enabled'?",
        ),
        ({"fp16": {"inital_scale_power": 1}}, "did you mean 'initial_scale_power'?"),
        (
            {"activation_checkpointing": {"partition_activation": False}},
            "did you mean 'partition_activations'?",
        ),
        ({"pipeline": {"seed_layer": 1}}, "did you mean 'seed_layers'?"),
        ({"aio": {"blocksize": 1}}, "did you mean 'block_size'?"),
        ({"aio": {"thread_count": 1}}, "it is now called 'intra_op_parallelism'"),
        ({"optimizer": {"typ": "Adam"}}, "did you mean 'type'?"),
        ({"optimizer": {"params": {"weight_decy": 0}}}, "did you mean 'weight_decay'?"),
        ({"scheduler": {"params": {"warmup_steps": 0}}}, "did you mean 'warmup_num_steps'?"),
        ({"comms_logger": {"verbos": True}}, "did you mean 'verbose'?"),
        ({"flops_profiler": {"profil_step": 1}}, "did you mean 'profile_step'?"),
        ({"tensorboard": {"output": ""}}, "did you mean 'output_path'?"),
        ({"data_types": {"grad_accum_type": "fp32"}}, "did you mean 'grad_accum_dtype'?"),
        ({"stage": 2}, "did you mean 'zero_optimization.stage'?"),
        ({"zero_optimization": {"aio": {}}}, "did you mean 'aio'?"),
        (
            {"zero_optimization": {"stage": 4}},
            "zero_optimization.stage = 4 ({file}): must be 0 or 1 or 2 or 3",
        ),
        ({"zero_optimization": {"stage": "auto"}}, "must be 0 or 1 or 2 or 3"),
        ({"zero_optimization": True}, "must be an object with keys of its own, such as"),
        ({"bf16": True}, "bf16 = True ({file}): must be an object"),
        ({"bf16": {"enabled": "yes"}}, "must be true or false"),
        ({"train_batch_size": "64"}, "must be a whole number, at least 1"),
        ({"train_batch_size": 0}, "must be a whole number, at least 1"),
        ({"gradient_clipping": "1.0"}, "must be a number, at least 0"),
        ({"fp16": {"min_loss_scale": 0.00001}}, "must be a whole number, at least 1"),
        ({"optimizer": {"params": {"betas": 0.9}}}, "must be a list"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "gpu"}}},
            'must be "none" or "cpu" or "nvme"',
        ),
        ({"elasticity": {"enabled": False}}, "elastic training is gone from DeepSpeed"),
        ({"amp": {"enabled": False}}, "Apex AMP is gone"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 8}}, "MiCS is gone"),
        ({"tensor_parallel": {"autotp_size": 2}}, "llmtrain parallelises by ZeRO and by pipeline"),
        ({"sequence_parallel_size": 2}, "llmtrain parallelises by ZeRO and by pipeline"),
        ({"data_efficiency": {"enabled": True}}, "data order is arithmetic"),
        ({"checkpoint": {"load_universal": True}}, "llmtrain writes its own checkpoints"),
        ({"zero_force_ds_cpu_optimizer": True}, "which a compiler must build"),
        ({"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}}, "which a compiler must build"),
        ({"activation_checkpointing": {"partition_activations": True}}, "set recompute: full in the run"),
        ({"torch_autocast": {"enabled": True}}, "the run's `precision` decides"),
        ({"compile": {"deepcompile": True}}, "compiles through `kernels`"),
        ({"gradient_allreduce_op": "sum"}, 'write "mean"'),
        ({"bf16": {"enabled": True, "bf16_optimizer_states": True}}, "fp32 master weights"),
        ({"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, "checked before every step"),
        ("[]", "must hold a JSON object, but holds a list"),
        ('{"a" 1}', "{file}:1): is not valid JSON"),
        ('{"bf16": {"enabled": true, "enabled": false}}', "enabled ({file}): this key stands there twice"),
    ],
)
def test_a_wrong_file_is_refused_with_the_way_out(tmp_path: Path, content: Any, message: str) -> None:
    assert message.format(file=tmp_path / "user.json") in refusals(tmp_path, content)


def test_all_mistakes_of_a_file_are_reported_together(tmp_path: Path) -> None:
    content = {"amp": {}, "steps_per_prnt": 1, "zero_optimization": {"stage": 9, "overlap": True}}
    assert len(refusals(tmp_path, content).splitlines()) == 4


def test_keys_that_ask_for_nothing_are_let_through(tmp_path: Path) -> None:
    path = tmp_path / "user.json"
    harmless = {
        "tensor_parallel": {"autotp_size": 1},
        "sequence_parallel_size": 1,
        "data_efficiency": {"enabled": False},
        "hybrid_engine": {"enabled": False},
        "activation_checkpointing": {"partition_activations": False, "number_checkpoints": None},
        "_comment": "ours",
        "steps_per_print": "inf",
    }
    path.write_text(json.dumps({**harmless, "zero_optimization": {"stage": 1}}))
    template = load_template(str(path))
    assert set(template.content) == {"activation_checkpointing", "zero_optimization"}


def test_comments_are_read_as_deepspeed_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "user.json"
    path.write_text(
        '{\n  // one stage\n  "zero_optimization": {\n    # the third\n    "stage": 3,\n  },\n}\n'
    )
    assert zero_stage(load_template(str(path))) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zerro3", "did you mean 'zero3'?"),
        ("mine.json", "there is no such file"),
        ("a/b", "there is no such file"),
    ],
)
def test_unknown_strategy(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_template(name)
    assert message in str(caught.value)


ADOPTED = [
    ({"train_batch_size": 32}, "batch.rows", 32),
    ({"train_micro_batch_size_per_gpu": 4}, "batch.micro", 4),
    ({"gradient_clipping": 0.5}, "optimizer.clip", 0.5),
    ({"fp16": {"enabled": True}}, "precision", "fp16"),
    ({"bf16": {"enabled": True}}, "precision", "bf16"),
    ({"bfloat16": {"enabled": True}}, "precision", "bf16"),
    ({"bf16": {"enabled": False}}, "precision", "fp32"),
    ({"pipeline": {"stages": 2}}, "parallel.pipeline", 2),
    ({"optimizer": {"type": "Adam", "params": {"lr": 2e-5}}}, "optimizer.lr", 2e-5),
    ({"optimizer": {"params": {"betas": [0.8, 0.999]}}}, "optimizer.betas", (0.8, 0.999)),
    ({"optimizer": {"params": {"eps": 1e-6}}}, "optimizer.eps", 1e-6),
    ({"optimizer": {"params": {"weight_decay": 0}}}, "optimizer.weight_decay", 0.0),
    ({"scheduler": {"type": "WarmupLR"}}, "schedule.decay", "constant"),
    ({"scheduler": {"type": "WarmupDecayLR"}}, "schedule.decay", "linear"),
    ({"scheduler": {"type": "WarmupDecayLR"}}, "schedule.min_lr_ratio", 0.0),
    (
        {"scheduler": {"type": "WarmupCosineLR", "params": {"cos_min_ratio": 0.01}}},
        "schedule.min_lr_ratio",
        0.01,
    ),
    ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 50}}}, "schedule.warmup", 50.0),
    ({"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-5}}}, "optimizer.lr", 1e-5),
]


def value_of(loaded: LoadedRun, field: str) -> Any:
    value: Any = loaded.config
    for part in field.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("content", "field", "value"), ADOPTED)
def test_a_files_value_is_adopted_where_the_run_is_silent(
    run_file: Path, content: dict[str, Any], field: str, value: Any
) -> None:
    adopted = adopt(load_run(run_file), template_of(content))
    assert value_of(adopted, field) == value
    assert adopted.origins[field] == "user.json"


@pytest.mark.parametrize(("content", "field", "value"), ADOPTED)
def test_a_contradiction_names_both_places(
    run_file: Path, content: dict[str, Any], field: str, value: Any
) -> None:
    others = {
        "precision": "fp16",
        "schedule.decay": "cosine",
        "optimizer.betas": "[0.1, 0.2]",
        "batch.micro": "2",
    }
    other = "fp32" if value == "fp16" else others.get(field, "3")
    if field == "schedule.min_lr_ratio":
        other = "0.7"
    if value == "fp32":
        other = "bf16"
    loaded = load_run(run_file, [f"{field}={other}"])
    with pytest.raises(ConfigError) as caught:
        adopt(loaded, template_of(content))
    assert "(user.json): " in str(caught.value)
    assert f"{field} = " in str(caught.value)
    assert "(command line) says otherwise" in str(caught.value)


@pytest.mark.parametrize(("content", "field", "value"), ADOPTED)
def test_saying_the_same_twice_is_fine(
    run_file: Path, content: dict[str, Any], field: str, value: Any
) -> None:
    said = json.dumps(value)
    adopted = adopt(load_run(run_file, [f"{field}={said}"]), template_of(content))
    assert value_of(adopted, field) == value
    assert adopted.origins[field] == "command line"


def test_auto_leaves_the_run_alone(run_file: Path) -> None:
    content = {"train_batch_size": "auto", "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}
    loaded = load_run(run_file)
    assert adopt(loaded, template_of(content)) == loaded


def test_warmup_as_a_share_can_agree_with_steps(run_file: Path) -> None:
    content = {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 30}}}
    adopted = adopt(load_run(run_file, ["schedule.warmup=0.1"]), template_of(content))
    assert adopted.config.schedule.warmup == 0.1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {"type": "Lamb"}}, "llmtrain trains with AdamW"),
        ({"optimizer": {"type": "OneBitAdam"}}, "llmtrain trains with AdamW"),
        ({"scheduler": {"type": "OneCycle"}}, "use WarmupLR, WarmupDecayLR, WarmupCosineLR"),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "log"}}},
            "warms up linearly from zero; write 'linear'",
        ),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 1e-6}}},
            "warms up linearly from zero",
        ),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "enable one of the two"),
        (
            {
                "optimizer": {"params": {"lr": 1e-3}},
                "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-4}},
            },
            "optimizer.params.lr = 0.001 in the same file says otherwise",
        ),
        ({"optimizer": {"params": {"betas": [0.9]}}}, "optimizer.params.betas"),
    ],
)
def test_what_a_run_cannot_adopt(run_file: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        adopt(load_run(run_file), template_of(content))
    assert message in str(caught.value)


def resolved(
    run_file: Path, content: dict[str, Any], *overrides: str, device: str = "cuda"
) -> dict[str, Any]:
    return resolve(template_of(content), load_run(run_file, overrides).config, 4, 2, 8, device)


def test_resolved_dict_is_explicit_and_ours(run_file: Path) -> None:
    dict_ = resolved(run_file, {"zero_optimization": {"stage": 1}}, "optimizer.clip=0")
    assert dict_["train_batch_size"] == 64
    assert dict_["gradient_clipping"] == 0  # DeepSpeed's own default would be 1.0
    assert dict_["steps_per_print"] == NEVER
    assert dict_["zero_force_ds_cpu_optimizer"] is False
    assert dict_["bf16"]["enabled"] is True
    assert dict_["fp16"]["enabled"] is False
    assert dict_["wall_clock_breakdown"] is False
    assert not {"optimizer", "scheduler", "pipeline"} & set(dict_)
    assert '"auto"' not in json.dumps(dict_)
    assert "null" not in json.dumps(dict_)


def test_pipeline_counts_only_data_parallel_ranks(run_file: Path) -> None:
    dict_ = resolved(run_file, {"zero_optimization": {"stage": 1}}, "parallel.pipeline=4")
    assert dict_["train_batch_size"] == 4 * 2 * 2
    assert dict_["pipeline"]["stages"] == 4
    assert dict_["pipeline"]["use_reentrant"] is False


@pytest.mark.parametrize(
    ("stage", "precision", "expected"),
    [(0, "bf16", "bf16"), (1, "bf16", "fp32"), (2, "bf16", "fp32"), (3, "bf16", "fp32")]
    + [(stage, "fp16", "fp16") for stage in range(4)]
    + [(stage, "fp32", "fp32") for stage in range(4)],
)
def test_gradients_are_summed_in_fp32_where_deepspeed_can(
    run_file: Path, stage: int, precision: str, expected: str
) -> None:
    dict_ = resolved(run_file, {"zero_optimization": {"stage": stage}}, f"precision={precision}")
    assert dict_["data_types"] == {"grad_accum_dtype": expected}


def test_a_sum_type_that_deepspeed_refuses_is_refused(run_file: Path) -> None:
    content = {"zero_optimization": {"stage": 0}, "data_types": {"grad_accum_dtype": "fp32"}}
    with pytest.raises(ConfigError, match="precision bf16 at ZeRO stage 0 allows bf16"):
        resolved(run_file, content)


def test_old_spellings_are_translated(run_file: Path) -> None:
    content = {
        "zero_optimization": {
            "stage": 3,
            "cpu_offload": True,
            "cpu_offload_param": True,
            "cpu_offload_use_pin_memory": False,
            "stage3_gather_fp16_weights_on_model_save": True,
            "prefetch_bucket_size": 1e6,
        }
    }
    zero = resolved(run_file, content)["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu"
    assert zero["offload_optimizer"]["pin_memory"] is False
    assert zero["offload_param"]["device"] == "cpu"
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert zero["stage3_prefetch_bucket_size"] == 1_000_000
    assert not [key for key in zero if key.startswith("cpu_offload")]


def test_device_decides_pinning_and_overlap(run_file: Path) -> None:
    content = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    cuda = resolved(run_file, content)["zero_optimization"]
    cpu = resolved(run_file, content, device="cpu")["zero_optimization"]
    assert (cuda["overlap_comm"], cuda["offload_optimizer"]["pin_memory"]) == (True, True)
    assert (cpu["overlap_comm"], cpu["offload_optimizer"]["pin_memory"]) == (False, False)


def test_hpz_auto_is_a_group_that_divides(run_file: Path) -> None:
    content = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": "auto"}}
    run = load_run(run_file).config
    sizes = [
        resolve(template_of(content), run, 1, 1, world, "cuda")["zero_optimization"][
            "zero_hpz_partition_size"
        ]
        for world in (1, 4, 6, 8, 12, 16)
    ]
    assert sizes == [1, 4, 6, 8, 6, 8]
