"""Everything that is shipped loads: each recipe, each DeepSpeed strategy, each accelerate file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data_prep.corpus import CorpusConfig
from llmtrain.config.deepspeed import load_template, resolve, zero_stage
from llmtrain.config.load import load_run, load_yaml_model
from llmtrain.plan.plan import make_plan

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
CORPORA = [path for path in RECIPES if "sources" in yaml.safe_load(path.read_text())]
RUNS = [path for path in RECIPES if path not in CORPORA]
STRATEGIES = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
SMALL = ROOT / "recipes" / "125m.yaml"


def test_there_is_something_to_ship() -> None:
    assert {"demo", "125m", "350m", "1b", "3b", "8b", "continue", "sft"} <= {path.stem for path in RUNS}
    assert {"stdlib", "fineweb-edu", "continue-corpus", "sft-corpus"} <= {path.stem for path in CORPORA}
    expected = {
        "zero0",
        "zero1",
        "zero2",
        "zero3",
        "zero2_offload",
        "zero3_offload",
        "zero3_nvme",
        "zeropp",
        "pipeline",
    }
    assert set(STRATEGIES) == expected


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_run_recipe_plans_on_the_machines_it_is_for(path: Path) -> None:
    on_cores = path.stem == "demo"  # two rows a step, for two CPU cores
    for world in (1, 2) if on_cores else (8, 16):
        plan = make_plan(load_run(path), world, "cpu" if on_cores else "cuda", environ={})
        assert plan.batch.micro * plan.batch.accumulation * plan.batch.dp == plan.run.batch.rows
        assert plan.run.name == path.stem


@pytest.mark.parametrize("path", CORPORA, ids=lambda path: path.stem)
def test_corpus_recipe_loads(path: Path) -> None:
    assert load_yaml_model(path, CorpusConfig, ()).config.output.startswith("data/")


def test_runs_read_what_a_shipped_corpus_writes() -> None:
    written = {load_yaml_model(path, CorpusConfig, ()).config.output for path in CORPORA}
    for path in RUNS:
        data = load_run(path).config.data
        assert {source.path for source in (*data.train, *data.eval)} <= written, path


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_resolves_with_nothing_left_open(name: str) -> None:
    device = "cpu" if name in ("zero0", "zero1", "zero2", "zero3", "pipeline") else "cuda"
    stages = 2 if name == "pipeline" else 1
    run = load_run(SMALL, [f"deepspeed={name}", f"parallel.pipeline={stages}"]).config
    template = load_template(name)
    resolved = resolve(template, run, 2, 2, 4, device)
    assert "'auto'" not in str(resolved)
    assert resolved["zero_optimization"]["stage"] == zero_stage(template)
    assert resolved["train_micro_batch_size_per_gpu"] == 2
    assert resolved["gradient_accumulation_steps"] == 2
    assert resolved["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    "path", sorted((ROOT / "launch" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_file_points_at_a_shipped_strategy(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content["distributed_type"] == "DEEPSPEED"
    named = ROOT / content["deepspeed_config"]["deepspeed_config_file"]
    assert named.stem in STRATEGIES
    assert named.is_file()


def test_every_strategy_is_explained() -> None:
    text = (ROOT / "ds_configs" / "README.md").read_text()
    assert [name for name in STRATEGIES if f"`{name}`" not in text] == []
