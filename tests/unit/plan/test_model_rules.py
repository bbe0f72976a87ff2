"""What the first step can't do with a model is said by the plan, in a sentence, before torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.config.load import load_run
from llmtrain.errors import ConfigError
from llmtrain.plan.model_rules import id_problems, length_note
from llmtrain.plan.plan import make_plan

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
LLAMA = {"model_type": "llama", **SIZES, "num_key_value_heads": 2}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4}
DEEPSEEK = {**LLAMA, "model_type": "deepseek_v3"}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}


def run_file(folder: Path, config: dict[str, Any], seq_len: int = 64) -> Path:
    content = {
        "name": "x",
        "model": {"config": config},
        "data": {"train": [{"path": "unused"}], "seq_len": seq_len},
        "schedule": {"steps": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


REFUSED = [
    (
        {**LLAMA, "num_key_value_heads": 3},
        r"num_key_value_heads = 3 \(.*yaml:\d+\): 4 attention heads can't share 3",
    ),
    (
        {"model_type": "qwen3", **SIZES},
        r"num_key_value_heads = 32 \(transformers' default\): 4 attention heads can't",
    ),
    ({**LLAMA, "hidden_act": "silo"}, r"hidden_act = 'silo' .*no such activation; did you mean 'silu'\?"),
    (
        {**LLAMA, "rope_scaling": {"type": "dynmic", "factor": 2}},
        r"rope_scaling.type = 'dynmic' .*known are default, dynamic, linear, llama3",
    ),
    (
        {**LLAMA, "rope_parameters": {"full_attention": {"rope_type": "yarnn"}}},
        r"rope_parameters.full_attention.rope_type = 'yarnn'",
    ),
    (
        {**LLAMA, "vocab_size": 100, "pad_token_id": 100},
        r"pad_token_id = 100 .*run from 0 to 99; leave it out",
    ),
    ({**LLAMA, "hidden_size": 66}, r"num_attention_heads = 4 .*hidden_size 66 does not divide into 4 heads"),
    ({**GPT2, "n_head": 5}, r"model.config.n_head = 5 .*hidden_size 64 does not divide into 5 heads"),
    ({**LLAMA, "head_dim": 15}, r"head_dim = 15 .*turn pairs of numbers, and a head has 15; make it even"),
    ({**LLAMA, "num_attention_heads": 0}, r"num_attention_heads = 0 .*a whole number, 1 or more"),
    ({**LLAMA, "hidden_size": "wide"}, r"hidden_size = 'wide' .*a whole number, 1 or more"),
    ({**LLAMA, "hiden_size": 64}, r"hiden_size = 64 .*llama has no such key; did you mean 'hidden_size'\?"),
    ({**MIXTRAL, "num_experts_per_tok": 6}, r"num_experts_per_tok = 6 .*a token can't go to 6 of 4 experts"),
    (
        {**DEEPSEEK, "n_routed_experts": 12, "n_group": 5},
        r"n_group = 5 .*12 experts don't divide into 5 groups",
    ),
    (
        {**LLAMA, "model_type": "qwen3", "layer_types": ["full_attention"]},
        r"layer_types .*it names 1 layers, and num_hidden_layers is 2",
    ),
    ({"model_type": "lama"}, r"model_type = 'lama' .*near ones: llama"),
    ({"hidden_size": 4}, r"model_type .*say which architecture .*model_type: llama"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_what_the_first_step_cannot_do_is_refused(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    loaded = load_run(run_file(tmp_path, config))
    with pytest.raises(ConfigError, match=message) as caught:
        make_plan(loaded, 1, "cpu", environ={})
    assert len(caught.value.problems) == 1


def test_ids_are_measured_by_the_datasets_vocabulary_where_the_run_gives_none(tmp_path: Path) -> None:
    loaded = load_run(run_file(tmp_path, {**LLAMA, "pad_token_id": 400, "eos_token_id": [3, 399]}))
    assert [problem.field for problem in id_problems(loaded, 400)] == ["model.config.pad_token_id"]
    assert not id_problems(loaded, 401)


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL, GPT2, {**LLAMA, "head_dim": 32}, {"model_type": "mamba"}])
def test_what_it_can_do_is_planned(config: dict[str, Any], tmp_path: Path) -> None:
    make_plan(load_run(run_file(tmp_path, config)), 1, "cpu", environ={})


def test_rows_longer_than_a_table_of_positions_are_refused(tmp_path: Path) -> None:
    fix = "data.seq_len = 2048 .*table of 1024; use .*: 1024 or less, or model.config.n_positions: 2048"
    with pytest.raises(ConfigError, match=fix):
        make_plan(load_run(run_file(tmp_path, {**GPT2, "n_positions": 1024}, 2048)), 1, "cpu", environ={})
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_positions": 32}')
    overrides = ["model.config=null", f"model.source={tmp_path}"]
    with pytest.raises(ConfigError, match=r"data.seq_len = 64 .*table of 32; use data.seq_len: 32 or less$"):
        make_plan(load_run(run_file(tmp_path, GPT2), overrides), 1, "cpu", environ={})


def test_rows_longer_than_a_rotary_model_says_are_taken_and_told(tmp_path: Path) -> None:
    make_plan(load_run(run_file(tmp_path, LLAMA, 4096)), 1, "cpu", environ={})
    said = length_note(LLAMA, 4096)  # 2048 is the family's default
    assert "rows of 4096 tokens are longer than the model's max_position_embeddings of 2048" in said
    assert "the exported one too, will say 4096" in said
    assert length_note(LLAMA, 2048) == ""


def test_no_torch_is_imported_for_it(tmp_path: Path) -> None:
    path = run_file(tmp_path, {**LLAMA, "num_key_value_heads": 3, "hidden_act": "silo"})
    program = f"""
import sys
from llmtrain.cli import main
assert main(["plan", {str(path)!r}, "--device", "cpu"]) == 2
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "can't share 3 key-value heads" in done.stderr and "no such activation" in done.stderr
