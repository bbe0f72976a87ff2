"""The model section becomes a transformers configuration, or a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import activations, modeling_rope_utils

from llmtrain.config.schema import ModelSection
from llmtrain.errors import ConfigError
from llmtrain.model.build import hf_config, parameter_counts
from llmtrain.model.configuration import causal_families, config_keys
from llmtrain.model.structure import skeleton
from llmtrain.plan import families

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def made(vocab: int = 97, **config: Any) -> Any:
    return hf_config(ModelSection(config=config), vocab, eos_id=3, bos_id=2)


def test_a_new_model_takes_vocabulary_and_special_ids_from_the_dataset() -> None:
    config = made(**LLAMA)
    assert (config.vocab_size, config.eos_token_id, config.bos_token_id) == (97, 3, 2)
    assert config.pad_token_id is None and config.use_cache is False


def test_what_the_section_says_stays() -> None:
    config = made(**LLAMA, vocab_size=128, eos_token_id=5, rope_theta=5e5)
    assert (config.vocab_size, config.eos_token_id) == (128, 5)
    assert config.rope_parameters["rope_theta"] == 5e5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {**LLAMA, "vocab_size": 50},
            r"model.config.vocab_size = 50 .*smaller than the dataset's 97.*leave it out",
        ),
        (
            {**LLAMA, "hiden_size": 1},
            r"model.config.hiden_size = 1 .*no such key; did you mean 'hidden_size'\?",
        ),
        ({**LLAMA, "trust_remote_code": True}, "model.config.trust_remote_code"),
        ({"model_type": "lama"}, r"model.config.model_type = 'lama' .*near ones: .*llama"),
        ({"model_type": "vit"}, r"no causal language model"),
        ({"hidden_size": 64}, "say which architecture.*model_type: llama"),
        ({**LLAMA, "hidden_size": "wide"}, r"transformers refuses .*'hidden_size' expected int, got str"),
        ({**LLAMA, "hidden_size": 66}, r"66\) is not a multiple of the number of attention heads"),
        (
            {"model_type": "mixtral", "output_router_logits": True},
            "output_router_logits = True .*set it to false",
        ),
    ],
)
def test_a_wrong_section_is_refused_by_field(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**config)


QWEN_MOE = {
    "model_type": "qwen3_moe",
    **{key: value for key, value in LLAMA.items() if key != "model_type"},
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}


def test_a_key_that_only_the_familys_code_reads_is_taken_and_takes_effect(tmp_path: Path) -> None:
    assert "head_dim" not in config_keys("qwen3_moe")
    config = made(**QWEN_MOE, head_dim=32)  # 64 / 4 heads would be 16
    projection = skeleton(config, torch.float32).model.layers[0].self_attn.q_proj
    assert projection.out_features == 4 * 32
    config.save_pretrained(tmp_path)
    assert hf_config(ModelSection(source=str(tmp_path)), 97).head_dim == 32


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("head_dims", 32, r"model.config.head_dims = 32 .*qwen3_moe has no such key"),
        ("mlp_bias", True, r"model.config.mlp_bias = True .*qwen3_moe has no such key"),  # of other families
        ("head_dim", None, r"model.config.head_dim .*qwen3_moe has no such key"),
        ("_attn_implementation", "eager", r"_attn_implementation = 'eager' .*qwen3_moe has no such key"),
        ("head_dim", -4, r"model.config.head_dim = -4 .*transformers can't make a qwen3_moe with it"),
    ],
)
def test_a_key_without_effect_stays_unknown(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**QWEN_MOE, **{key: value})


def test_the_plan_knows_families_as_transformers_does() -> None:
    assert families.activations() == set(activations.ACT2CLS)
    assert families.rope_types() == {"default", *modeling_rope_utils.ROPE_INIT_FUNCTIONS}
    assert families.causal_families() == set(causal_families())
    for name in ("llama", "gpt2", "mixtral", "gemma3_text", "phi3", "gpt_neox", "qwen3_moe", "deepseek_v3"):
        known = families.family(name)
        assert known is not None and config_keys(name) <= known.keys | set(families.ROPE_KEYS)
    names = ("gpt2", "opt", "gptj", "gpt_neo", "llama", "jamba", "bloom")
    assert [name for name in names if families.family(name).has_table] == ["gpt2", "opt", "gptj", "gpt_neo"]


def test_what_transformers_takes_and_cannot_make_is_a_sentence() -> None:
    rope = {
        "rope_type": "dynamic",
        "factor": 2.0,
        "rope_theta": 10000.0,
    }  # needs a head_dim, which mixtral lacks
    with pytest.raises(ConfigError, match="transformers can't make a mixtral of it: TypeError"):
        made(**{**LLAMA, "model_type": "mixtral", "num_key_value_heads": 2, "rope_parameters": rope})


def test_all_wrong_keys_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        made(**LLAMA, hiden_size=1, num_layers=2)
    assert [problem.field for problem in caught.value.problems] == [
        "model.config.hiden_size",
        "model.config.num_layers",
    ]


def test_a_source_keeps_its_own_configuration(tmp_path: Path) -> None:
    made(vocab=200, **LLAMA).save_pretrained(tmp_path)
    config = hf_config(ModelSection(source=str(tmp_path)), 97, eos_id=50)
    assert (config.vocab_size, config.eos_token_id, config.use_cache) == (200, 3, False)


def test_a_source_with_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    made(vocab=50, **LLAMA).save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"model.source = .*vocabulary of 50 .*dataset's 97.*this model's tokenizer"
    ):
        hf_config(ModelSection(source=str(tmp_path)), 97)


@pytest.mark.parametrize("content", [None, {"model_type": "nothing_like_it"}, {"model_type": "vit"}])
def test_a_source_that_is_no_model_is_refused(content: dict[str, str] | None, tmp_path: Path) -> None:
    if content:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="model.source = "):
        hf_config(ModelSection(source=str(tmp_path)), 97)


def test_code_of_a_source_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "danger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto = {"AutoConfig": "danger.Config"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "danger", "auto_map": auto}))
    with pytest.raises(ConfigError, match="code from the Hub is never run"):
        hf_config(ModelSection(source=str(tmp_path)), 97)
    assert not (tmp_path / "ran").exists()


def test_parameters_are_counted_exactly() -> None:
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96
    norms = 2 * (2 * 64) + 64
    shape = {**LLAMA, "num_key_value_heads": 2, "intermediate_size": 96}
    untied = parameter_counts(made(**shape))
    assert untied.embedding == 97 * 64
    assert untied.matmul == untied.active == 2 * layer + 97 * 64
    assert untied.total == 2 * layer + norms + 2 * 97 * 64
    tied = parameter_counts(made(**shape, tie_word_embeddings=True))
    assert (tied.matmul, tied.total) == (untied.matmul, untied.total - 97 * 64)


def test_a_token_meets_its_share_of_the_experts() -> None:
    shape = {**LLAMA, "model_type": "mixtral", "intermediate_size": 96}
    counts = parameter_counts(made(**shape, num_local_experts=4, num_experts_per_tok=1))
    assert counts.matmul - counts.active == 2 * 3 * (3 * 64 * 96)
