"""What `accelerate launch` sets reaches the plan, named as accelerate's, or is refused with the reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmtrain.config.launcher import from_accelerate
from llmtrain.config.load import load_run
from llmtrain.config.template import Template, read_template
from llmtrain.errors import ConfigError
from llmtrain.plan.plan import Plan, make_plan

ROOT = Path(__file__).parents[3]
ON = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "no"}


def read(**variables: str) -> Template:
    template = from_accelerate({**ON, **{f"ACCELERATE_{name}": value for name, value in variables.items()}})
    assert template is not None
    return template


def planned(folder: Path, overrides: list[str], **variables: str) -> Plan:
    run = folder / "run.yaml"
    run.write_text(
        "name: demo\nmodel: {config: {model_type: llama}}\n"
        "data: {train: [{path: d}]}\nschedule: {steps: 10}\n"
    )
    environ = {**ON, **{f"ACCELERATE_{name}": value for name, value in variables.items()}}
    return make_plan(load_run(run, overrides), 4, "cuda", environ)


def test_without_deepspeed_there_is_no_template() -> None:
    assert from_accelerate({}) is None
    assert from_accelerate({"ACCELERATE_MIXED_PRECISION": "bf16"}) is None


def test_fields_become_a_strategy(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        [],
        DEEPSPEED_ZERO_STAGE="3",
        GRADIENT_ACCUMULATION_STEPS="2",
        GRADIENT_CLIPPING="0.5",
        DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE="cpu",
        DEEPSPEED_OFFLOAD_PARAM_DEVICE="none",
        MIXED_PRECISION="fp16",
    )
    zero = plan.deepspeed["zero_optimization"]
    assert (zero["stage"], zero["offload_optimizer"]["device"]) == (3, "cpu")
    assert "offload_param" not in zero
    assert (plan.batch.accumulation, plan.run.optimizer.clip, plan.run.precision) == (2, 0.5, "fp16")
    assert plan.origins["ds.zero_optimization.stage"] == "accelerate (zero_stage)"
    assert plan.origins["optimizer.clip"] == "accelerate (gradient_clipping)"
    assert plan.origins["precision"] == "accelerate (mixed_precision)"
    assert (plan.run.deepspeed, plan.origins["deepspeed"]) == ("zero3_offload", "accelerate")


def test_a_file_named_by_accelerate_is_the_strategy(tmp_path: Path) -> None:
    plan = planned(tmp_path, [], DEEPSPEED_CONFIG_FILE="ds_configs/zero3.json")
    assert plan.topology.zero_stage == 3
    shown = "ds_configs/zero3.json (accelerate deepspeed_config_file)"
    assert plan.origins["ds.zero_optimization.stage"] == shown
    assert plan.run.deepspeed == "ds_configs/zero3.json"


def test_the_same_strategy_twice_is_fine(tmp_path: Path) -> None:
    plan = planned(tmp_path, ["deepspeed=zero3"], DEEPSPEED_CONFIG_FILE="ds_configs/zero3.json")
    assert plan.topology.zero_stage == 3
    plan = planned(tmp_path, ["deepspeed=zero2"], DEEPSPEED_ZERO_STAGE="2", GRADIENT_CLIPPING="2.0")
    assert plan.run.optimizer.clip == 2.0


@pytest.mark.parametrize(
    ("overrides", "variables", "message"),
    [
        (
            ["deepspeed=zero1"],
            {"DEEPSPEED_CONFIG_FILE": "ds_configs/zero3.json"},
            "zero_optimization.stage = 3 (ds_configs/zero3.json (accelerate deepspeed_config_file)): "
            "deepspeed = 'zero1' (command line) says 1",
        ),
        (
            ["deepspeed=zero3_offload"],
            {"DEEPSPEED_ZERO_STAGE": "3"},
            "zero_optimization.offload_optimizer.device = 'none'",
        ),
        (
            ["precision=bf16"],
            {"MIXED_PRECISION": "fp16"},
            "fp16.enabled = True (accelerate (mixed_precision))",
        ),
        (
            ["optimizer.clip=1"],
            {"GRADIENT_CLIPPING": "2"},
            "optimizer.clip = 1.0 (command line) says otherwise",
        ),
        (
            [],
            {"DEEPSPEED_CONFIG_FILE": "ds_configs/zero3.json", "DEEPSPEED_ZERO_STAGE": "2"},
            "zero_optimization.stage = 2 (accelerate (zero_stage)): ds_configs/zero3.json",
        ),
        (
            [],
            {"DEEPSPEED_CONFIG_FILE": "nowhere.json"},
            "deepspeed_config_file = 'nowhere.json' (accelerate)",
        ),
        ([], {"DEEPSPEED_ZERO_STAGE": "two"}, "zero_stage = 'two' (accelerate): must be a number"),
        ([], {"DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme", "DEEPSPEED_ZERO_STAGE": "3"}, "NVMe path"),
        (
            [],
            {"USE_FSDP": "true"},
            "distributed_type = 'FSDP' (accelerate): llmtrain shards through DeepSpeed; in accelerate's "
            f"file, write what {ROOT / 'launch/accelerate/zero3.yaml'} says",
        ),
        ([], {"USE_PARALLELISM_CONFIG": "true"}, "parallelism_config (accelerate): llmtrain shards"),
        ([], {"DYNAMO_BACKEND": "INDUCTOR"}, "compilation is chosen by `kernels`"),
        ([], {"MIXED_PRECISION": "fp8"}, "DeepSpeed has no fp8 training"),
    ],
)
def test_contradictions_and_what_cannot_be_had(
    tmp_path: Path, overrides: list[str], variables: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, overrides, **variables)
    assert message in str(caught.value)


def test_offloading_said_only_by_the_file_is_kept(tmp_path: Path) -> None:
    plan = planned(tmp_path, [], DEEPSPEED_CONFIG_FILE="ds_configs/zero2_offload.json")
    assert plan.deepspeed["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "launch/accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_accelerate_files_point_to_the_strategy_of_their_name(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content["deepspeed_config"] == {"deepspeed_config_file": f"ds_configs/{path.stem}.json"}
    assert content["distributed_type"] == "DEEPSPEED"
    assert read_template(content["deepspeed_config"]["deepspeed_config_file"]).content


def test_accelerate_itself_sets_what_is_read_here() -> None:
    """Runs accelerate's own code that turns a config file into the environment of the ranks."""
    program = (
        "import json, sys\n"
        "from accelerate.commands.launch import launch_command_parser, _validate_launch_command\n"
        "from accelerate.utils.launch import prepare_deepspeed_cmd_env\n"
        "args = launch_command_parser().parse_args(sys.argv[1:])\n"
        "args, defaults, _ = _validate_launch_command(args)\n"
        "args.deepspeed_fields_from_accelerate_config = ','.join(defaults.deepspeed_config)\n"
        "_, environ = prepare_deepspeed_cmd_env(args)\n"
        "print(json.dumps({k: v for k, v in environ.items() if k.startswith('ACCELERATE_')}))\n"
    )
    arguments = ["--config_file", "launch/accelerate/zero3.yaml", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "-m", "llmtrain.train", "run.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    environ = yaml.safe_load(done.stdout.splitlines()[-1])
    template = from_accelerate(environ)
    assert template is not None
    assert template.said("zero_optimization.stage") == 3
    assert template.source == "ds_configs/zero3.json (accelerate deepspeed_config_file)"
