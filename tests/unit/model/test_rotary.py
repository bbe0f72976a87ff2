"""Rows longer than a model says it reads, and rotary frequencies that follow from a document's length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny_models import BASE, VOCAB, packed_rows, whole_model

from llmtrain.checkpoint.probe import Probe, loss_of
from llmtrain.config.schema import ModelSection
from llmtrain.errors import ConfigError
from llmtrain.model.build import hf_config
from llmtrain.model.lengths import take_length
from llmtrain.model.rotary import document_lengths, reach, require_documents_rule

SPREAD = [1.0 + place for place in range(8)]
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0] * 8,
    "long_factor": SPREAD,
    "original_max_position_embeddings": 6,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
SLIDING = ["sliding_attention", "full_attention"] * 2
BY_LENGTH: dict[str, dict[str, Any]] = {
    "dynamic": {"model_type": "llama", "max_position_embeddings": 6, "rope_parameters": DYNAMIC},
    "longrope": {"model_type": "qwen2", "max_position_embeddings": 32, "rope_parameters": LONG},
    "by layer": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "layer_types": SLIDING,
        "rope_parameters": {
            "full_attention": LONG,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
}


def made(**config: Any) -> Any:
    return hf_config(
        ModelSection(config={**BASE, "initializer_range": 0.3, **config}), VOCAB, eos_id=1, bos_id=0
    )


def test_every_position_knows_how_long_its_document_is() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4]])
    assert document_lengths(positions).tolist() == [[3, 3, 3, 2, 2], [1, 4, 4, 4, 4], [5] * 5]


@pytest.mark.parametrize("rule", BY_LENGTH)
def test_an_exported_model_has_the_loss_of_the_documents_that_were_trained(rule: str) -> None:
    """Documents of 5 and 11, 6 and 10 tokens in rows of 16, with a reach of 6."""
    config = made(**BY_LENGTH[rule])
    ours = whole_model(config).eval()
    assert reach(config) == 6
    tokens, positions, labels = packed_rows()
    with torch.no_grad():
        loss = float(ours(tokens, positions, labels)) / int((labels >= 0).sum())
        again = float(ours(tokens, positions, labels)) / int((labels >= 0).sum())
    plain = transformers.AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(ours.hf.state_dict())
    rows = [part.tolist() for part in (tokens, positions, labels)]
    probe = Probe(tokens=rows[0], positions=rows[1], labels=rows[2], loss=loss)
    assert again == loss
    assert loss_of(plain.eval(), probe) == pytest.approx(loss, rel=1e-5)
    fixed = transformers.AutoModelForCausalLM.from_config(
        made(**{**BY_LENGTH[rule], "rope_parameters": None})
    )
    fixed.load_state_dict(ours.hf.state_dict())
    assert abs(loss_of(fixed.eval(), probe) - loss) > 1e-3, "frequencies make no difference, so none was seen"


def test_a_familys_own_look_at_the_positions_is_refused_beyond_its_reach() -> None:
    scales = {"short_mscale": 1.0, "long_mscale": 1.2}
    config = transformers.PhimoeConfig(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=64,
        max_position_embeddings=32,
        rope_parameters={**{key: value for key, value in LONG.items() if key != "factor"}, **scales},
    )
    require_documents_rule(config, 6, "data.seq_len")
    with pytest.raises(
        ConfigError, match=r"data.seq_len = 7 \(model_type phimoe\).*above 6 tokens.*use at most 6"
    ):
        require_documents_rule(config, 7, "data.seq_len")


def test_a_table_of_positions_ends_and_a_rotation_goes_on() -> None:
    gpt2 = hf_config(
        ModelSection(config={"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_positions": 32}), VOCAB
    )
    assert take_length(gpt2, 32) == ""
    with pytest.raises(
        ConfigError, match=r"data.seq_len = 33 \(model_type gpt2\): .*table of 32; use 32 or less"
    ):
        take_length(gpt2, 33)
    llama = made(model_type="llama", max_position_embeddings=32)
    assert "will say 64" in take_length(llama, 64)
    assert llama.max_position_embeddings == 64 and take_length(llama, 64) == ""


@pytest.mark.parametrize("rule", BY_LENGTH)
def test_a_length_that_frequencies_follow_from_stays(rule: str) -> None:
    config = made(**{**BY_LENGTH[rule], "max_position_embeddings": 8})
    assert take_length(config, 64) == "" and config.max_position_embeddings == 8
